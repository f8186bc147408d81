"""Path patching: what a node does through chosen receivers and mediators alone."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError
from mijax._progress import Progress, reports
from mijax.circuits._task import Task, check_task, enter_clean
from mijax.circuits.forward._connected import connected, score
from mijax.circuits.forward._graph import Graph, find
from mijax.circuits.forward._ports import PARTS
from mijax.circuits.forward._stream import Gate, OtherRun
from mijax.circuits.forward._streams import Model, with_blocks
from mijax.core import Interval
from mijax.core import interval as mean_interval
from mijax.core.internal import checked


class Paths(eqx.Module):
    """Effects of senders along paths.

    Attributes:
        values: fall of the metric when the receivers read what they would read if the
            sender were ablated, `[prompt, sender]`; for all senders of a port
            `[prompt, layer]`, or `[prompt, layer, head]`.
        base: metric of the clean run, `[prompt]`.
        receivers: names of the receivers.
        senders: names of the senders, in the order of `values`.
    """

    values: Float[Array, "prompt *sender"]
    base: Float[Array, " prompt"]
    receivers: tuple[str, ...] = eqx.field(static=True)
    senders: tuple[str, ...] = eqx.field(static=True)

    def interval(self, **options: Any) -> Interval:
        """Returns the mean over prompts with its confidence interval."""
        return mean_interval(self.values, **options)


@reports("Path patching")
@checked
def path_patch(
    model: Model,
    task: Task,
    receivers: str | Sequence[str],
    *,
    senders: str | Sequence[str] | None = None,
    through: str | Sequence[str] | None = None,
    progress: Progress = None,
) -> Paths:
    """Patches paths from senders to receivers, exactly (Wang et al. 2022).

    Two runs per sender. In the first the sender writes what the ablation replaces it
    by, in the published form what it writes on the corrupt prompt. Only the mediators
    read the stream that follows from it; all other nodes read the clean stream, so that
    they write what they write in the clean run. The second is the clean run in which
    the receivers read what they read in the first (arXiv:2211.00593, appendix B;
    Goldowsky-Dill et al. 2023, arXiv:2304.05969).

    The cost is two runs of the model per prompt and sender, one if the receiver is the
    logits, and two more per prompt for every batch of senders. The receivers of one
    call are patched together, so they cost no more than one; to tell them apart, call
    once per receiver. A receiver that is computed before the sender has effect 0.

    Args:
        model: any model whose blocks read and write a stream.
        task: prompts, metric and ablation.
        receivers: `"logits"`, or receivers of the graph, such as queries, keys and
            values of heads and MLPs: `"a9.h9<q>"`, `"m3"`. Keys and values are those of
            one query head, also where heads share them: the others of its group keep
            theirs.
        senders: senders of the graph such as `"a7.h3"`, `"m2"` and `"input"`, or the
            name of a port, which means all its senders, such as `"mlp_out"`. By default
            the port that writes first in a block, `"attn_out"` of a transformer.
        through: mediators, by name of a node such as `"m3"` or of a receiver such as
            `"a5.h1<v>"`; `()` patches the direct path alone. By default all MLPs, as
            published.
        progress: called with senders done and their number; `None` draws a bar after
            three seconds in a terminal or notebook, `False` none.

    Returns:
        The effect of each sender.

    Raises:
        SiteError: the graph has no such receiver, sender or mediator.
        ConfigError: logits together with other receivers, no receiver or no sender.
        ShapeError: the ablation needs corrupt prompts, and the task has none.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> path_patch(model, task, "a2.h1<q>").values.shape  # prompt, layer, head
        (1, 3, 4)
        >>> paths = path_patch(model, task, "m2", senders=["a0.h3", "m0"], through="m1")
        >>> paths.values.shape, paths.senders
        ((1, 2), ('a0.h3', 'm0'))
    """
    model = with_blocks(model, "Path patching")
    check_task(model, task)
    graph = Graph.of(model)
    names = _named(receivers, graph.receivers, "receiver")
    if "logits" in names and len(names) > 1:
        raise ConfigError(
            "The logits are the only receiver of a call, since they read what all "
            f"others write; got {', '.join(names)}."
        )
    chosen, shape = _senders(graph, senders)
    reads = np.isin(graph.receivers, names)
    mediates = _mediators(graph, through)
    at = np.array([graph.sender(name) for name in chosen], np.int32)
    # Batches of one size, so that there is one program; the last sender fills up.
    size = -(-len(at) // -(-len(at) // graph.ports.writers))
    found, base = [], jnp.zeros(0)
    for start in range(0, len(at), size):
        rows = jnp.asarray(at[np.minimum(np.arange(start, start + size), len(at) - 1)])
        values, base = _patched(
            *(model, graph, task, rows),
            *(jnp.asarray(reads), jnp.asarray(mediates)),
            logits="logits" in names,
        )
        found.append(values)
        if progress:
            values.block_until_ready()
            progress(min(start + size, len(at)), len(at))
    values = jnp.concatenate(found, 1)[:, : len(at)]
    return Paths(values.reshape(-1, *shape), base, names, chosen)


def _named(given: Any, names: tuple[str, ...], kind: str) -> tuple[str, ...]:
    """Returns the names that were given, and refuses unknown ones."""
    chosen = (given,) if isinstance(given, str) else given
    if not isinstance(chosen, Sequence) or not all(isinstance(n, str) for n in chosen):
        # Shown whole: a tuple is rather a layer and a head than two names.
        find(given, names, kind)
    for name in chosen:
        find(name, names, kind)
    if not chosen:
        raise ConfigError(f"Path patching needs at least one {kind}.")
    return tuple(chosen)


def _senders(graph: Graph, given: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns names of senders, and the shape in which their effects are returned."""
    given = graph.ports.writes[0].name if given is None else given
    port = next((p for p in graph.ports.writes if p.name == given), None)
    if port is None:
        chosen = _named(given, graph.senders, "sender")
        return chosen, (len(chosen),)
    layers = range(graph.n_layers)
    names = tuple(name for layer in layers for name in port.names(layer))
    heads = () if port.heads is None else (port.heads,)
    return names, (graph.n_layers, *heads)


def _mediators(graph: Graph, given: Any) -> Bool[np.ndarray, " receiver"]:
    """Returns the receivers that see the change of the sender, the logits too."""
    if given is None:
        mlp = PARTS["mlp"]
        mlps = [p for p in graph.ports.reads if p.part.rpartition(".")[2] == mlp]
        layers = range(graph.n_layers)
        given = [
            name for port in mlps for layer in layers for name in port.names(layer)
        ]
    nodes = graph.senders[len(graph.inputs) :] + graph.receivers[:-1]
    names = _named(given, nodes, "mediator") if given else ()
    pairs = ((name, graph.owner(name)) for name in graph.receivers)
    names = (*names, "logits")
    return np.array([name in names or owner in names for name, owner in pairs])


@eqx.filter_jit
def _patched(
    model: Model,
    graph: Graph,
    task: Task,
    senders: Int[Array, " sender"],
    reads: Bool[Array, " receiver"],
    mediates: Bool[Array, " receiver"],
    *,
    logits: bool,
) -> tuple[Float[Array, "prompt sender"], Float[Array, " prompt"]]:
    """Patches the paths of some senders."""

    def one(prompt: Array) -> tuple[Array, Array]:
        reference = task.ablation.reference(model, graph, task, prompt)
        inputs = enter_clean(model, graph, task, prompt)
        clean = connected(model, graph, inputs, prompt=prompt)
        full = score(model, task.metric, clean.final, prompt)

        def of_sender(sender: Array) -> Array:
            others = jnp.arange(len(graph.senders)) != sender
            sent = connected(
                *(model, graph, inputs),
                prompt=prompt,
                gate=Gate(nodes=others[:, None]),
                reference=reference,
                other=OtherRun(~mediates, clean),
            )
            if not logits:
                received = OtherRun(reads, sent)
                sent = connected(model, graph, inputs, prompt=prompt, other=received)
            return full - score(model, task.metric, sent.final, prompt)

        return jax.vmap(of_sender)(senders), full

    return jax.lax.map(one, jnp.arange(len(task), dtype=jnp.int32))
