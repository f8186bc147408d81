"""Path patching: what a head does through chosen receivers alone."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mijax._errors import ConfigError, ShapeError
from mijax.circuits._graph import LETTERS, Graph
from mijax.circuits._method import Progress
from mijax.circuits._task import Task
from mijax.core import AbstractEdit, AbstractModel, Interval, Patch, Place
from mijax.core import interval as mean_interval


class Paths(eqx.Module):
    """Effects of heads along paths.

    Attributes:
        values: how much the metric falls when the corrupt run's head is heard by the
            receivers, `[prompt, layer, head]`.
        base: metric of the clean run, `[prompt]`.
        receivers: who hears it.
    """

    values: Float[Array, "prompt layer head"]
    base: Float[Array, " prompt"]
    receivers: tuple[str, ...] = eqx.field(static=True)

    def interval(self, **options: Any) -> Interval:
        """Returns the mean over prompts with its confidence interval."""
        return mean_interval(self.values, **options)


def path_patch(
    model: AbstractModel,
    task: Task,
    receivers: str | Sequence[str],
    *,
    through_mlps: bool = True,
    progress: Progress = None,
) -> Paths:
    """Patches every head's path to the receivers, exactly (Wang et al. 2022).

    Two runs per head. In the first the head writes what it writes in the corrupt run
    and all other heads what they write in the clean one; what the receivers read then
    is kept. The second is the clean run in which the receivers have it
    (arXiv:2211.00593, appendix B; Goldowsky-Dill et al. 2023, arXiv:2304.05969).

    Args:
        model: a model with a site `z`.
        task: clean and corrupt prompts, and the metric.
        receivers: `"logits"`, or queries, keys and values of heads like `"a9.h9<q>"`.
        through_mlps: whether MLPs between the head and the receivers answer, as
            published; else paths go through the residual stream alone.
        progress: called with layers done and their number.

    Returns:
        The effect of each head.

    Raises:
        SiteError: there is no such receiver.
        ConfigError: logits together with heads, or an MLP as receiver.
        ShapeError: the task has no corrupt prompts.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> path_patch(model, task, "a2.h1<q>").values.shape
        (1, 3, 4)
    """
    names = (receivers,) if isinstance(receivers, str) else tuple(receivers)
    graph = Graph.of(model)
    hears = _hears(graph, names)
    if task.corrupt is None:
        raise ShapeError("Path patching needs corrupt prompts: give them to the task.")
    found, base = [], jnp.zeros(0)
    for layer in range(graph.n_layers):
        fixed = graph.mlp and not through_mlps
        values, base = _layer(
            model, task, hears, jnp.int32(layer), graph.n_heads, fixed
        )
        found.append(values)
        if progress is not None:
            values.block_until_ready()
            progress(layer + 1, graph.n_layers)
    return Paths(jnp.stack(found, 1), base, names)


class Hear(AbstractEdit):
    """Replaces the activation of some heads of each layer by that of another run."""

    source: Float[Array, "layer seq heads head_dim"]
    heads: Bool[Array, "layer heads"]

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the other run's rows where a head is meant."""
        new = self.source[place.layer, place.rows.position]
        return jnp.where(self.heads[place.layer][:, None], new, x)


def _hears(graph: Graph, names: Sequence[str]) -> dict[str, Array]:
    """Returns which heads hear, by letter; nothing for the logits."""
    found = {}
    for name in names:
        graph.receiver(name)
        node, _, letter = name.partition("<")
        if name == "logits" and len(names) == 1:
            return {}
        if not letter:
            raise ConfigError(
                f"Receivers of a path are 'logits' alone, or queries, keys and values "
                f"of heads; got {', '.join(names)}."
            )
        layer, head = (int(part[1:]) for part in node.split("."))
        mask = found.setdefault(
            letter[0], np.zeros((graph.n_layers, graph.n_heads), bool)
        )
        mask[layer, head] = True
    if not found:
        raise ConfigError("Path patching needs at least one receiver.")
    return {letter: jnp.asarray(found[letter]) for letter in LETTERS if letter in found}


@eqx.filter_jit
def _layer(
    model: AbstractModel,
    task: Task,
    hears: dict[str, Array],
    layer: Array,
    n_heads: int,
    fixed: bool,
) -> tuple[Float[Array, "prompt head"], Float[Array, " prompt"]]:
    """Patches the paths of every head of a layer."""
    assert task.corrupt is not None
    corrupt = task.corrupt

    def one(prompt: Array) -> tuple[Array, Array]:
        tokens = task.clean[prompt]
        logits, clean = model(tokens, prompt=prompt)
        other = model(corrupt[prompt])[1].blocks.z
        full = task.metric.of(logits, prompt)
        here = (jnp.arange(clean.blocks.z.shape[0]) == layer)[:, None, None, None]

        def of_head(head: Array) -> Array:
            sends = here & (jnp.arange(n_heads) == head)[:, None]
            edits = [Patch(jnp.where(sends, other, clean.blocks.z)).at("z")]
            if fixed:
                edits.append(Patch(clean.blocks.mlp_out).at("mlp_out"))
            logits, acts = model(tokens, edits, prompt=prompt)
            if hears:
                heard = [
                    Hear(getattr(acts.blocks, letter), heads).at(letter)
                    for letter, heads in hears.items()
                ]
                logits, _ = model(tokens, heard, prompt=prompt)
            return full - task.metric.of(logits, prompt)

        return jax.vmap(of_head)(jnp.arange(n_heads)), full

    return jax.lax.map(one, jnp.arange(len(task), dtype=jnp.int32))
