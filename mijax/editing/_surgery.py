"""Circuit surgery: scale or transplant nodes of a circuit in the weights."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mijax._errors import ConfigError, SiteError
from mijax.core.internal import check_linear_writes, checked
from mijax.editing._delta import Dense
from mijax.editing._weight_edit import Change, WeightEdit
from mijax.editing._weights import bare, read, weight_digest, weight_names

HEAD = re.compile(r"a(\d+)\.h(\d+)")
MLP = re.compile(r"m(\d+)")
# Weights of a head and the axis of heads in one layer.
HEADS = (
    ("w_q", 1),
    ("w_k", 1),
    ("w_v", 1),
    ("w_o", 0),
    ("b_q", 0),
    ("b_k", 0),
    ("b_v", 0),
)


@checked
def scale_nodes(model: Any, nodes: Sequence[str], *, factor: float) -> WeightEdit:
    """Scale the outputs of circuit nodes in the weights.

    A factor of 0 disables the nodes: the edited model computes the same as zero
    ablation at `z` and `mlp_out`, at every position.

    Args:
        model: a model whose blocks add their outputs to the stream unchanged.
        nodes: names of heads and MLPs as in circuits, `"a3.h1"` and `"m2"`.
        factor: factor to multiply their outputs by.

    Returns:
        One edit.

    Raises:
        ConfigError: a name that is not a head or MLP, or a repeated name.
        SiteError: a layer or head that the model does not have.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> edit = scale_nodes(model, ["a1.h2", "m0"], factor=0.0)
        >>> tokens = jnp.array([5, 6, 7])
        >>> zero = mijax.Zero()
        >>> edits = [zero.at("z", layer=1, head=2), zero.at("mlp_out", layer=0)]
        >>> by_edit = mijax.run(model, tokens, edits)
        >>> bool(jnp.allclose(mijax.run(edit.apply(model), tokens), by_edit, atol=1e-4))
        True
    """
    lone = bare(model)
    check_linear_writes(lone, "scale_nodes")
    deltas: dict[tuple[str, int], Array] = {}
    for layer, head in _parsed(lone, nodes):
        if head is not None:
            place = ("blocks.attention.w_o", layer)
            weight = read(lone, *place).astype(jnp.float32)
            delta = deltas.get(place, jnp.zeros_like(weight))
            deltas[place] = delta.at[head].set((factor - 1) * weight[head])
            continue
        for name in ("blocks.mlp.w_out", "blocks.mlp.b_out"):
            if name in weight_names(lone):
                weight = read(lone, name, layer).astype(jnp.float32)
                deltas[name, layer] = (factor - 1) * weight
    return _edit(lone, deltas)


@checked
def transplant_nodes(model: Any, donor: Any, nodes: Sequence[str]) -> WeightEdit:
    """Copy the weights of circuit nodes from another model.

    Args:
        model: the model.
        donor: a model of the same shape, such as a later checkpoint or a fine-tuned
            one.
        nodes: names of heads and MLPs as in circuits, `"a3.h1"` and `"m2"`.

    Returns:
        One edit. The bias of attention's output, shared by the heads, does not change.

    Raises:
        ConfigError: a name that is not a head or MLP, a repeated name, or single heads
            in a model whose heads share keys and values.
        SiteError: a layer or head that the model does not have.

    Examples:
        >>> import jax, mijax
        >>> model, donor = (
        ...     mijax.testing.tiny_gpt2(jax.random.key(seed)) for seed in (0, 1)
        ... )
        >>> edit = transplant_nodes(model, donor, ["m1"])
        >>> edited = edit.apply(model).blocks.mlp.w_out[1]
        >>> bool(jnp.allclose(edited, donor.blocks.mlp.w_out[1], atol=1e-6))
        True
    """
    lone, other = bare(model), bare(donor)
    names = weight_names(lone)
    deltas: dict[tuple[str, int], Array] = {}

    def copy(name: str, layer: int, at: Any) -> None:
        mine, theirs = (read(m, name, layer).astype(jnp.float32) for m in (lone, other))
        if mine.shape != theirs.shape:
            raise SiteError(
                f"{name} has shape {mine.shape} in the model and {theirs.shape} in the "
                "donor: give models of the same shape."
            )
        delta = deltas.get((name, layer), jnp.zeros_like(mine))
        deltas[name, layer] = delta.at[at].set((theirs - mine)[at])

    for layer, head in _parsed(lone, nodes):
        if head is None:
            for name in (n for n in names if n.startswith("blocks.mlp.")):
                copy(name, layer, ...)
            continue
        shared = read(lone, "blocks.attention.w_k", layer).shape[1]
        if shared != read(lone, "blocks.attention.w_q", layer).shape[1]:
            raise ConfigError(
                f"Heads in this model share {shared} keys and values, so a single head "
                "cannot be transplanted."
            )
        for part, axis in HEADS:
            name = f"blocks.attention.{part}"
            if name in names:
                copy(name, layer, (slice(None),) * axis + (head,))
    return _edit(lone, deltas)


def _parsed(model: Any, nodes: Sequence[str]) -> list[tuple[int, int | None]]:
    """Return layer and head of each node; no head for an MLP."""
    if isinstance(nodes, str) or len(set(nodes)) < len(nodes) or not nodes:
        raise ConfigError(f"Give a list of nodes, each once, got {nodes!r:.60}.")
    found: list[tuple[int, int | None]] = []
    for node in nodes:
        head, mlp = HEAD.fullmatch(node), MLP.fullmatch(node)
        if head is None and mlp is None:
            raise ConfigError(
                f"{node!r} is not a head or MLP: give names such as 'a3.h1' and 'm2'."
            )
        if mlp is not None:
            layer = int(mlp[1])
            read(model, "blocks.mlp.w_out", layer)
            found.append((layer, None))
        elif head is not None:
            layer, index = int(head[1]), int(head[2])
            heads = read(model, "blocks.attention.w_o", layer).shape[0]
            if index >= heads:
                raise SiteError(
                    f"Layer {layer} has heads 0 to {heads - 1}, got {node}."
                )
            found.append((layer, index))
    return found


def _edit(model: Any, deltas: dict[tuple[str, int], Array]) -> WeightEdit:
    return WeightEdit(
        tuple(
            Change(name, layer, Dense(delta), weight_digest(read(model, name, layer)))
            for (name, layer), delta in deltas.items()
        )
    )
