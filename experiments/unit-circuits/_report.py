"""Numbers, tables and pictures."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

import mijax.experiment
from mijax import viz
from mijax.models import ImageModel

from ._images import Images
from ._pictures import exciting
from ._units import Ablated, Answers, Units
from ._verify import SetLanes, kept

TOP = 10


class Found(NamedTuple):
    """Everything that was measured.

    Attributes:
        loaded: the model.
        images: all images.
        inputs: the same, preprocessed.
        used: indices of those that are used.
        units: the units.
        targets: class and rival of each image that is used.
        estimate: attributions `[image, unit]`.
        exact: ablations of single units.
        lanes: sets of units.
        sets: ablations of these sets.
        active: mean activation of each unit in all images.
        apart: largest difference between two measurements of an effect.
        truth: by layer the channel of each class, where it is known.
    """

    loaded: ImageModel
    images: Images
    inputs: np.ndarray
    used: list[int]
    units: Units
    targets: Answers
    estimate: np.ndarray
    exact: Ablated
    lanes: SetLanes
    sets: Ablated
    active: np.ndarray
    apart: float
    truth: dict[int, tuple[int, ...]] | None

    @property
    def classes(self) -> dict[int, np.ndarray]:
        """The images of each class that is used."""
        labels = self.targets.label
        return {one: labels == one for one in dict.fromkeys(labels.tolist())}

    @property
    def sizes(self) -> list[int]:
        """Sizes of the sets of units."""
        return list(dict.fromkeys(self.lanes.sizes))

    def means(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Attribution, effect and fraction of changed classes, `[class, unit]`."""
        changed = self.exact.answer != self.targets.label[:, None]
        parts = (self.estimate, self.exact.fall, changed)
        groups = self.classes.values()
        a, b, c = (np.stack([part[own].mean(0) for own in groups]) for part in parts)
        return a, b, c


def report(
    found: Found,
    run: mijax.experiment.Run,
    *,
    shown: int,
    pictured: int,
    compared: int,
) -> None:
    """Report what was found.

    Args:
        found: all measurements.
        run: where it goes.
        shown: units of each class in tables and pictures.
        pictured: classes whose units are drawn.
        compared: size of the sets whose effects are numbers.
    """
    estimate, fall, changed = found.means()
    units, names = found.units, found.images.names
    run.number("images", len(found.used), note="classified correctly")
    run.number("units", len(units.cells))
    rank = [rank_correlation(*pair) for pair in zip(estimate, fall, strict=True)]
    line = [
        float(np.corrcoef(*pair)[0, 1]) for pair in zip(estimate, fall, strict=True)
    ]
    run.number("spearman", float(np.mean(rank)), note="of units, mean over classes")
    run.number("pearson", float(np.mean(line)), note="of units, mean over classes")
    both = [overlap(*pair) for pair in zip(estimate, fall, strict=True)]
    run.number("top_found", float(np.mean(both)), note=f"of the {TOP} largest effects")
    half = int((changed >= 0.5).any(0).sum())
    run.number("deciding_units", half, note="alone change half the images of a class")
    checks(found, run)
    remaining = kept(found.lanes, found.sets, found.targets.label)
    at = found.sizes.index(compared)
    for kind, values in remaining.items():
        note = f"images that keep their class without {compared} units"
        run.number(f"kept_{kind}", float(values[at]), note=note)
    gain = remaining["random"][at] - remaining["attribution"][at]
    run.number("random_keeps_more", float(gain), note="than the highest attributions")
    per_class = [
        [names[label], int(own.sum()), rank[i], line[i], both[i], changed[i].max()]
        for i, (label, own) in enumerate(found.classes.items())
    ]
    columns = ["class", "images", "Spearman", "Pearson", "top found", "most changed"]
    run.table("Classes", columns, per_class)
    columns, rows = unit_rows(found, shown)
    run.table("Units", columns, rows)
    draw(found, run, remaining)
    for i, label in enumerate(list(found.classes)[:pictured]):
        order = np.argsort(-(fall[i] - fall.mean(0)), kind="stable")
        draw_class(found, run, label, order[:shown])


def overlap(
    one: Float[np.ndarray, " unit"], other: Float[np.ndarray, " unit"]
) -> float:
    """Return the fraction of the largest few that two scores share."""
    top = [set(np.argsort(-part)[:TOP].tolist()) for part in (one, other)]
    return len(top[0] & top[1]) / TOP


def checks(found: Found, run: mijax.experiment.Run) -> None:
    """Report what holds by construction, and the truth where it is known."""
    units, fall = found.units, found.exact.fall
    last = units.of_layer(len(units.sizes) - 1)
    error = np.abs(found.estimate[:, last] - fall[:, last]).max()
    run.number("last_layer_apart", float(error), note="attribution and effect")
    silent = found.active[found.used] == 0
    most = float(np.abs(fall[silent]).max(initial=0))
    run.number("silent_effect", most, note=f"{int(silent.sum())} silent maps")
    run.number("sweep_apart", found.apart, note="from ablation outside of the sweep")
    if found.truth is not None:
        run.number("planted_found", planted_found(found, found.truth))


def planted_found(found: Found, truth: dict[int, tuple[int, ...]]) -> float:
    """Return how often the planted channel has the largest attribution and effect."""
    hits: list[bool] = []
    for layer, channels in truth.items():
        where = found.units.of_layer(layer)
        for scores in found.means()[:2]:
            best = scores[:, where].argmax(1)
            labels = list(found.classes)
            hits += [int(b) == channels[k] for b, k in zip(best, labels, strict=True)]
    return float(np.mean(hits))


def unit_rows(found: Found, shown: int) -> tuple[list[str], list[list[object]]]:
    """Return columns and rows of the table of units."""
    rows: list[list[object]] = []
    estimate, fall, changed = found.means()
    names = found.images.names
    for i, (label, own) in enumerate(found.classes.items()):
        order = np.argsort(-fall[i])[:shown]
        ranks = np.argsort(np.argsort(-estimate[i]))
        for unit in order:
            into = becomes(found.exact.answer[own, unit], label)
            rows.append(
                [
                    names[label],
                    found.units.names[unit],
                    fall[i, unit],
                    estimate[i, unit],
                    int(ranks[unit]) + 1,
                    changed[i, unit],
                    "" if into is None else names.get(into, f"class {into}"),
                ]
            )
    columns = ["class", "unit", "effect", "attribution", "rank", "changed", "into"]
    return columns, rows


def becomes(answer: np.ndarray, label: int) -> int | None:
    """Return the class that most changed images get."""
    other = answer[answer != label]
    return int(np.bincount(other).argmax()) if len(other) else None


def draw(
    found: Found, run: mijax.experiment.Run, remaining: dict[str, np.ndarray]
) -> None:
    """Draw agreement, by unit and by layer, and what sets of units do."""
    estimate, fall, _ = found.means()
    units, names = found.units, found.images.names
    labels = [f"{names[k]} {unit}" for k in found.classes for unit in units.names]
    figure = viz.score_scatter(
        fall.ravel(),
        estimate.ravel(),
        labels=labels,
        title="Every class and unit",
        x="Effect of ablation (logits)",
        y="Attribution (logits)",
    )
    caption = "Fall of the margin when a unit is set to zero, and its estimate."
    run.figure("agreement", figure, caption=caption)
    by_layer = {
        "Spearman": [
            agreement(estimate, fall, units.of_layer(i)) for i in units.layers
        ],
        "Largest effect / largest of all": [
            fall[:, units.of_layer(i)].max(1).mean() / fall.max(1).mean()
            for i in units.layers
        ],
    }
    figure = viz.line(
        {name: np.array(values) for name, values in by_layer.items()},
        points=np.array(units.layers),
        title="Attribution and ablation by layer",
        x="Layer",
        y="Mean over classes",
    )
    run.figure("layers", figure, caption="Rank agreement and size of effects.")
    figure = viz.line(
        remaining,
        points=np.log2(np.array(found.sizes)),
        title="Units removed together",
        x="Number of units (log2)",
        y="Images that keep their class",
    )
    caption = "Units by attribution, by single effect, and random ones of their layers."
    run.figure("sets", figure, caption=caption)


def agreement(estimate: np.ndarray, fall: np.ndarray, where: slice) -> float:
    """Return the rank correlation within a layer, mean over classes."""
    pairs = zip(estimate[:, where], fall[:, where], strict=True)
    return float(np.nanmean([rank_correlation(*pair) for pair in pairs]))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation, NaN where one score is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def draw_class(
    found: Found, run: mijax.experiment.Run, label: int, order: np.ndarray
) -> None:
    """Draw the images that excite the units of a class."""
    units, name = found.units, found.images.names[label]
    cells = {int(u): units.cells[u].tolist() for u in order}
    rows = {f"unit {units.names[u]}": (u, *cell) for u, cell in cells.items()}
    figure = exciting(
        found.loaded,
        found.images,
        found.inputs,
        found.active,
        rows,
        site=units.site,
        count=8,
        title=f"Images that excite units that matter more for {name} than elsewhere",
    )
    caption = "By mean activation. Frames: what the most active place of the map sees."
    run.figure(f"units-{name.replace(' ', '-')}", figure, caption=caption)
