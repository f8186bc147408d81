"""Path patching: what a head does through chosen receivers alone."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError, ShapeError, SiteError
from mijax._progress import Progress, reports
from mijax.circuits._task import Task, check_task
from mijax.circuits.forward._graph import Graph, find
from mijax.circuits.forward._ports import LETTERS
from mijax.core import AbstractEdit, AbstractModel, Interval, Patch, Place, compose
from mijax.core import interval as mean_interval
from mijax.core.internal import checked, metric_of


class Paths(eqx.Module):
    """Effects of heads along paths.

    Attributes:
        values: how much the metric falls when the corrupt run's head is heard by the
            receivers, `[prompt, layer, head]`; of chosen senders `[prompt, sender]`.
        base: metric of the clean run, `[prompt]`.
        receivers: who hears it.
        senders: the heads, in the order of `values`.
    """

    values: Float[Array, "prompt *head"]
    base: Float[Array, " prompt"]
    receivers: tuple[str, ...] = eqx.field(static=True)
    senders: tuple[str, ...] = eqx.field(static=True)

    def interval(self, **options: Any) -> Interval:
        """Returns the mean over prompts with its confidence interval."""
        return mean_interval(self.values, **options)


@reports("Path patching")
@checked
def path_patch(
    model: AbstractModel,
    task: Task,
    receivers: str | Sequence[str],
    *,
    senders: str | Sequence[str] | None = None,
    through_mlps: bool = True,
    progress: Progress = None,
) -> Paths:
    """Patches heads' paths to the receivers, exactly (Wang et al. 2022).

    Two runs per sender. In the first the head writes what it writes in the corrupt run
    and all other heads what they write in the clean one; what the receivers read then
    is kept. The second is the clean run in which the receivers have it
    (arXiv:2211.00593, appendix B; Goldowsky-Dill et al. 2023, arXiv:2304.05969).

    The cost is two runs of the model per prompt and sender, one if the receiver is the
    logits, and two more per prompt for every `n_heads` senders. Receivers of one call
    hear together, so they cost no more than one; to tell them apart, call once per
    receiver. A head of the receiver's layer or a later one has no effect on it.

    Args:
        model: a model with a site `z`.
        task: clean and corrupt prompts, and the metric.
        receivers: `"logits"`, or queries, keys and values of heads like `"a9.h9<q>"`.
            Keys and values are those of one query head, also where heads share them:
            the others of its group keep theirs.
        senders: heads like `"a7.h3"`, which alone are run; all by default.
        through_mlps: whether MLPs between the head and the receivers answer, as
            published; else paths go through the residual stream alone.
        progress: called with senders done and their number; `None` draws a bar after
            three seconds in a terminal or notebook, `False` none.

    Returns:
        The effect of each head.

    Raises:
        SiteError: there is no such receiver or sender.
        ConfigError: logits together with heads, an MLP as receiver, or none at all.
        ShapeError: the task has no corrupt prompts.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> path_patch(model, task, "a2.h1<q>").values.shape  # prompt, layer, head
        (1, 3, 4)
        >>> paths = path_patch(model, task, "a2.h1<k>", senders=["a0.h3", "a1.h0"])
        >>> paths.values.shape, paths.senders
        ((1, 2), ('a0.h3', 'a1.h0'))
    """
    check_task(model, task)
    graph = Graph.of(model)
    n_heads = _n_heads(graph)
    ears = [n for n in graph.receivers if (".h" in n and "<" in n) or n == "logits"]
    hears = _hears(graph, names := _named(receivers, ears, graph.receivers, "receiver"))
    heads = tuple(name for name in graph.senders if ".h" in name)
    chosen = heads if senders is None else _named(senders, heads, heads, "sender")
    if task.corrupt is None:
        raise ShapeError("Path patching needs corrupt prompts: give them to the task.")
    mlp = any(port.name == "mlp_out" for port in graph.ports.writes)
    fixed = mlp and not through_mlps
    at = np.array([heads.index(name) for name in chosen], np.int32)
    # Batches of one size, so that there is one program; the last sender fills up.
    size = -(-len(at) // -(-len(at) // n_heads))
    found, base = [], jnp.zeros(0)
    for start in range(0, len(at), size):
        rows = np.minimum(np.arange(start, start + size), len(at) - 1)
        values, base = _patched(model, task, hears, jnp.asarray(at[rows]), fixed)
        found.append(values)
        if progress:
            values.block_until_ready()
            progress(min(start + size, len(at)), len(at))
    values = jnp.concatenate(found, 1)[:, : len(at)]
    if senders is None:
        values = values.reshape(-1, graph.n_layers, n_heads)
    return Paths(values, base, names, chosen)


class Hear(AbstractEdit):
    """Replaces the activation of some heads of each layer by that of another run."""

    source: Float[Array, "layer seq heads head_dim"]
    heads: Bool[Array, "layer heads"]

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the other run's rows where a head is meant."""
        new = self.source[place.layer, place.rows.position]
        return jnp.where(self.heads[place.layer][:, None], new, x)


def _named(
    given: Any, names: Sequence[str], known: Sequence[str], kind: str
) -> tuple[str, ...]:
    """Returns the names that were given, and refuses those that nobody has."""
    chosen = (given,) if isinstance(given, str) else given
    if not isinstance(chosen, Sequence) or not all(isinstance(n, str) for n in chosen):
        # Shown whole: a tuple is rather a layer and a head than two names.
        chosen, known = (given,), ()
    for name in chosen:
        if name not in known:
            find(name, tuple(names), kind)
    if not chosen:
        raise ConfigError(f"Path patching needs at least one {kind}.")
    return tuple(chosen)


def _n_heads(graph: Graph) -> int:
    """Returns the number of heads of a block."""
    heads = [port.heads for port in graph.ports.writes if port.heads is not None]
    if not heads:
        raise SiteError(
            "Path patching needs blocks whose heads write one by one "
            f"(`stream.write`); this graph has {', '.join(graph.senders[-2:])}."
        )
    return heads[0]


def _hears(graph: Graph, names: Sequence[str]) -> dict[str, Array]:
    """Returns which heads hear, by letter; nothing for the logits."""
    found = {}
    for name in names:
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
            letter[0], np.zeros((graph.n_layers, _n_heads(graph)), bool)
        )
        mask[layer, head] = True
    return {letter: jnp.asarray(found[letter]) for letter in LETTERS if letter in found}


@eqx.filter_jit
def _patched(
    model: AbstractModel,
    task: Task,
    hears: dict[str, Array],
    senders: Int[Array, " sender"],
    fixed: bool,
) -> tuple[Float[Array, "prompt sender"], Float[Array, " prompt"]]:
    """Patches the paths of some heads, counted over all layers."""
    assert task.corrupt is not None
    corrupt = task.corrupt

    def one(prompt: Array) -> tuple[Array, Array]:
        tokens = task.clean[prompt]
        clean = model(tokens, prompt=prompt)[1]
        other = model(corrupt[prompt])[1].blocks.z
        full = metric_of(model, task.metric, tokens, compose(), prompt)
        n_layers, _, n_heads, _ = other.shape

        def of_head(sender: Array) -> Array:
            sends = (jnp.arange(n_layers * n_heads) == sender).reshape(
                n_layers, 1, n_heads, 1
            )
            edits = [Patch(jnp.where(sends, other, clean.blocks.z)).at("z")]
            if fixed:
                edits.append(Patch(clean.blocks.mlp_out).at("mlp_out"))
            if hears:
                acts = model(tokens, edits, prompt=prompt)[1]
                edits = [
                    Hear(getattr(acts.blocks, letter), heads).at(letter)
                    for letter, heads in hears.items()
                ]
            patched = metric_of(model, task.metric, tokens, compose(edits), prompt)
            return full - patched

        return jax.vmap(of_head)(senders), full

    return jax.lax.map(one, jnp.arange(len(task), dtype=jnp.int32))
