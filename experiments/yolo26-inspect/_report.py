"""Numbers, tables and pictures."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

import mijax
import mijax.experiment
from mijax import viz

from ._pictures import detected, first_maps, unit_maps
from ._scene import Scene, class_name
from ._units import SITE, SetLanes, Units

TOP = 10


class Found(NamedTuple):
    """Everything that was measured.

    Attributes:
        scene: the model, the photo and its objects.
        units: the units.
        fall: effect of each unit on each object.
        estimate: the same by attribution.
        lanes: sets of units.
        scores: score of each object without each set.
        sweep_apart: difference between the sweep and a single ablation.
        slope_apart: relative difference between attribution and a finite difference.
    """

    scene: Scene
    units: Units
    fall: Float[np.ndarray, "object unit"]
    estimate: Float[np.ndarray, "object unit"]
    lanes: SetLanes
    scores: Float[np.ndarray, "set object"]
    sweep_apart: float
    slope_apart: float

    def without(self, kind: str, size: int) -> Float[np.ndarray, " object"]:
        """Return the mean score of each object without sets of a kind and size."""
        pairs = zip(self.lanes.kinds, self.lanes.sizes, strict=True)
        rows = [one == (kind, size) for one in pairs]
        return self.scores[rows].mean(axis=0)


def report(
    found: Found, run: mijax.experiment.Run, *, shown: int, compared: int
) -> None:
    """Report what was found.

    Args:
        found: all measurements.
        run: where it goes.
        shown: units of each object in tables and pictures.
        compared: size of the sets whose scores are numbers.
    """
    scene = found.scene
    run.number("objects", len(scene.found), note="in the photo")
    run.number("score", float(scene.found.scores[0]), note=scene.names[0])
    run.number("units", len(found.units.cells))
    run.number("sweep_apart", found.sweep_apart, note="from a single ablation")
    run.number("slope_apart", found.slope_apart, note="from a finite difference")
    rank = [
        float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
        for one, other in zip(found.estimate, found.fall, strict=True)
    ]
    run.number("spearman", float(np.mean(rank)), note="of units, mean over objects")
    both = [overlap(*pair) for pair in zip(found.estimate, found.fall, strict=True)]
    run.number("top_found", float(np.mean(both)), note=f"of the {TOP} largest effects")
    for kind in dict.fromkeys(found.lanes.kinds):
        left = float(found.without(kind, compared)[0])
        note = f"score of {scene.names[0]} without {compared} units"
        run.number(f"score_{kind.replace(' ', '_')}", left, note=note)
    gain = found.without("random", compared) - found.without("effect", compared)
    run.number("random_keeps_more", float(gain[0]), note="than the largest effects")
    tables(found, run, shown)
    draw(found, run, shown)


def overlap(
    one: Float[np.ndarray, " unit"], other: Float[np.ndarray, " unit"]
) -> float:
    """Return the fraction of the largest few that two scores share."""
    top = [set(np.argsort(-part)[:TOP].tolist()) for part in (one, other)]
    return len(top[0] & top[1]) / TOP


def tables(found: Found, run: mijax.experiment.Run, shown: int) -> None:
    """Report sites, objects and units."""
    scene, units = found.scene, found.units
    table = mijax.sites(scene.model, scene.x)
    sites = [
        [name, len(table[name].shapes), " ".join(table[name].axes)] for name in table
    ]
    run.table("Sites", ["site", "layers", "axes"], sites)
    shapes, modules = table[SITE].shapes, scene.model.model
    stages = [
        [i, kind(modules[i]), *shape, "yes" if i in units.stages else ""]
        for i, shape in enumerate(shapes)
    ]
    columns = ["stage", "kind", "channels", "rows", "columns", "units"]
    run.table("Stages", columns, stages)
    objects = [
        [class_name(label), score, *np.round(box, 1)]
        for label, score, box in zip(
            scene.found.classes, scene.found.scores, scene.found.boxes, strict=True
        )
    ]
    columns = ["class", "score", "left", "top", "right", "bottom"]
    run.table("Objects", columns, objects)
    rows = []
    for i, name in enumerate(scene.names):
        ranks = np.argsort(np.argsort(-found.estimate[i]))
        for unit in np.argsort(-found.fall[i], kind="stable")[:shown]:
            others = np.delete(found.fall[:, unit], i)
            mean = float(others.mean()) if len(others) else None
            effect, estimate = found.fall[i, unit], found.estimate[i, unit]
            label = units.names[unit]
            rows.append([name, label, effect, estimate, int(ranks[unit]) + 1, mean])
    columns = ["object", "unit", "effect", "attribution", "rank", "others"]
    run.table("Units", columns, rows)


def kind(module: object) -> str:
    """Return the name of a stage's kind."""
    name = type(module).__name__
    return "joined or enlarged" if name == "tuple" else name


def draw(found: Found, run: mijax.experiment.Run, shown: int) -> None:
    """Draw all pictures."""
    scene, units = found.scene, found.units
    caption = "What the detector finds; the first object is the one that sets remove."
    run.figure("objects", detected(scene), caption=caption)
    caption = "Black is the 1st percentile of a map, white the 99th."
    run.figure("first-convolution", first_maps(scene), caption=caption)
    caption = "Frames: the box of the object."
    run.figure("units", unit_maps(scene, units, found.fall, shown), caption=caption)
    labels = [f"{name} {unit}" for name in scene.names for unit in units.names]
    figure = viz.score_scatter(
        signed_log(found.fall).ravel(),
        signed_log(found.estimate).ravel(),
        labels=labels,
        title="Every object and unit",
        x="Effect of ablation (signed log of 1 + logits)",
        y="Attribution (signed log of 1 + logits)",
    )
    caption = "Fall of the class logit when a unit is set to zero, and its estimate."
    run.figure("agreement", figure, caption=caption)
    draw_shared(found, run)
    sizes = list(dict.fromkeys(found.lanes.sizes))
    curves = {
        f"by {name}" if name != "random" else "random, same stages": np.array(
            [scene.found.scores[0], *(found.without(name, n)[0] for n in sizes)]
        )
        for name in dict.fromkeys(found.lanes.kinds)
    }
    if len(scene.names) > 1:
        rest = [found.without("effect", n)[1:].mean() for n in sizes]
        whole = scene.found.scores[scene.explained[1:]].mean()
        curves["other objects, by effect"] = np.array([whole, *rest])
    figure = viz.line(
        curves,
        points=np.array([0, *sizes]),
        title=f"Score of {scene.names[0]} without the units that carry it",
        x="Number of units removed",
        y="Best score of a box there",
    )
    run.figure("removed", figure, caption="Units removed together; 1 is certainty.")


def signed_log(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the logarithm of 1 plus the size of each value, with its sign."""
    return np.sign(values) * np.log1p(np.abs(values))


def draw_shared(found: Found, run: mijax.experiment.Run) -> None:
    """Draw effects of the strongest units on every object."""
    best = [np.argsort(-fall, kind="stable")[:TOP] for fall in found.fall]
    order = list(dict.fromkeys(np.concatenate(best).tolist()))[: 4 * TOP]
    figure = viz.heatmap(
        signed_log(found.fall[:, order]),
        x_labels=[found.units.names[unit] for unit in order],
        y_labels=found.scene.names,
        title=f"The {TOP} strongest units of each object, and their other effects",
        x="Unit (stage.channel)",
        y="Object",
        label="Effect (signed log of 1 + logits)",
    )
    caption = "Some units carry one object, others all of them."
    run.figure("shared", figure, caption=caption)
