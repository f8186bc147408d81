"""Exact edge patching: every edge replaced alone, and the rest of the model re-run.

Heads are independent of each other, so one pass through a block in which the query (or
key, or value) of every head misses a sender gives what each head would write, and each
of these is a lane of its own. Lanes re-run the layers after the receiver,
from the first token that differs on, with the clean run's keys and values before it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax.circuits._method import AbstractMethod, Options
from mijax.circuits._scores import Scores, standard_error
from mijax.circuits._task import Task, enter_clean
from mijax.circuits.forward._connected import connected
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._rerun import finish, without_sender
from mijax.circuits.forward._streams import Model, with_blocks
from mijax.circuits.methods._exact_masks import mask_jobs, mixes_by_attention
from mijax.core import AbstractMetric, AbstractModel
from mijax.core.internal import (
    LEAST_ROWS,
    Base,
    Piece,
    Sequence,
    layer_overhead,
    length_of,
    measure,
    run_base,
    run_pieces,
)

MOST_PAIRS = 512
# Operations of a job on a CPU: about a second, so that progress comes often.
MOST_FLOPS = 2e11


class Exact(AbstractMethod):
    r"""Activation patching of every edge, one at a time.

    The score of an edge is $m(\text{full}) - m(\text{full without it})$: exactly what
    attribution methods estimate. Costs a partial forward per edge and prompt; a whole
    one if something else than the keys and values of one attention mixes tokens.
    """

    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Patches every edge in every prompt."""
        values = np.zeros((len(task), *graph.edges.shape), np.float32)
        known, jobs = None, []
        if mixes_by_attention(model):
            model = with_blocks(model, "Partial runs")
            known = _known(model, graph, task)
            values[:, :, -1] = np.asarray(_logits(model, task.metric, known))
            jobs += _jobs(graph, known, options.memory)
        else:
            jobs += mask_jobs(model, graph, task, options.memory)

        def piece(job: Any) -> Piece:
            return Piece(job.lanes, lambda: job.run(model, task, known), job.place)

        whole = (model, graph, task, self, [job.lanes for job in jobs])
        pieces = [piece(job) for job in jobs]
        run_pieces(pieces, values, whole, options.progress, options.resume)
        mean = values.mean(0, dtype=np.float64)
        squares = jnp.float32(((values - mean) ** 2).sum(0))
        error = standard_error(squares, len(task))
        prompts = values if options.keep_prompts else None
        return Scores(jnp.float32(mean), error, prompts, graph, "edge", repr(self))


class Known(eqx.Module):
    """What all lanes share.

    Attributes:
        base: the clean run.
        missing: what each sender writes minus its reference.
        first: the first position at which any sender differs.
    """

    base: Base
    missing: Float[Array, "prompt sender seq embed"]
    first: Int[Array, " prompt"]


@eqx.filter_jit
def _known(model: AbstractModel, graph: Graph, task: Task) -> Known:
    """Runs clean prompts and references."""
    masked = task.masked(model)
    base = run_base(model, task.clean, "embed", task.metric, lengths=masked)

    def one(prompt: Array) -> Array:
        inputs = enter_clean(model, graph, task, prompt)
        clean = connected(model, graph, inputs, prompt=prompt).senders
        return clean - task.ablation.reference(model, graph, task, prompt)

    missing = jax.lax.map(one, jnp.arange(len(task), dtype=jnp.int32))
    differs = jnp.any(missing != 0, axis=(1, 3))
    seq = differs.shape[1]
    first = jnp.where(differs.any(1), jnp.argmax(differs, axis=1), seq - 1)
    return Known(base, missing, first if model.causal else jnp.zeros_like(first))


@eqx.filter_jit
def _logits(
    model: AbstractModel, metric: AbstractMetric, known: Known
) -> Float[Array, "prompt sender"]:
    """Scores the edges into the logits."""
    base = known.base

    def one(inputs: Any) -> Array:
        last, missing, reads, full, prompt = inputs
        x = last[reads] - missing[:, reads]
        return full - measure(model, metric, x, jnp.full(x.shape[0], prompt))

    prompts = jnp.arange(base.last.shape[0], dtype=jnp.int32)
    each = (base.last, known.missing, base.reads, base.metric, prompts)
    return jax.lax.map(one, each)


class Job(eqx.Module):
    """Pairs of a prompt and a sender, for a stage of one layer.

    Attributes:
        layer: the receivers' layer.
        prompt: prompt of each pair.
        sender: sender of each pair.
        count: pairs that count; the rest repeat the last.
        start: first position that lanes run.
        stage: the stage of the block whose receivers miss the sender, such as each
            head's query, key and value, or the MLP.
        graph: the graph.
    """

    layer: int = eqx.field(static=True)
    prompt: np.ndarray
    sender: np.ndarray
    count: int = eqx.field(static=True)
    start: int = eqx.field(static=True)
    stage: int = eqx.field(static=True)
    graph: Graph = eqx.field(static=True)

    @property
    def lanes(self) -> int:
        """Number of lanes that count."""
        return self.count * self.graph.ports.stages[self.stage].size

    def run(self, model: AbstractModel, task: Task, known: Known) -> Array:
        """Returns the score of every lane, `[pair, receiver]`."""
        return _run(
            *(model, self.graph, task.metric, known),
            (jnp.int32(self.layer), jnp.asarray(self.prompt), jnp.asarray(self.sender)),
            start=self.start,
            stage=self.stage,
            last=self.layer == self.graph.n_layers - 1,
        )

    def place(self, found: np.ndarray, values: np.ndarray) -> None:
        """Writes a result to where it belongs."""
        stage = self.graph.ports.stages[self.stage]
        first = self.graph.place(stage.names[0], self.layer)
        here = slice(first, first + stage.size)
        keep = slice(self.count)
        values[self.prompt[keep], self.sender[keep], here] = found[keep]


def _jobs(graph: Graph, known: Known, memory: int) -> list[Job]:
    """Cuts all pairs into jobs of few shapes."""
    _, _, seq, embed = known.base.x.shape
    # Every width is a compilation: four at most.
    step = -(-seq // 4)
    starts = np.asarray(known.first) // step * step
    jobs = []
    for start in np.unique(starts):
        prompts = np.flatnonzero(starts == start)
        for number, stage in enumerate(graph.ports.stages):
            senders = np.arange(graph.n_layers) * graph.ports.writers
            senders += len(graph.inputs) + graph.ports.earlier(stage.names[0])
            rows = (seq - int(start)) * stage.size
            most = min(memory // (40 * embed * rows), MOST_PAIRS)
            most = max(1, min(most, _soon(rows, graph.n_layers, embed)))
            size = _size(len(prompts) * senders, rows, most)
            for layer, count in enumerate(senders):
                pairs = np.meshgrid(prompts, np.arange(count), indexing="ij")
                prompt, sender = (a.reshape(-1).astype(np.int32) for a in pairs)
                for at in range(0, len(prompt), size):
                    index = np.minimum(np.arange(at, at + size), len(prompt) - 1)
                    used = min(size, len(prompt) - at)
                    pair = (prompt[index], sender[index])
                    jobs.append(Job(layer, *pair, used, int(start), number, graph))
    return jobs


def _soon(rows: int, layers: int, embed: int) -> int:
    """Return the number of pairs that a CPU runs in about a second."""
    if jax.default_backend() != "cpu":
        return MOST_PAIRS
    # A block of the usual widths has 12 embed^2 weights.
    flops = 24 * embed**2 * layers * rows
    return max(int(MOST_FLOPS / flops), -(-LEAST_ROWS // rows))


def _size(pairs: Int[np.ndarray, " layer"], rows: int, most: int) -> int:
    """Chooses the pairs of a job: few are filled up in vain, and few jobs are needed.

    Args:
        pairs: pairs of every layer.
        rows: rows that a pair runs in each layer after its own.
        most: the largest size.

    Returns:
        The size with the least work, counted in rows.
    """
    sizes = np.arange(1, most + 1)
    jobs = -(-pairs[:, None] // sizes)
    depth = np.arange(len(pairs), 0, -1)
    filled = np.maximum(sizes * rows, LEAST_ROWS) + layer_overhead()
    return int(sizes[(depth @ jobs * filled).argmin()])


@eqx.filter_jit
def _run(
    model: AbstractModel,
    graph: Graph,
    metric: AbstractMetric,
    known: Known,
    job: tuple[Array, Array, Array],
    *,
    start: int,
    stage: int,
    last: bool,
) -> Float[Array, "pair receiver"]:
    """Runs one job."""
    layer, prompts, senders = job
    base = known.base
    seq = base.x.shape[2]

    def one(prompt: Array, sender: Array) -> Array:
        missing = known.missing[prompt, sender]
        kept = base.reads[prompt] if last else jnp.arange(start, seq)
        length = length_of(base.lengths, prompt)
        rows = Sequence(jnp.arange(seq, dtype=jnp.int32), prompt, prompt, length)
        return without_sender(
            *(model, graph, graph.ports.stages[stage]),
            *(base.x[layer, prompt], missing, layer, rows, kept),
        )

    x = jax.vmap(one)(prompts, senders)
    pairs, readers = x.shape[:2]
    x = x.reshape(-1, *x.shape[2:])
    prompt = jnp.repeat(prompts, readers)
    if last:
        found = measure(model, metric, x, prompt)
    else:
        found = finish(model, metric, base, x, layer + 1, prompt, start)
    return base.metric[prompts][:, None] - found.reshape(pairs, readers)
