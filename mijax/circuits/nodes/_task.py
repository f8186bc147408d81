"""A task for circuits of nodes, on any model that marks sites."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import ShapeError, quoted
from mijax.circuits.nodes._nodes import Nodes, nodes_of
from mijax.core import AbstractEdit, FunctionModel, compose
from mijax.core.internal import checked_scores, cut, opened_function


class NodeTask(eqx.Module):
    """A model, its inputs, a metric, and the nodes of which a circuit is made.

    A node is a place on chosen axes of a site: a unit, a channel, a head, an expert,
    a latent of a dictionary. A node outside a circuit is replaced by its value on the
    corrupt inputs, or by an ablation.

    Args:
        model: any function as a model, `mijax.model(fn, example)`.
        clean: a batch of inputs, or one.
        corrupt: a counterpart for each clean input, of the same shapes.
        metric: the quantity that the circuit keeps; more is better. As in
            `mijax.sweep`: one of mijax's metrics, or a function `(output)` or
            `(output, example)`.
        nodes: for each site the axes that tell its nodes apart, for instance
            `{"z": ("layer", "head"), "mlp_out": "layer"}`. A node is everything on the
            other axes; no axes, `()`, make the whole site one node.
        ablation: an edit that replaces nodes, such as `mijax.Zero()` or
            `mijax.Mean(acts)`, instead of corrupt inputs.

    Raises:
        ShapeError: no `FunctionModel`, corrupt inputs of other shapes, both or neither
            of corrupt inputs and an ablation, something else than a metric.
        SiteError: a site or axis that the model does not have.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> def mlp(x):
        ...     x = mijax.site("hidden", jax.nn.relu(x), "neuron")
        ...     return x[0] + x[1]
        >>> model = mijax.model(mlp, jax.numpy.ones(4))
        >>> task = circuits.NodeTask(
        ...     model,
        ...     jax.numpy.ones((2, 4)),
        ...     metric=lambda output: output,
        ...     nodes={"hidden": "neuron"},
        ...     ablation=mijax.Zero(),
        ... )
        >>> task.nodes
        Nodes(4 hidden (neuron))
    """

    model: FunctionModel
    clean: Any
    corrupt: Any
    metric: Any
    ablation: AbstractEdit | None
    edits: dict[str, Any]
    nodes: Nodes = eqx.field(static=True)
    sites: Any = eqx.field(static=True)

    def __init__(
        self,
        model: FunctionModel,
        clean: Any,
        corrupt: Any = None,
        *,
        metric: Any,
        nodes: Any,
        ablation: AbstractEdit | None = None,
    ):
        if not isinstance(model, FunctionModel):
            raise ShapeError(
                "A task of nodes takes mijax.model(fn, example), got "
                f"{type(model).__name__}; for a decoder write "
                "mijax.model(lambda tokens: decoder(tokens)[0], tokens)."
            )
        if (corrupt is None) == (ablation is None):
            raise ShapeError(
                "A task of nodes takes corrupt inputs or an ablation such as "
                "mijax.Zero(): give one of them."
            )
        door = opened_function(model, clean, None)
        self.model, self.ablation, self.sites = model, ablation, door.sites
        self.clean = _batch(door)
        self.corrupt = None
        if corrupt is not None:
            self.corrupt = _batch(opened_function(model, corrupt, None))
        _check_alike(self.clean, self.corrupt)
        if isinstance(metric, Mapping):
            raise ShapeError(f"A task has one metric, got {quoted(metric)}.")
        self.metric = checked_scores(metric, door.output, door.batch)
        self.nodes = nodes_of(nodes, self.sites)
        self.edits = {}
        if ablation is not None:
            if not isinstance(ablation, AbstractEdit):
                raise ShapeError(
                    "An ablation of nodes is an edit without a place, such as "
                    f"mijax.Zero(), got {quoted(ablation)}."
                )
            placed = compose(*(ablation.at(s.site) for s in self.nodes.sites))
            self.edits = opened_function(model, self.clean, placed).edits

    def __len__(self) -> int:
        return jax.tree.leaves(self.clean)[0].shape[0]

    def __repr__(self) -> str:
        return cut(f"NodeTask({len(self)} examples, {len(self.nodes)} nodes)")


def _batch(door: Any) -> Any:
    """Return inputs as a batch."""
    if door.batch is None:
        return jax.tree.map(lambda a: a[None], door.inputs)
    return door.inputs


def _check_alike(clean: Any, corrupt: Any) -> None:
    """Refuse corrupt inputs of other shapes than the clean ones."""
    ours, theirs = ([a.shape for a in jax.tree.leaves(t)] for t in (clean, corrupt))
    if corrupt is not None and ours != theirs:
        raise ShapeError(
            f"Clean inputs have shape {', '.join(map(str, ours))} and corrupt ones "
            f"{', '.join(map(str, theirs))}: give one counterpart for each."
        )


def blocks(task: NodeTask, size: int) -> list[tuple[np.ndarray, int]]:
    """Cut examples into blocks of one size; the last repeats its last example.

    Returns:
        For each block the indices of its examples, and how many of them count.
    """
    n = len(task)
    starts = range(0, n, size)
    each = [np.minimum(np.arange(s, s + size), n - 1).astype(np.int32) for s in starts]
    return [(ids, min(size, n - s)) for ids, s in zip(each, starts, strict=True)]


def full_gates(task: NodeTask) -> jax.Array:
    """Return the gates of the whole model."""
    return jnp.ones(len(task.nodes), jnp.float32)
