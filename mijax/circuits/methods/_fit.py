"""Learning by gradient descent through the connected forward: the one loop."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.circuits._method import Options
from mijax.circuits._task import AbstractAblation, Task, enter_clean, stream_shape
from mijax.circuits.forward._connected import connected, score
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.forward._streams import Model
from mijax.core.internal import Journal


class AbstractFit(eqx.Module):
    """What is learned, and how: a frozen value.

    The loss is minus the task's metric under the gate, averaged over the prompts of a
    batch and the lanes of each prompt, plus a penalty.

    Attributes:
        steps: updates of the parameters.
        batch: prompts of each update, drawn without replacement; all if there are
            fewer.
        seed: of prompts and gates.
    """

    steps: eqx.AbstractVar[int]
    batch: eqx.AbstractVar[int]
    seed: eqx.AbstractVar[int]

    def __check_init__(self):
        """Refuses to learn from nothing."""
        if self.steps < 1 or self.batch < 1:
            raise ConfigError(
                f"Learning takes 1 step and 1 prompt at least, got {self.steps} steps "
                f"of {self.batch} prompts."
            )

    @abc.abstractmethod
    def optimiser(self) -> optax.GradientTransformation:
        """Returns what turns gradients into updates."""

    @abc.abstractmethod
    def gate(
        self, params: Any, graph: Graph, key: PRNGKeyArray, lane: Int[Array, ""]
    ) -> Gate:
        """Returns what passes in one lane; `key` is the step's, one for all lanes."""

    def lanes(self, graph: Graph) -> int:
        """Returns how often each prompt of a batch is run."""
        return 1

    def ablation(self, params: Any, task: Task) -> AbstractAblation:
        """Returns what senders are replaced by; the task's own by default."""
        return task.ablation

    def penalty(
        self, params: Any, step: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """Returns what is added to the loss; nothing by default."""
        return jnp.float32(0)


class State(NamedTuple):
    """Everything that an update changes."""

    params: Any
    optimiser: Any
    step: Int[Array, ""]


def learn(
    fit: AbstractFit,
    params: Any,
    model: Model,
    graph: Graph,
    task: Task,
    options: Options,
) -> Any:
    """Learns parameters.

    Step `i` draws with `fold_in(key(seed), i)`, and the whole state is kept in the
    file to resume from: going on is the same as never having stopped.

    Args:
        fit: what is learned.
        params: where it starts.
        model: the model.
        graph: its graph.
        task: prompts, metric and ablation.
        options: progress, the file to resume from, working memory.

    Returns:
        The parameters after the last step.

    Raises:
        OutputError: a file to resume from that is of another fit.
    """
    if options.keep_prompts:
        raise ConfigError("What is learned has no scores of single prompts to keep.")
    state = State(params, fit.optimiser().init(params), jnp.int32(0))
    packed = pack(state)
    with Journal(options.resume, (model, graph, task, fit, params)) as journal:
        journal.load(packed)
        state = unpack(packed, state)
        # Numbers are traced, so that other seeds and penalties run the same program.
        traced = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), fit)
        key = jax.random.key(fit.seed)
        chunk = at_once(model, graph, task, options.memory)
        for done in range(journal.done + 1, fit.steps + 1):
            state = _step((traced, model, graph, task, key, chunk), state)
            if journal.due() or done == fit.steps:
                journal.save(pack(state), done)
            if options.progress:
                state.step.block_until_ready()
                options.progress(done, fit.steps)
    return state.params


@eqx.filter_jit(donate="all-except-first")
def _step(
    shared: tuple[AbstractFit, Model, Graph, Task, PRNGKeyArray, int],
    state: State,
) -> State:
    """Updates the parameters once."""
    fit, model, graph, task, key, chunk = shared
    draw, noise = jax.random.split(jax.random.fold_in(key, state.step))
    size, lanes = min(fit.batch, len(task)), fit.lanes(graph)
    prompts = jax.random.choice(draw, len(task), (size,), replace=False)

    def at_prompt(row: Array) -> Any:
        def at_lane(lane: Array) -> Any:
            def loss(params: Any) -> Array:
                gate = fit.gate(params, graph, noise, row * lanes + lane)
                ablation = fit.ablation(params, task)
                return -gated(model, graph, task, prompts[row], gate, ablation)

            return jax.grad(loss)(state.params)

        return mean_of(at_lane, lanes, chunk)

    gradient = mean_of(at_prompt, size, max(1, chunk // lanes))
    more = jax.grad(fit.penalty)(state.params, state.step, noise)
    gradient = jax.tree.map(jnp.add, gradient, more)
    updates, optimiser = fit.optimiser().update(gradient, state.optimiser, state.params)
    return State(optax.apply_updates(state.params, updates), optimiser, state.step + 1)


def gated(
    model: Model,
    graph: Graph,
    task: Task,
    prompt: Int[Array, ""],
    gate: Gate,
    ablation: AbstractAblation,
) -> Float[Array, ""]:
    """Returns the metric of one prompt under a gate."""
    inputs = enter_clean(model, graph, task, prompt)
    reference = ablation.reference(model, graph, task, prompt)
    ran = connected(model, graph, inputs, prompt=prompt, gate=gate, reference=reference)
    return score(model, task.metric, ran.final, prompt)


def mean_of(function: Any, n: int, chunk: int) -> Any:
    """Averages a function over 0 to `n - 1`, so many at once."""
    found = jax.lax.map(function, jnp.arange(n), batch_size=min(n, chunk))
    return jax.tree.map(lambda a: a.mean(0), found)


def at_once(model: Model, graph: Graph, task: Task, memory: int) -> int:
    """Returns how many lanes go through a forward and backward at once."""
    stream = stream_shape(model, graph, task)
    # The backward holds what every sender sent, at each block.
    arrays = 5 * len(graph.receivers) + (3 + graph.n_layers) * len(graph.senders)
    each = arrays * stream.size * stream.dtype.itemsize
    return max(1, memory // each)


def pack(state: State) -> np.ndarray:
    """Returns the numbers of a state in one array, exactly."""
    leaves = jax.tree.leaves(state)
    return np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in leaves])


def unpack(packed: np.ndarray, like: State) -> State:
    """Returns the state that was packed, in fresh buffers."""
    leaves, structure = jax.tree.flatten(like)
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [
        jnp.array(part.reshape(leaf.shape), leaf.dtype)
        for part, leaf in zip(np.split(packed, cuts), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
