"""Training a dictionary: the objective, and the verb."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax._progress import Progress
from mijax.data import AbstractSource
from mijax.dictionaries._continue import about_training, given_start
from mijax.dictionaries._dead import resampled
from mijax.dictionaries._dictionary import Dictionary, untrained
from mijax.dictionaries._wiring import (
    AbstractWiring,
    Weights,
    check_batch,
    check_scale,
    over_embed,
)
from mijax.dictionaries.architectures._architecture import AbstractArchitecture, Given
from mijax.train import AbstractObjective, AbstractSink, Step, fit, warmed

# Examples after which a latent is dead in long runs, and the most that are counted.
PATIENCE, LONGEST = 1_000_000, 2**30


class Params(NamedTuple):
    """What is learned: weights, and what the architecture has beside them."""

    weights: Weights
    extra: Any


class Carried(NamedTuple):
    """What is carried along without gradients.

    Attributes:
        since: examples since each latent was last active, `[latent]`.
        running: what the architecture carries.
    """

    since: Int[Array, "*lane latent"]
    running: Any


class Training(AbstractObjective):
    """How a dictionary is trained: a frozen value.

    Numbers that are not marked static may differ between dictionaries that train
    together (see `train`).

    Attributes:
        architecture: how latents are made sparse.
        wiring: what is read and written.
        latents: how many (static).
        steps: updates (static).
        learning_rate: of Adam, at its peak.
        warmup: updates of its rise from 0 (static).
        decay: updates of its fall to 0, the last ones (static).
        sparsity_warmup: updates in which the penalty rises from 0 (static).
        betas: decay of Adam's moments (static).
        clip: largest norm of a gradient; `None` is no limit (static).
        unit_norm: keep the decoder's rows of length 1, and their gradients orthogonal
            to them (static).
        norm: length of the decoder's rows at the start (static).
        tied: start the encoder as the decoder (static).
        dead_after: examples without activity after which a latent is dead (static); by
            default a tenth of those of the run, at most 1,000,000.
        resample: updates between replacements of dead latents by what is restored worst
            (Bricken et al. 2023); `None` is never (static). The last ones have as many
            updates to learn, and those of `decay`.
        centre: start of the decoder's bias, `[*writes]`, in the units of the
            activations, before `scale`: the `mean` of `mijax.data.statistics`, or
            `mijax.data.geometric_median`; 0 by default. Of a transcoder, that of the
            outputs (`targets=True`).
        scale: factor of the activations: the `scale` of `mijax.data.statistics`. One
            number, or one per site of a crosscoder.
        dtype: of products; sums and parameters are float32 (static).
        seed: of weights and updates.
    """

    architecture: AbstractArchitecture
    wiring: AbstractWiring
    latents: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    learning_rate: Any = 3e-4
    warmup: int = eqx.field(static=True, default=0)
    decay: int = eqx.field(static=True, default=0)
    sparsity_warmup: int = eqx.field(static=True, default=0)
    betas: tuple[float, float] = eqx.field(static=True, default=(0.9, 0.999))
    clip: float | None = eqx.field(static=True, default=1.0)
    unit_norm: bool = eqx.field(static=True, default=False)
    norm: float = eqx.field(static=True, default=1.0)
    tied: bool = eqx.field(static=True, default=True)
    dead_after: int | None = eqx.field(static=True, default=None)
    resample: int | None = eqx.field(static=True, default=None)
    centre: Any = None
    scale: Any = 1.0
    dtype: Any = eqx.field(static=True, default="float32")
    seed: Any = 0

    def __check_init__(self):
        """Refuses numbers and sizes that cannot be, before any work."""
        for name in ("learning_rate", "seed"):
            given = getattr(self, name)
            if not eqx.is_array_like(given) or jnp.ndim(given):
                what = f"shape {np.shape(given)}" if np.ndim(given) else repr(given)
                usual = self.__dataclass_fields__[name].default
                raise ConfigError(
                    f"{name} takes one number, such as {usual}, got {what}."
                )
        check_scale(self.wiring, self.scale)
        self.architecture.check(self.latents)
        self.wiring.widths(self.latents)
        warmed(1.0, steps=self.steps, warmup=self.warmup, decay=self.decay)

    def key(self) -> PRNGKeyArray:
        """Returns the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[Params, Carried]:
        """Draws weights."""
        new = self._new(key)
        since = jnp.zeros(self.latents, jnp.int32)
        return Params(new.weights, new.extra), Carried(since, new.running)

    def loss(
        self, params: Params, memory: Carried, batch: Any, step: Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Carried]]:
        """Returns squared error and penalty of a batch."""
        x, y = self.scaled(batch)
        share = jnp.float32(1)
        if self.sparsity_warmup:
            share = jnp.minimum((step.index + 1) / self.sparsity_warmup, 1.0)
        size = step.total(jnp.int32(x.shape[0]))
        dead = memory.since >= self.patience(size)
        given = Given(
            *(x, y, params.weights, params.extra, memory.running, dead, share),
            *(self.wiring, step, jnp.dtype(self.dtype)),
        )
        found = self.architecture.loss(given)
        # Before that many examples, those that were not active in any so far.
        patience = self.patience(size)
        seen = jnp.minimum(step.index, patience // size + 1) * size
        unseen = (memory.since >= jnp.minimum(patience, seen)) & (seen > 0)
        flat = self.wiring.flat(y)
        spread = given.error(jnp.broadcast_to(step.mean(flat.mean(0)), flat.shape))
        numbers = {
            "error": found.error,
            "fvu": found.error / spread,
            "l0": found.l0,
            "dead": step.over_model(unseen.sum()) / self.latents,
        }
        since = jnp.where(found.active, 0, jnp.minimum(memory.since, LONGEST) + size)
        running = jax.lax.stop_gradient(found.running)
        return found.error + found.penalty, (numbers, Carried(since, running))

    def patience(self, batch: Int[Array, ""]) -> Int[Array, ""]:
        """Return the examples without activity after which a latent is dead.

        Args:
            batch: examples of a batch, on all devices.
        """
        if self.dead_after is not None:
            return jnp.int32(self.dead_after)
        updates = jnp.minimum(max(self.steps // 10, 1), PATIENCE // batch + 1)
        return jnp.minimum(updates * batch, PATIENCE)

    def identity(self) -> dict[str, Any]:
        """Return everything that a checkpoint depends on: all but the number of steps.

        A run may go on for more steps than it had.
        """
        names = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in names if name != "steps"}

    def about(self) -> Any:
        """Return JSON by which `from_checkpoint` reads a checkpoint."""
        return about_training(self)

    def scaled(self, batch: Any) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Returns inputs and outputs times the scale, in float32.

        Raises:
            ShapeError: a batch that the wiring does not read or write.
        """
        check_batch(self.wiring, batch)
        scale = over_embed(self.scale)
        x, y = (a.astype(jnp.float32) * scale for a in (batch.x, batch.y))
        return x, y

    def optimiser(self) -> optax.GradientTransformation:
        """Returns Adam with its schedule."""
        rate = warmed(
            self.learning_rate, steps=self.steps, warmup=self.warmup, decay=self.decay
        )
        parts = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        if self.unit_norm:
            parts.append(orthogonal())
        one, other = self.betas
        return optax.chain(*parts, optax.adam(rate, b1=one, b2=other))

    def after(
        self, params: Params, optimiser: Any, memory: Carried, batch: Any, step: Step
    ) -> tuple[Params, Any, Carried]:
        """Replaces dead latents where that is due, and keeps rows of length 1."""
        if self.resample is not None:
            done = step.index + 1
            # What is new has to learn, or the result is worse for it.
            last = self.steps - max(self.decay, self.resample)
            due = (done % self.resample == 0) & (done <= last)
            size = jnp.int32(batch.x.shape[0])
            dead = due & (memory.since >= self.patience(size))
            params, optimiser = resampled(
                *(self, params, optimiser, memory, dead, batch, step.key)
            )
            memory = memory._replace(since=jnp.where(dead, 0, memory.since))
        params = params._replace(extra=self.architecture.project(params.extra))
        if self.unit_norm:
            rows = params.weights.decoder
            rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
            params = eqx.tree_at(lambda p: p.weights.decoder, params, rows)
        return params, optimiser, memory

    def specs(self, tree: Any) -> Any:
        """Splits latents over devices."""
        params, memory = tree
        # The tree of arrays, with specs in their places.
        row: Any = P("model")
        whole: Any = P()
        weights = jax.tree.map(lambda _: row, params.weights)
        weights = eqx.tree_at(lambda w: w.centre, weights, whole)
        if params.weights.skip is not None:
            weights = eqx.tree_at(lambda w: w.skip, weights, whole)
        extra = jax.tree.map(lambda _: row, params.extra)
        running = jax.tree.map(lambda _: whole, memory.running)
        return Params(weights, extra), Carried(row, running)

    def dictionary(self, params: Params, memory: Carried) -> Dictionary:
        """Returns the dictionary that was learned."""
        return Dictionary(
            *(self.architecture, self.wiring, params.weights, params.extra),
            *(memory.running, jnp.asarray(self.scale, jnp.float32)),
        )

    def _new(self, key: PRNGKeyArray) -> Dictionary:
        return untrained(
            self.architecture,
            self.wiring,
            latents=self.latents,
            key=key,
            norm=self.norm,
            tied=self.tied,
            centre=self.centre,
            scale=self.scale,
        )


def train(
    training: Training | Sequence[Training],
    source: AbstractSource,
    *,
    mesh: Mesh | None = None,
    sinks: Sequence[AbstractSink] = (),
    report: int = 10,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 500,
    progress: Progress = None,
    start: Dictionary | Sequence[Dictionary] | None = None,
) -> Any:
    """Train a dictionary, or many at once on the same activations.

    Args:
        training: what is trained and how. Several that differ in numbers only (seed,
            sparsity, k, learning rate) are one program, and see the same batches.
        source: activations, batches of `x` and `y` (see `mijax.data.Activations`).
        mesh: devices, from `mijax.train.mesh`: examples over `data`, latents over
            `model`.
        sinks: where numbers go.
        report: updates between reports.
        checkpoint: folder of checkpoints, from which a run goes on. With more `steps`
            than it had, it goes on with the schedule of the new number.
        every: updates between checkpoints.
        progress: called with updates done and in all; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.
        start: dictionary whose weights training starts from, of the same architecture
            and sizes, or one per training; random weights by default.

    Returns:
        The dictionary, or a list of them.

    Raises:
        ConfigError: activations that are no source, trainings that cannot share a
            program, a mesh that does not divide the latents, or a dictionary to start
            from of another kind.
        OutputError: a folder of another run.
        ShapeError: activations of another size than the wiring reads or writes.
        TrainingError: a loss that is not finite.

    Examples:
        >>> import jax
        >>> from mijax import dictionaries as d
        >>> data = jax.random.normal(jax.random.key(0), (256, 16))
        >>> source = mijax.data.Examples(data, batch=64)
        >>> training = d.Training(d.TopK(4), d.SAE(16), latents=32, steps=20)
        >>> sae = train(training, source)
        >>> sae(data).shape
        (256, 16)
    """
    if not isinstance(source, AbstractSource):
        raise ConfigError(
            f"Training takes a source of batches, got {type(source).__name__}: give "
            "mijax.data.Examples(x, batch=...), or mijax.data.Activations."
        )
    several = isinstance(training, Sequence)
    trainings = training if several else [training]
    given = None if start is None else begun(trainings, start)
    state = fit(
        training,
        source,
        steps=training[0].steps if several else training.steps,
        mesh=mesh,
        sinks=sinks,
        report=report,
        checkpoint=checkpoint,
        every=every,
        progress=progress,
        start=given if given is None or several else given[0],
    )
    if not several:
        return training.dictionary(state.params, state.memory)
    lanes = [
        jax.tree.map(lambda a: a[i], (state.params, state.memory))  # noqa: B023
        for i in range(len(training))
    ]
    return [one.dictionary(*lane) for one, lane in zip(training, lanes, strict=True)]


def begun(
    trainings: Sequence[Training], start: Dictionary | Sequence[Dictionary]
) -> list[tuple[Params, Carried]]:
    """Return the initial dictionary of each training.

    Raises:
        ConfigError: dictionaries of another number or kind.
    """
    starts = start if isinstance(start, Sequence) else [start] * len(trainings)
    if len(starts) != len(trainings):
        raise ConfigError(
            f"{len(trainings)} trainings start from one dictionary, or from one each, "
            f"got {len(starts)}."
        )
    found = []
    for training, one in zip(trainings, starts, strict=True):
        weights, extra, running = given_start(training, one)
        since = jnp.zeros(training.latents, jnp.int32)
        found.append((Params(weights, extra), Carried(since, running)))
    return found


def orthogonal() -> optax.GradientTransformation:
    """Takes from the decoder's gradient what would only change its rows' lengths."""

    def init(params: Any) -> optax.OptState:
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rows, change = params.weights.decoder, updates.weights.decoder
        along = (change * rows).sum(1, keepdims=True)
        along = along / (rows**2).sum(1, keepdims=True) * rows
        where = lambda g: g.weights.decoder  # noqa: E731
        return eqx.tree_at(where, updates, change - along), state

    return optax.GradientTransformation(init, update)
