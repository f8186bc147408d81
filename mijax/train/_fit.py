"""`fit`: the one loop of everything that is trained."""

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mijax._errors import ConfigError
from mijax._progress import Progress, reporting
from mijax.data import AbstractSource
from mijax.train._advance import Told, advance, drawable
from mijax.train._checkpoints import Checkpoints
from mijax.train._guard import Guard
from mijax.train._objective import AbstractObjective
from mijax.train._shard import place
from mijax.train._sinks import AbstractSink, Terminal
from mijax.train._state import State
from mijax.train._update import begin


def fit(  # noqa: PLR0913 - every one of them is a choice of the user
    objective: AbstractObjective | Sequence[AbstractObjective],
    source: AbstractSource,
    *,
    steps: int,
    mesh: Mesh | None = None,
    sinks: Sequence[AbstractSink] = (),
    report: int = 10,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 500,
    scan: int = 1,
    progress: Progress = None,
    start: Any = None,
) -> State:
    """Fits an objective, or many at once, to a stream of batches.

    Update `i` draws with `fold_in(objective.key(), i)`. Whatever decides the next
    update is in the state, and a checkpoint is the state: a run that was killed goes on
    from its last checkpoint and ends bit for bit where it would have ended.

    Args:
        objective: what is minimised. Several of one kind are lanes of one program, on
            the same batches; leaves of the state then have them as their first axis.
        source: where batches come from.
        steps: updates in all, those of an earlier part of the run among them.
        mesh: devices, from `mijax.train.mesh`; one device by default.
        sinks: where numbers go.
        report: updates between reports to the sinks.
        checkpoint: folder of checkpoints. If it holds one, the run goes on from it.
        every: updates between checkpoints; the last update always makes one.
        scan: updates of one program. With more than 1 the program draws its batches
            itself, which is worth it where an update takes less time than to start
            one; the source must be one that JAX can trace.
        progress: called with updates done and in all; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none. The
            sink `Terminal` takes its place.
        start: parameters and memory before the first update, a pair as
            `objective.start` returns it (a list of pairs for several objectives); those
            of the objectives by default. Not used where a run goes on.

    Returns:
        The state after the last update.

    Raises:
        ConfigError: objectives that cannot share a program, or a mesh that does not
            divide examples or parameters; `scan` of a source that JAX cannot trace; a
            checkpoint of more steps.
        OutputError: the folder holds another run, or cannot be written.
        TrainingError: loss or update is not finite, or the loss has exploded; says at
            which update, on which batch, and where the last checkpoint is.
    """
    if min(steps, report, every, scan) < 1:
        raise ConfigError(
            "Training takes at least 1 step, report, checkpoint every and scan 1, got "
            f"{steps}, {report}, {every} and {scan}."
        )
    if progress is None and any(isinstance(sink, Terminal) for sink in sinks):
        progress = False
    several = isinstance(objective, Sequence)
    fitted = stacked(objective) if several else traced(objective)
    if start is not None:
        # Copied: updates use the buffers of the state again.
        trees = start if several else [start]
        start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        start = start if several else jax.tree.map(lambda leaf: leaf[0], start)
    state = begin(fitted, source, several=several, mesh=mesh, given=start)
    if scan > 1:
        drawable(source, state.source)
    with contextlib.ExitStack() as stack:
        advanced = stack.enter_context(reporting(progress, "Training"))
        # A digest leaves out what changes no batch, such as the mesh it lies on.
        job = (fitted.identity(), getattr(source, "digest", source))
        job = job if start is None else (*job, start)
        about = [o.about() for o in objective] if several else objective.about()
        kept = stack.enter_context(Checkpoints(checkpoint, job, about))
        state = place(kept.load(state), fitted, mesh, several=several)
        done = int(state.step)
        if done > steps:
            raise ConfigError(
                f"The checkpoint in {checkpoint} is of step {done}, past steps={steps}"
                ": give more steps or another folder."
            )
        for sink in sinks:
            stack.enter_context(sink).open(done, steps)
        guard, told, due = Guard(kept), None, deque[int]()
        try:
            while done < steps:
                last = min(done + scan, steps, done + every - done % every)
                these = range(done + 1, last + 1)
                state, told = advance(
                    *(fitted, source, state, these),
                    room=scan,
                    several=several,
                    mesh=mesh,
                )
                due.extend(i for i in these if i % report == 0 or i == steps)
                guard.watch(told)
                tell(due, told, sinks)
                if advanced:
                    advanced(done, steps)
                done = last
                if done % every == 0 or done == steps:
                    guard.settle()
                    kept.save(done, state)
        except KeyboardInterrupt:
            # Buffers are gone if an update was under way: the last checkpoint counts.
            if told is not None and not state.step.is_deleted():
                tell(due, told, sinks)
                guard.settle()
                kept.save(int(state.step), state)
            raise
        guard.settle()
        if advanced:
            advanced(done, steps)
    return state


def tell(due: deque[int], told: Told, sinks: Sequence[AbstractSink]) -> None:
    """Tells sinks of the updates that are due; whatever stops it, none comes twice."""
    while due:
        step = due.popleft()
        numbers = {name: plain(value) for name, value in told.row(step).items()}
        for sink in sinks:
            sink.write(step, numbers)


def traced(objective: AbstractObjective) -> AbstractObjective:
    """Makes arrays of the numbers of an objective: others run the same program."""
    return jax.tree.map(jnp.asarray, objective)


def stacked(objectives: Sequence[AbstractObjective]) -> AbstractObjective:
    """Makes lanes of objectives of one kind."""
    if not objectives:
        raise ConfigError("There is nothing to fit: give one objective at least.")
    trees = [traced(objective) for objective in objectives]
    kinds = [jax.tree.structure(tree) for tree in trees]
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in trees]
    for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
        if kind != kinds[0] or shape != shapes[0]:
            raise ConfigError(
                f"Objectives 0 and {i} differ in more than numbers, so they cannot be "
                "lanes of one program: fit them one by one."
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def plain(value: Any) -> Any:
    """Makes numbers, or lists of them, of an array."""
    if eqx.is_array(value) or isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, np.float64).tolist()
    return value
