"""Attribution and ablation of channels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import mijax
from mijax.experiment import Progress

Pixels = Float[Array | np.ndarray, "image channel row column"]


class Units(NamedTuple):
    """Channels of the layers of a site, one after the other.

    Attributes:
        site: name of the site.
        layers: the layers.
        sizes: number of channels of each layer of the model, also of others.
    """

    site: str
    layers: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, model: Any, image: Array, site: str, *, last: int | None) -> "Units":
        """Return the channels of all layers of a site, or of the last few."""
        shapes = mijax.sites(model, image)[site].shapes
        sizes = tuple(shape[0] for shape in shapes)
        every = tuple(range(len(sizes)))
        return cls(site, every if last is None else every[-last:], sizes)

    @property
    def cells(self) -> Int[np.ndarray, "unit 2"]:
        """Layer and channel of each unit."""
        pairs = [(i, c) for i in self.layers for c in range(self.sizes[i])]
        return np.array(pairs)

    @property
    def names(self) -> list[str]:
        """`layer.channel` of each unit."""
        return [f"{layer}.{channel}" for layer, channel in self.cells]

    def of_layer(self, layer: int) -> slice:
        """Return where the channels of a layer are among the units."""
        start = sum(self.sizes[i] for i in self.layers if i < layer)
        return slice(start, start + self.sizes[layer])


class Answers(NamedTuple):
    """Logits that a metric compares, chosen from the unedited run.

    Attributes:
        label: class of each image.
        rival: strongest other class.
    """

    label: Int[np.ndarray, " image"]
    rival: Int[np.ndarray, " image"]


def answers(logits: Float[np.ndarray, "image class"], labels: np.ndarray) -> Answers:
    """Return the class of each image, and the strongest other one."""
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return Answers(labels, others.argmax(1))


def margins_of(
    logits: Float[np.ndarray, "image class"], targets: Answers
) -> Float[np.ndarray, " image"]:
    """Return the margin of each image."""
    row = np.arange(len(logits))
    return logits[row, targets.label] - logits[row, targets.rival]


def margin(logits: Float[Array, " class"], label: Any, rival: Any) -> Array:
    """Return the logit of a class minus that of its rival."""
    return logits[label] - logits[rival]


# Images in one step of a program. Loops inside of a program are no substitute: XLA runs
# convolutions in a loop on one core of a CPU.
STEP = 25


def in_steps(
    program: Callable[..., Any], model: Any, arrays: tuple[Any, ...], *rest: Any
) -> np.ndarray:
    """Run a program on a few images at a time, all steps of one size."""
    count, outputs = len(arrays[0]), []
    for start in range(0, count, STEP):
        rows = np.minimum(np.arange(start, start + STEP), count - 1)
        parts = (np.asarray(array)[rows] for array in arrays)
        outputs.append(np.asarray(program(model, *parts, *rest)))
    return np.concatenate(outputs)[:count]


def logits_of(model: Any, images: Pixels) -> Float[np.ndarray, "image class"]:
    """Run the model on preprocessed images."""
    return in_steps(_logits, model, (images,))


@eqx.filter_jit
def _logits(model: Any, images: Pixels) -> Float[Array, "image class"]:
    return jax.vmap(model)(images)


def excitement(
    model: Any, images: Pixels, units: Units
) -> Float[np.ndarray, "image unit"]:
    """Return the mean activation of every unit in each image.

    The mean, because the largest is often the same for all images: a unit that its
    inputs only inhibit is at its bias wherever they are zero.
    """
    return in_steps(_excitement, model, (images,), units)


@eqx.filter_jit
def _excitement(model: Any, images: Pixels, units: Units) -> Float[Array, "image unit"]:
    def one(image: Array) -> Array:
        _, acts = mijax.harvest(model, want=[units.site])(image)
        return jnp.concatenate([acts[units.site][i].mean((1, 2)) for i in units.layers])

    return jax.vmap(one)(jnp.asarray(images))


def attribution(
    model: Any, images: Pixels, units: Units, targets: Answers
) -> Float[np.ndarray, "image unit"]:
    r"""Estimate how far the margin falls when a unit is set to zero.

    $\sum_{ij} a_{ij}\, \partial m / \partial a_{ij}$ over the map $a$ of the unit: the
    first-order effect, from one forward and one backward pass.
    """
    return in_steps(_attribution, model, (images, *targets), units)


@eqx.filter_jit
def _attribution(
    model: Any, images: Pixels, label: Any, rival: Any, units: Units
) -> Float[Array, "image unit"]:
    def one(image: Array, label: Array, rival: Array) -> Array:
        shapes = mijax.sites(model, image)[units.site].shapes

        def shifted(shifts: list[Array]) -> tuple[Array, Any]:
            push = {units.site: lambda x, at: x + shifts[at.layer]}
            logits, acts = mijax.harvest(model, want=[units.site], edits=push)(image)
            return margin(logits, label, rival), acts[units.site]

        none = [jnp.zeros(shape) for shape in shapes]
        slopes, acts = jax.grad(shifted, has_aux=True)(none)
        parts = [(acts[i] * slopes[i]).sum((1, 2)) for i in units.layers]
        return jnp.concatenate(parts)

    return jax.vmap(one)(*map(jnp.asarray, (images, label, rival)))


class Ablated(NamedTuple):
    """Runs with units set to zero.

    Attributes:
        fall: fall of the margin.
        answer: class with the largest logit.
    """

    fall: Float[np.ndarray, "image lane"]
    answer: Int[np.ndarray, "image lane"]


def top_class(logits: Float[Array, " class"]) -> Float[Array, ""]:
    """Return the class with the largest logit, as a metric."""
    return logits.argmax().astype(jnp.float32)


def ablate_each(
    model: Any,
    images: Pixels,
    units: Units,
    targets: Answers,
    *,
    progress: Progress,
    chunks: mijax.Chunks,
) -> Ablated:
    """Set each unit to zero, in one sweep.

    Args:
        model: the model.
        images: preprocessed images.
        units: the units.
        targets: classes to compare.
        progress: called with the amount of work that is done and all of it.
        chunks: working memory, and where an interrupted sweep resumes.

    Returns:
        Margins and answers of every image without each unit.
    """
    cells = [tuple(cell) for cell in units.cells.tolist()]
    found = mijax.sweep(
        mijax.model(model, images[0]),
        images,
        mijax.Zero().at(units.site),
        over={("layer", "channel"): cells},
        metric={"margin": mijax.logit_difference(*targets), "answer": top_class},
        progress=progress,
        chunks=chunks,
    )
    margins, classes = found["margin"], found["answer"]
    fall = margins.base[:, None] - margins.values
    return Ablated(np.asarray(fall), np.asarray(classes.values).astype(int))


def ablate_sets(
    model: Any,
    images: Pixels,
    units: Units,
    targets: Answers,
    off: Bool[np.ndarray, "lane image unit"],
    *,
    progress: Progress,
    at_once: int,
) -> Ablated:
    """Set several units to zero at a time, and run all images.

    Args:
        model: the model.
        images: preprocessed images.
        units: the units.
        targets: classes to compare.
        off: the units of each lane that are set to zero in each image.
        progress: called with the number of runs that are done and their number.
        at_once: runs in one step of the program.

    Returns:
        Margins and answers of every image in every lane.
    """
    lanes, count = len(off), len(images)
    base = margins_of(logits_of(model, images), targets)
    fall = np.zeros((count, lanes), np.float32)
    answer = np.zeros((count, lanes), int)
    # One flat list of runs, (lane, image), in steps of one size: one program.
    runs = np.indices((lanes, count)).reshape(2, -1).T
    for start in range(0, len(runs), at_once):
        rows = np.minimum(np.arange(start, start + at_once), len(runs) - 1)
        lane, image = runs[rows].T
        label, rival = (part[image] for part in targets)
        now = off[lane, image]
        margins, classes = _ablated(model, images[image], units, label, rival, now)
        fall[image, lane] = base[image] - np.asarray(margins)
        answer[image, lane] = np.asarray(classes)
        progress(min(start + at_once, len(runs)), len(runs))
    return Ablated(fall, answer)


@eqx.filter_jit
def _ablated(
    model: Any, images: Pixels, units: Units, label: Any, rival: Any, off: Any
) -> tuple[Array, Array]:
    """Return margin and answer of each run."""

    def one(image: Array, label: Array, rival: Array, off: Array) -> Any:
        def edit(x: Array, at: Any) -> Array:
            if at.layer not in units.layers:
                return x
            return jnp.where(off[units.of_layer(at.layer)][:, None, None], 0, x)

        run = mijax.harvest(model, want=(), edits={units.site: edit})
        logits = run(image)[0]
        return margin(logits, label, rival), logits.argmax()

    return jax.vmap(one)(*map(jnp.asarray, (images, label, rival, off)))
