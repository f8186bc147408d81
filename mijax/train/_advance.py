"""Updates by the program: one on a batch from outside, or many that draw their own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from mijax._errors import ConfigError
from mijax.data import AbstractSource
from mijax.train._objective import AbstractObjective
from mijax.train._shard import spread
from mijax.train._state import State
from mijax.train._update import apply, update

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Told(NamedTuple):
    """What the updates of one program reported.

    Attributes:
        steps: which updates; they count from 1.
        info: their numbers, `[update, ...]` if the program may do many.
        many: whether it may.
        batch: the batch of an update, counted from the first one of the program.
    """

    steps: range
    info: dict[str, Any]
    many: bool
    batch: Callable[[int], Any]

    def rows(self, name: str) -> Any:
        """Returns a number of every update, `[update, ...]`."""
        value = np.asarray(self.info[name], np.float64)
        return value[: len(self.steps)] if self.many else value[None]

    def row(self, step: int) -> dict[str, Any]:
        """Returns the numbers of one update."""
        if not self.many:
            return self.info
        place = step - self.steps.start
        return {name: np.asarray(value)[place] for name, value in self.info.items()}


def advance(
    objective: AbstractObjective,
    source: AbstractSource,
    state: State,
    steps: range,
    *,
    room: int,
    several: bool,
    mesh: Mesh | None,
) -> tuple[State, Told]:
    """Updates the parameters once, or as often as a program does.

    Args:
        objective: what is minimised.
        source: where batches come from.
        state: before; its buffers are used again.
        steps: which updates; not more than the program has room for.
        room: updates of a program at most; one takes its batch from outside.
        several: whether the objective is lanes.
        mesh: devices.

    Returns:
        The state after, and the numbers of the updates.
    """
    if room == 1:
        taken, batch = source.batch(state.source)
        state, info = update(objective, state, taken, batch, several, mesh)
        return state, Told(steps, info, False, lambda _: batch)
    start = state.source
    core = (state.params, state.memory, state.optimiser, state.step)
    shared = (objective, source, start, jnp.int32(len(steps)), room, several, mesh)
    (params, memory, optimiser, step), taken, info = _updates(shared, core)

    def batch_of(place: int) -> Any:
        now, batch = start, None
        for _ in range(place + 1):
            now, batch = source.batch(now)
        return batch

    state = State(params, memory, optimiser, step, taken)
    return state, Told(steps, info, True, batch_of)


def drawable(source: AbstractSource, state: Any) -> None:
    """Refuses a source whose batches a program cannot draw.

    Raises:
        ConfigError: it reads numbers of its state, or of a file, outside of JAX.
    """
    try:
        eqx.filter_eval_shape(lambda source, at: source.batch(at), source, state)
    except UNTRACEABLE as error:
        raise ConfigError(
            f"Batches of {type(source).__name__} are made outside of JAX, so a program "
            "of several updates cannot draw them: give scan=1, or a source whose "
            "`batch` JAX can trace."
        ) from error


@eqx.filter_jit(donate="all-except-first")
def _updates(shared: Any, core: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Does as many updates as it is told: their number is data, one program for all."""
    objective, source, start, count, room, several, mesh = shared

    def once(core: Any, taken: Any) -> tuple[Any, Any, dict[str, Any]]:
        taken, batch = source.batch(taken)
        batch = batch if mesh is None else spread(batch, mesh)
        core, info = apply(objective, core, batch, several, mesh)
        return core, taken, info

    def body(i: Int[Array, ""], carry: Any) -> Any:
        core, taken, told = carry
        core, taken, info = once(core, taken)
        told = jax.tree.map(lambda rows, row: rows.at[i].set(row), told, info)
        return core, taken, told

    told = jax.tree.map(
        lambda row: jnp.zeros((room, *row.shape), row.dtype),
        jax.eval_shape(once, core, start)[2],
    )
    return jax.lax.fori_loop(0, count, body, (core, start, told))
