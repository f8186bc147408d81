"""Many circuits and prompts in one compiled program, chunk by chunk."""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError, SiteError, quoted
from mijax._progress import Progress
from mijax.circuits._circuit import Circuit
from mijax.circuits._method import MEMORY
from mijax.circuits._select import prune
from mijax.circuits._task import (
    Task,
    check_task,
    enter_clean,
    rows,
    stream_shape,
    vocab_of,
)
from mijax.circuits.forward._connected import connected, score
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.forward._streams import Model, StreamModel, with_blocks
from mijax.core import kl


def several(circuits: Circuit | Sequence[Circuit]) -> list[Circuit]:
    """Returns circuits of one graph as a list; warns if nothing gets through one."""
    given = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not given:
        raise ConfigError("There is no circuit to run: give one at least.")
    if not all(isinstance(circuit, Circuit) for circuit in given):
        raise ConfigError(f"Give circuits, got {quoted(circuits)}.")
    if len({circuit.graph for circuit in given}) > 1:
        raise ConfigError(
            "The circuits are of different graphs: make all with the same one."
        )
    dead = (i for i, one in enumerate(given) if one.n_edges and not prune(one).n_edges)
    for i in itertools.islice(dead, 1):
        warnings.warn(
            f"Circuit {i} has {given[i].n_edges} edges, but no path from the input to "
            "the logits: nothing of the prompt gets through it. Take more edges, or "
            "select with greedy.",
            stacklevel=4,
        )
    return given


def measured(
    model: Model,
    task: Task,
    circuits: Sequence[Circuit],
    *,
    divergence: bool = False,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Float[np.ndarray, "circuit prompt"]:
    """Runs circuits of one graph in chunks of circuits and prompts."""
    graph = circuits[0].graph
    check_graph(model, graph)
    check_task(model, task)
    place, unique = distinct(circuits)
    lanes = max(1, memory // cost(model, graph, task, divergence))
    height = even(len(unique), lanes)
    width = max(1, min(len(task), lanes // height))
    total, done = len(unique) * len(task), 0
    parts = []
    for index, count in rows(task, width):
        prompts, column = jnp.asarray(index), []
        for start in range(0, len(unique), height):
            some = unique[start : start + height]
            edges, neurons = stacked(some, height)
            found = _chunk(model, graph, task, edges, neurons, prompts, divergence)
            column.append(found[: len(some), :count])
            done += len(some) * count
            if progress:
                found.block_until_ready()
                progress(done, total)
        parts.append(column)
    values = [np.concatenate([np.asarray(a) for a in column]) for column in parts]
    return np.concatenate(values, axis=1)[place]


def check_graph(model: Model, graph: Graph) -> None:
    """Refuses a circuit of another model."""
    own = Graph.of(model, split_input=len(graph.inputs) > 1)
    if graph != own:
        raise SiteError(
            f"The circuits are of a graph with {len(graph.senders)} senders and "
            f"{graph.n_edges} edges, the model's has {len(own.senders)} and "
            f"{own.n_edges}: make them with Graph.of(model)."
        )


def distinct(circuits: Sequence[Circuit]) -> tuple[list[int], list[Circuit]]:
    """Returns the circuits without repetition, and where each of them is."""
    index: dict[Circuit, int] = {}
    place = [index.setdefault(circuit, len(index)) for circuit in circuits]
    return place, list(index)


def even(count: int, most: int) -> int:
    """Returns how many circuits go through at once.

    Padded a little, so that calls with about as many circuits share a program.
    """
    padded = count if count <= 4 else -(-count // 4) * 4
    return math.ceil(padded / math.ceil(padded / most))


def stacked(
    circuits: Sequence[Circuit], size: int
) -> tuple[Bool[Array, "circuit sender receiver"], Any]:
    """Stacks masks; the last circuit is repeated up to the size."""
    padded = [*circuits, *[circuits[-1]] * (size - len(circuits))]
    edges = jnp.asarray(np.stack([circuit.edges for circuit in padded]))
    known = next((c.neurons for c in padded if c.neurons is not None), None)
    if known is None:
        return edges, None
    ones = np.ones_like(known)
    neurons = [ones if c.neurons is None else c.neurons for c in padded]
    return edges, jnp.asarray(np.stack(neurons))


@eqx.filter_jit
def _chunk(
    model: Model,
    graph: Graph,
    task: Task,
    edges: Bool[Array, "circuit sender receiver"],
    neurons: Bool[Array, "circuit sender embed"] | None,
    prompts: Int[Array, " prompt"],
    divergence: bool,
) -> Float[Array, "circuit prompt"]:
    """Measures some circuits in some prompts."""
    gates = Gate(edges, neurons)

    def of_prompt(prompt: Array) -> Array:
        reference = task.ablation.reference(model, graph, task, prompt)
        inputs = enter_clean(model, graph, task, prompt)
        run: Callable[..., Any] = functools.partial(
            connected, model, graph, inputs, prompt=prompt
        )
        metric = task.metric
        if divergence:
            whole = with_blocks(model, "A divergence")
            read = run().final[metric.reads(prompt, task.clean.shape[1])]
            logits = whole.unembed(whole.normalise(read), None)
            every = kl(logits, position=np.arange(len(logits))[None])
            # These logits are those of the metric's positions already.
            metric = eqx.tree_at(lambda m: m.position, every, metric.position)

        def of_circuit(gate: Gate) -> Array:
            final = run(gate=gate, reference=reference).final
            return score(model, metric, final, prompt)

        return jax.vmap(of_circuit)(gates)

    return jax.vmap(of_prompt, out_axes=1)(prompts)


def cost(model: Model, graph: Graph, task: Task, divergence: bool) -> int:
    """Returns about how many bytes one circuit in one prompt takes."""
    stream = stream_shape(model, graph, task)
    # What senders have sent, before and after a block writes; what the receivers of
    # a block read, its norm, and the projections of it.
    arrays = 2 * len(graph.senders) + 5 * graph.ports.readers
    logits = 0
    if not isinstance(model, StreamModel):
        position = task.metric.position
        reads = 1 if position is None else int(np.prod(position.shape[1:]))
        whole = divergence or task.metric.ids(jnp.int32(0)) is None
        logits = 3 * reads * vocab_of(model) * whole
    return stream.dtype.itemsize * (arrays * stream.size + logits)
