"""Toy models squeeze more features than they have dimensions, in regular shapes.

Paper: Elhage et al. 2022, "Toy Models of Superposition",
https://transformer-circuits.pub/2022/toy_model, with the settings of its notebook:
AdamW at 1e-3, batches of 1,024, 10,000 updates, 20 densities from 1 to 0.05.

Claim: with dense features a model of m dimensions represents the m most important ones;
the sparser features are, the more share dimensions. Features of equal importance get
equal shares: dimensions per feature stay at 1/2 (antipodal pairs) over a range of
densities, and single features stick at fractions of regular shapes, 3/4 (tetrahedron),
2/3 (triangle), 1/2 (digon), 2/5 (pentagon), 3/8 (square antiprism). Whether one more
feature than there are dimensions is left out, gets a dimension or shares one is decided
by its density and importance as the expected losses of a few models predict.

`intro` has 5 features in 2 dimensions, `many` 100 in 20 of falling importance,
`geometry` 200 in 20 of equal importance; every density is a model, and all models of a
seed are trained in one program. Phase diagrams have a model for each cell, the best of
several starts, since one of two starts cannot turn a feature round. Theory is of
weights of length 1 with the best bias, integrated in closed form.

Command:
    mijax run toy-models
    mijax run toy-models/tiny       (few features, cells and steps)

Runtime: see experiments/README.md.
"""

from typing import Annotated

from pydantic import Field

import mijax.experiment

from . import _setups as setups
from ._geometry import report_geometry
from ._phases import report_phases
from ._squeezed import report_intro, report_many
from ._training import Trained, trained


class Config(mijax.experiment.Config):
    """What is trained."""

    instances: int = 20
    "Densities from 1 to 0.05, a model for each; the introduction has half as many."
    features: int = 100
    "Features of falling importance."
    uniform_features: int = 200
    "Features of equal importance."
    embed: int = 20
    "Dimensions of the models with many features."
    steps: int = 10_000
    "Updates."
    batch: int = 1024
    "Examples of an update."
    seeds: Annotated[int, Field(ge=1)] = 3
    "Of the introduction and the geometry."
    phase_embeds: tuple[int, ...] = (1, 2)
    "Dimensions of the models of phase diagrams."
    cells: int = 20
    "Of a phase diagram, along each axis."
    starts: int = 5
    "Models of each cell of a phase diagram, of which the best counts."
    phase_steps: int = 4000
    "Updates of the phase diagrams."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Trains and reports everything."""
    found = models(config, run)
    report_intro(found["intro"], run)
    report_many(found["many"], run)
    report_geometry(found["geometry"], run)
    for embed in config.phase_embeds:
        report_phases(found[f"phases-{embed + 1}"], config.cells, embed, run)
    report_speed(found["geometry"], config.steps, run)


def models(config: Config, run: mijax.experiment.Run) -> dict[str, Trained]:
    """Trains all models."""
    size = {"steps": config.steps, "batch": config.batch}
    phase = {"steps": config.phase_steps, "batch": config.batch}
    half = max(2, config.instances // 2)
    jobs = {
        "intro": (setups.intro(half, **size), config.seeds),
        **{
            f"phases-{embed + 1}": (
                setups.phases(config.cells, embed, **phase),
                config.starts,
            )
            for embed in config.phase_embeds
        },
        "many": (
            setups.many(config.instances, config.features, config.embed, **size),
            1,
        ),
        "geometry": (
            setups.uniform(
                config.instances, config.uniform_features, config.embed, **size
            ),
            config.seeds,
        ),
    }
    return {name: trained(name, *job, run) for name, job in jobs.items()}


def report_speed(found: Trained, steps: int, run: mijax.experiment.Run) -> None:
    """Reports how long the models of the geometry took."""
    run.number(
        "geometry_first_seconds",
        float(found.seconds[0]),
        note="all models of a seed, with compilation",
    )
    if len(found.seconds) > 1:
        rest = float(found.seconds[1:].mean())
        run.number("geometry_seconds", rest, note="of each seed after the first")
        run.number("geometry_steps_per_second", steps / rest, note="without compiling")
