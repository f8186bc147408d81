"""Effects of channels on objects: by a sweep, by attribution, and several together."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import mijax
from mijax.experiment import Progress

from ._scene import Scene, Targets

SITE = "stage"


class Units(NamedTuple):
    """Channels of some stages, one after the other.

    Attributes:
        stages: the stages.
        sizes: number of channels of each.
    """

    stages: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def cells(self) -> Int[np.ndarray, "unit 2"]:
        """Stage and channel of each unit."""
        pairs = zip(self.stages, self.sizes, strict=True)
        return np.array([(stage, c) for stage, size in pairs for c in range(size)])

    @property
    def names(self) -> list[str]:
        """`stage.channel` of each unit."""
        return [f"{stage}.{channel}" for stage, channel in self.cells]

    def of_stage(self, stage: int) -> slice:
        """Return where the channels of a stage are among the units."""
        i = self.stages.index(stage)
        start = sum(self.sizes[:i])
        return slice(start, start + self.sizes[i])


def effects(
    scene: Scene, units: Units, *, progress: Progress, chunks: mijax.Chunks
) -> Float[np.ndarray, "object unit"]:
    """Set each unit to zero, in one compiled sweep.

    Args:
        scene: the model and the photo.
        units: the units.
        progress: called with the amount of work that is done and all of it.
        chunks: working memory, and where an interrupted sweep resumes.

    Returns:
        The fall of the class logit of each object at its anchor.
    """
    targets = scene.targets
    metric = {
        str(i): lambda output, i=i: targets.logits(output)[i]
        for i in range(len(scene.explained))
    }
    found = mijax.sweep(
        mijax.model(scene.model, scene.x),
        scene.x[None],
        mijax.Zero().at(SITE),
        over={("layer", "channel"): [tuple(cell) for cell in units.cells.tolist()]},
        metric=metric,
        progress=progress,
        chunks=chunks,
    )
    falls = [found[name].base - found[name].values[0] for name in metric]
    return np.stack([np.asarray(fall) for fall in falls])


def gated(model: Any, x: Array, units: Units, gates: Float[Array, " unit"]) -> Any:
    """Return the output with each unit multiplied by a number."""

    def edit(value: Array, at: Any) -> Array:
        if at.layer not in units.stages:
            return value
        return value * gates[units.of_stage(at.layer)][:, None, None]

    return mijax.harvest(model, want=(), edits={SITE: edit})(x)[0]


@eqx.filter_jit
def attribution(
    model: Any, x: Array, units: Units, targets: Targets
) -> Float[Array, "object unit"]:
    r"""Estimate the fall of each object's logit $l$ without each unit.

    $\sum_{ij} a_{ij}\, \partial l / \partial a_{ij}$ over the map $a$ of the unit: the
    derivative with respect to a number that multiplies the map. One forward pass, and
    one backward pass for each object.
    """
    run = lambda gates: targets.logits(gated(model, x, units, gates))  # noqa: E731
    return jax.jacrev(run)(jnp.ones(sum(units.sizes)))


class SetLanes(NamedTuple):
    """Sets of units that are removed together.

    Attributes:
        off: the units of each set.
        kinds: how each set was chosen.
        sizes: number of units of each.
    """

    off: Bool[np.ndarray, "set unit"]
    kinds: list[str]
    sizes: list[int]


def set_lanes(
    scores: dict[str, Float[np.ndarray, " unit"]],
    units: Units,
    *,
    sizes: tuple[int, ...],
    draws: int,
    seed: int,
) -> SetLanes:
    """Choose sets of units: the highest by each score, and random ones.

    Args:
        scores: scores of the units by kind; random sets have as many units of each
            stage as the sets by the first one.
        units: the units.
        sizes: numbers of units in a set.
        draws: random sets of each size.
        seed: of the random sets.
    """
    draw, stage = np.random.default_rng(seed), units.cells[:, 0]
    orders = {kind: np.argsort(-score, kind="stable") for kind, score in scores.items()}
    model = next(iter(orders.values()))
    off, kinds, counts = [], [], []
    for size in sizes:
        chosen = [(kind, order[:size]) for kind, order in orders.items()]
        for _ in range(draws):
            alike = [
                draw.permutation(np.flatnonzero(stage == one))[: int(count)]
                for one, count in zip(
                    *np.unique(stage[model[:size]], return_counts=True), strict=True
                )
            ]
            chosen.append(("random", np.concatenate(alike)))
        for kind, index in chosen:
            mask = np.zeros(len(stage), bool)
            mask[index] = True
            off.append(mask)
            kinds.append(kind)
            counts.append(size)
    return SetLanes(np.array(off), kinds, counts)


def remaining(
    scene: Scene, units: Units, lanes: SetLanes, *, at_once: int, progress: Progress
) -> Float[np.ndarray, "set object"]:
    """Return the score of each object without each set of units.

    The score is the best one of the object's class in boxes that overlap its box.
    """
    targets, count = scene.targets, len(lanes.off)
    scores = np.zeros((count, len(scene.explained)), np.float32)
    for start in range(0, count, at_once):
        # The last step repeats its last set: one program for all steps.
        rows = np.minimum(np.arange(start, start + at_once), count - 1)
        scores[rows] = _scores(scene.model, scene.x, units, targets, ~lanes.off[rows])
        progress(min(start + at_once, count), count)
    return scores


@eqx.filter_jit
def _scores(
    model: Any, x: Array, units: Units, targets: Targets, gates: Any
) -> Float[Array, "set object"]:
    def one(gates: Array) -> Array:
        return targets.scores(gated(model, x, units, gates.astype(x.dtype)))

    return jax.vmap(one)(jnp.asarray(gates))


@eqx.filter_jit
def _logits(
    model: Any, x: Array, units: Units, targets: Targets, gates: Array
) -> Float[Array, " object"]:
    return targets.logits(gated(model, x, units, gates))


def differences(
    scene: Scene,
    units: Units,
    fall: Float[np.ndarray, "object unit"],
    estimate: Float[np.ndarray, "object unit"],
) -> tuple[float, float]:
    """Measure the largest effect and attributions again, one run at a time.

    Returns:
        Difference between the sweep and a single ablation of the unit with the largest
        effect, and between the attribution and the finite difference for the unit with
        the largest attribution, relative to it; both for the first object.
    """
    ones = jnp.ones(sum(units.sizes))
    call = lambda gates: float(  # noqa: E731
        _logits(scene.model, scene.x, units, scene.targets, gates)[0]
    )
    unit = int(np.argmax(np.abs(fall[0])))
    exact = call(ones) - call(ones.at[unit].set(0))
    unit_2, step = int(np.argmax(np.abs(estimate[0]))), 1e-2
    slope = call(ones.at[unit_2].add(step)) - call(ones.at[unit_2].add(-step))
    off = slope / (2 * step) - estimate[0, unit_2]
    return abs(exact - fall[0, unit]), abs(float(off / estimate[0, unit_2]))
