"""Units of YOLO26 that carry a detection.

Model: YOLO26 (Ultralytics 2026), a detector without non-maximum suppression: an object
is one anchor and its class, so that its logit can be followed back. The estimate is the
first-order one of Molchanov et al. 2017, arXiv:1611.06440; the question is that of Bau
et al. 2020, arXiv:2009.05041, "Understanding the role of individual units in a deep
neural network". There are no published interpretability numbers for YOLO26.

Claim: one compiled sweep measures how far the class logit of each object falls without
each channel of some stages. The score of the first object falls when the few channels
with the largest effects are set to zero together, and hardly without as many random
channels of the same stages. One backward pass for each object estimates the same
effects. It ranks most units well and is blind to some of those that matter most: the
output is flat at their activation and collapses without it.

Two checks hold by construction: the largest effect of the sweep is measured again by a
single run, and the largest attribution by a finite difference.

Weights and the photo are files that you give: `--weights`, a safetensors file with
names as Ultralytics has them (the guide "Any JAX function" shows how to write one; the
license of published weights is AGPL-3.0), and `--photo`, a picture. The model `tiny`
has random weights and looks at noise, for tests.

Commands:
    mijax run yolo26-inspect --weights yolo26n.safetensors --photo bus.jpg
    mijax run yolo26-inspect/quick --weights yolo26n.safetensors --photo bus.jpg
    mijax run yolo26-inspect/tiny

Runtime: see experiments/README.md.
"""

import numpy as np

import mijax
import mijax.experiment
from mijax._errors import ConfigError

from ._report import Found, report
from ._scene import opened
from ._units import (
    SITE,
    Units,
    attribution,
    differences,
    effects,
    remaining,
    set_lanes,
)


class Config(mijax.experiment.Config):
    """What is looked into."""

    model: str = "yolo26n"
    "Name of a detector, or `tiny` for a small one with random weights."
    weights: str | None = None
    "File of its weights (.safetensors)."
    photo: str | None = None
    "A picture."
    side: int = 640
    "Side of the model's input, a multiple of 32."
    least: float = 0.25
    "Least score of an object."
    objects: int = 4
    "Objects whose units are measured, those with the highest scores."
    stages: tuple[int, ...] = (10, 13, 16, 19, 22)
    "Stages whose channels are the units."
    sets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    "Numbers of units that are removed together."
    compared: int = 8
    "Number of units, one of `sets`, whose scores are numbers of the report."
    draws: int = 5
    "Random sets of each size."
    shown: int = 6
    "Units of each object in tables and pictures."
    at_once: int = 4
    "Runs in one step of the program that removes sets."
    seed: int = 0
    "Seed of random sets."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    if config.compared not in config.sets:
        raise ConfigError(
            f"compared is {config.compared}; choose one of sets, {config.sets}."
        )
    run.seed("random sets", config.seed)
    report(measured(config, run), run, shown=config.shown, compared=config.compared)


def measured(config: Config, run: mijax.experiment.Run) -> Found:
    """Measures effect and attribution of every unit, and sets of units."""
    with run.progress("detect"):
        scene = opened(
            run,
            model=config.model,
            weights=config.weights,
            photo=config.photo,
            side=config.side,
            least=config.least,
            objects=config.objects,
            seed=config.seed,
        )
    shapes = mijax.sites(scene.model, scene.x)[SITE].shapes
    for stage in config.stages:
        if not 0 <= stage < len(shapes):
            raise ConfigError(
                f"There is no stage {stage}: give 0 to {len(shapes) - 1}."
            )
    units = Units(config.stages, tuple(shapes[i][0] for i in config.stages))
    with run.progress("attribution"):
        found = attribution(scene.model, scene.x, units, scene.targets)
        estimate = np.asarray(found)
    with run.progress("ablate every unit") as progress:
        fall = effects(
            scene,
            units,
            progress=progress,
            chunks=mijax.Chunks(resume=str(run.scratch / "units.npz")),
        )
    scores = {"effect": fall[0], "attribution": estimate[0]}
    lanes = set_lanes(
        scores, units, sizes=config.sets, draws=config.draws, seed=config.seed
    )
    with run.progress("ablate sets") as progress:
        left = remaining(scene, units, lanes, at_once=config.at_once, progress=progress)
    with run.progress("check"):
        apart = differences(scene, units, fall, estimate)
    return Found(scene, units, fall, estimate, lanes, left, *apart)
