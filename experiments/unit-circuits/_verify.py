"""Sets of units to remove together, and single effects measured once more."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

import mijax

from ._units import Ablated, Answers, Units, margin

TWICE = 3


class SetLanes(NamedTuple):
    """Sets of units, for each image those of its class.

    Attributes:
        off: the units of each set, `[lane, image, unit]`.
        kinds: how each set was chosen, `attribution`, `ablation` or `random`.
        sizes: number of units of each set.
    """

    off: Bool[np.ndarray, "lane image unit"]
    kinds: list[str]
    sizes: list[int]


def set_lanes(
    estimate: Float[np.ndarray, "image unit"],
    fall: Float[np.ndarray, "image unit"],
    labels: Int[np.ndarray, " image"],
    units: Units,
    *,
    sizes: tuple[int, ...],
    draws: int,
    seed: int,
) -> SetLanes:
    """Choose sets of units for each class.

    Args:
        estimate: attributions.
        fall: effects of single units.
        labels: classes.
        units: the units.
        sizes: numbers of units in a set.
        draws: random sets of each size, with as many units of each layer as the set
            of the highest attributions.
        seed: of the random sets.

    Returns:
        The sets.
    """
    draw, layer = np.random.default_rng(seed), units.cells[:, 0]
    kinds = ["attribution", "ablation", *["random"] * draws]
    off = np.zeros((len(sizes), len(kinds), *estimate.shape), bool)
    for label in sorted({*labels.tolist()}):
        where = labels == label
        orders = [np.argsort(-part[where].mean(0)) for part in (estimate, fall)]
        for i, size in enumerate(sizes):
            for j, order in enumerate(orders):
                off[i, j][np.ix_(where, order[:size])] = True
            counts = np.bincount(layer[orders[0][:size]])
            for j in range(draws):
                index = [
                    one
                    for i_layer, count in enumerate(counts)
                    for one in draw.permutation(np.flatnonzero(layer == i_layer))[
                        :count
                    ]
                ]
                off[i, 2 + j][np.ix_(where, index)] = True
    lanes = off.reshape(-1, *estimate.shape)
    return SetLanes(lanes, kinds * len(sizes), np.repeat(sizes, len(kinds)).tolist())


def kept(lanes: SetLanes, sets: Ablated, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the fraction of images that keep their class, by kind and size."""
    same = (sets.answer == labels[:, None]).mean(0)
    kinds, sizes = np.array(lanes.kinds), np.array(lanes.sizes)
    return {
        kind: np.array(
            [same[(kinds == kind) & (sizes == n)].mean() for n in dict.fromkeys(sizes)]
        )
        for kind in dict.fromkeys(lanes.kinds)
    }


def apart(
    model: Any, images: np.ndarray, units: Units, targets: Answers, exact: Ablated
) -> float:
    """Ablate a few units one at a time, outside of the compiled sweep.

    Args:
        model: the model.
        images: preprocessed images.
        units: the units.
        targets: classes to compare.
        exact: effects of the sweep.

    Returns:
        The largest difference between the two effects, of the units whose effects are
        largest, in the first image.
    """
    answers = (targets.label[0], targets.rival[0])
    image = jnp.asarray(images[0])
    base, differences = margin(model(image), *answers), []
    for unit in np.argsort(-np.abs(exact.fall[0]))[:TWICE]:
        layer, channel = units.cells[unit]

        def zero(x: Any, at: Any, here: tuple[int, int] = (layer, channel)) -> Any:
            return x.at[here[1]].set(0) if at.layer == here[0] else x

        edited = mijax.harvest(model, want=(), edits={units.site: zero})
        fall = base - margin(edited(image)[0], *answers)
        differences.append(abs(float(fall) - float(exact.fall[0, unit])))
    return max(differences)
