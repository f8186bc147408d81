"""Exact patching of every edge by a mask, for any model that has a graph."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import SiteError
from mijax.circuits._task import Task, enter_clean, stream_shape
from mijax.circuits.forward._connected import connected, score
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.forward._streams import Model, StreamModel
from mijax.core.internal import check_keys


def mixes_by_attention(model: Model) -> bool:
    """Returns True if keys and values of one attention are all that mixes tokens."""
    if isinstance(model, StreamModel):
        return False
    try:
        check_keys(model, "Exact patching of edges")
    except SiteError:
        return False
    return True


class MaskJob(eqx.Module):
    """Some edges of one prompt, each removed by itself; the last fill up the job."""

    prompt: int = eqx.field(static=True)
    edges: Int[np.ndarray, "edge 2"]
    lanes: int = eqx.field(static=True)
    graph: Graph = eqx.field(static=True)

    def run(self, model: Model, task: Task, known: None) -> Float[Array, " edge"]:
        """Returns the score of every edge."""
        edges = jnp.asarray(self.edges)
        return _without(model, self.graph, task, edges, jnp.int32(self.prompt))

    def place(self, found: np.ndarray, values: np.ndarray) -> None:
        """Writes a result to where it belongs."""
        sender, receiver = self.edges[: self.lanes].T
        values[self.prompt, sender, receiver] = found[: self.lanes]


def mask_jobs(model: Model, graph: Graph, task: Task, memory: int) -> list[MaskJob]:
    """Cuts all edges of all prompts into jobs of one shape."""
    every = np.argwhere(graph.edges).astype(np.int32)
    stream = stream_shape(model, graph, task)
    ports = 2 * len(graph.senders) + 5 * graph.ports.readers
    size = memory // (ports * stream.size * stream.dtype.itemsize)
    size = max(1, min(size, len(every)))
    jobs = []
    for prompt in range(len(task)):
        for at in range(0, len(every), size):
            index = np.minimum(np.arange(at, at + size), len(every) - 1)
            used = min(size, len(every) - at)
            jobs.append(MaskJob(prompt, every[index], used, graph))
    return jobs


@eqx.filter_jit
def _without(
    model: Model,
    graph: Graph,
    task: Task,
    edges: Int[Array, "edge 2"],
    prompt: Int[Array, ""],
) -> Float[Array, " edge"]:
    """Returns the fall of the metric without each of some edges."""
    reference = task.ablation.reference(model, graph, task, prompt)
    inputs = enter_clean(model, graph, task, prompt)
    whole = connected(model, graph, inputs, prompt=prompt).final

    def one(edge: Array) -> Array:
        gate = Gate(edges=jnp.ones(graph.edges.shape).at[edge[0], edge[1]].set(0))
        ran = connected(
            model, graph, inputs, prompt=prompt, gate=gate, reference=reference
        )
        return score(model, task.metric, ran.final, prompt)

    return score(model, task.metric, whole, prompt) - jax.vmap(one)(edges)
