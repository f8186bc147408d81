"""Distributed alignment search on hierarchical equality.

Paper: Geiger, Wu, Potts, Icard and Goodman 2023, "Finding Alignments Between
Interpretable Causal Variables and Distributed Neural Representations",
arXiv:2303.02536, section 4; Wu et al. 2023, arXiv:2305.08809, for learned boundaries.

Claim: a perceptron that was trained to tell whether two pairs of objects are equal or
not in the same way holds both equality relations in its first hidden layer, in two
subspaces of half the width each: swapping them between runs changes the output as the
causal model says (interchange-intervention accuracy 1.00), in the second layer hardly
(0.57) and in the third not at all (0.50). In the paper no sets of neurons do that (at
most 0.73); of the networks here, some come out close to sets of neurons, which learned
masks find and blocks of neighbours do not.

Objects are vectors of numbers drawn at random for every input, so there is nothing to
learn by heart; three hidden layers of ReLU units are as wide as the four objects. Three
hypotheses are tested at every layer with several sizes: both relations, two variables
of which one or both are swapped; the left relation alone; and, as a control that must
fail, the identity of the first object. For the last one, half of the sources begin with
the second object of the base, as else the answer would not depend on it. Half of all
labels are 1, so that 0.5 is chance.

All rotations, of every network, hypothesis, layer and size, are fitted at once on fresh
examples. Besides: the neurons closest to each rotation, the best blocks of neurons
(chosen on other examples than they are measured on), masks on neurons, and rotations
whose sizes are learned. The paper has one network and does not say how it was chosen.
Numbers are those of the network whose first layer holds both relations best on other
examples; the tables give the best and the mean of all networks, which differ a lot.

Commands:
    mijax run hierarchical-equality
    mijax run hierarchical-equality/wide      (objects of 8 numbers)
    mijax run hierarchical-equality/tiny

Runtime: see experiments/README.md.
"""

import time

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import mijax.experiment
from mijax import train, viz
from mijax.causal import MLP, Counterfactuals, Drawn

from . import _search as search
from ._network import accuracy, learned
from ._report import Found, curves, report
from ._task import HYPOTHESES, Examples, examples, questions

TEST, HELD_OUT, TRAIN, TASK = 1, 2, 3, 4


class Config(mijax.experiment.Config):
    """What is trained and searched."""

    object: int = 4
    "Numbers of an object; layers are four times as wide."
    networks: int = 3
    "Networks, each with rotations of its own."
    network_steps: int = 20_000
    "Updates of the networks."
    network_batch: int = 512
    "Inputs of an update."
    network_rate: float = 5e-3
    "Learning rate of the networks, at the start."
    shares: tuple[int, ...] = (2, 4, 8)
    "Sizes of a subspace, as what the width is divided by; the first is reported."
    steps: int = 3000
    "Updates of the rotations."
    batch: int = 128
    "Interventions of an update."
    learning_rate: float = 3e-2
    "Learning rate of the rotations, at the start."
    sized_steps: int = 1000
    "Updates of rotations whose sizes are learned, and of masks on neurons."
    test: int = 4096
    "Interventions to measure with."
    seed: int = 0
    "Of data and rotations; networks have those from 0."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    run.seed("data", config.seed)
    size = config.object

    def input_(key: PRNGKeyArray) -> Examples:
        return examples(key, size)

    def seeded(kind: int) -> int:
        return 10 * config.seed + kind

    kept = train.Memory()
    with run.progress("networks"):
        source = Drawn(input_, batch=config.network_batch, seed=seeded(TASK))
        models = learned(
            source,
            width=4 * size,
            seeds=config.networks,
            steps=config.network_steps,
            learning_rate=config.network_rate,
            sink=kept,
        )
    fresh = Drawn(input_, batch=config.test, seed=seeded(TEST))
    right = accuracy(models, fresh.batch(jnp.int32(0))[1])
    run.number("accuracy", float(right.min()), note="of the worst network")
    run.figure(
        "networks",
        viz.training_curves(
            kept.rows,
            quantities=["loss", "accuracy"],
            lanes=[f"network {i}" for i in range(config.networks)],
            log=["loss"],
        ),
        caption="Training of the networks.",
    )
    report(searched(models, config, run), run)


def searched(models: list[MLP], config: Config, run: mijax.experiment.Run) -> Found:
    """Fits and measures everything."""
    width = 4 * config.object
    counts = [len(one.variables) for one in HYPOTHESES.values()]
    where = search.cells(width, config.shares, counts)
    sized = search.cells(width, (2,), counts)

    def question(key: PRNGKeyArray) -> tuple[Counterfactuals, ...]:
        return questions(key, config.object)

    def drawn(kind: int, rows: int) -> Drawn:
        return Drawn(question, batch=rows, seed=10 * config.seed + kind)

    test, held_out = (
        drawn(kind, config.test).batch(jnp.int32(0))[1] for kind in (TEST, HELD_OUT)
    )
    source = drawn(TRAIN, config.batch)
    kept = train.Memory()
    options = {"learning_rate": config.learning_rate, "seed": config.seed}
    with run.progress("rotations"):
        began = time.perf_counter()
        found = search.rotations(
            *(models, where, source), steps=config.steps, sink=kept, **options
        )
        speed = config.steps / (time.perf_counter() - began)
        das = search.measured(models, found, test)
        chosen = int(search.measured(models, found, held_out)[:, 0].argmax())
    note = f"of {len(models) * len(where)} rotations at once; compilation in it"
    run.number("updates_per_second", speed, note=note)
    curves(kept, where, run)
    with run.progress("neurons"):
        near = search.closest(models, where, found, test)
        best = search.brute_force(models, where, held_out, test)
    with run.progress("sizes"):
        others = search.learned_sizes(
            *(models, sized, source), steps=config.sized_steps, **options
        )
        scores = {
            name: search.measured(models, one, test) for name, one in others.items()
        }
    every = {"DAS": das, "closest neurons": near, "brute force": best}
    sizes = {
        name: np.asarray(one.subspaces.mask.sum((-1, -2)))
        for name, one in others.items()
    }
    return Found(where, every, sized, scores, sizes, chosen)
