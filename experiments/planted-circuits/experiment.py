"""Every discovery method on models whose circuits are known.

Papers: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic
Interpretability", https://arxiv.org/abs/2304.14997, for ROC curves against a known
circuit; Lindner et al. 2023, https://arxiv.org/abs/2301.05062, for the compiled
programs; Gupta, Arcuschin et al. 2024, "InterpBench", https://arxiv.org/abs/2407.14494,
for comparing methods on models with planted circuits.

Claim: patching every edge finds every circuit whose edges each matter alone, and so
does ACDC. Faster methods pay where their assumption fails: a gradient at the clean run
where attention is saturated, so that queries and keys have none (EAP, GIM and HISP;
integrated gradients see them if the path leaves saturation, which it does towards zero
and not always towards another prompt); information flow, which does not ask what the
behaviour needs. Where two parts cancel, each matters alone and both together do not,
and whatever ranks by one removal at a time puts them beside the circuit. Methods that
learn a mask find it there, but their metric is another: exact patching finds it too
when it measures a divergence, in which the cancelling parts weigh less (the row
`exact-div`). On the trained model, as on those of InterpBench, ACDC and integrated
gradients are ahead of EAP.

Two ablations have a known circuit each. Corrupt activations: the edges that carry what
differs between the two prompts. Zero ablation: all that the mechanism reads, positions
too. Compiled programs are known under zero ablation only, where the metric is minus
the l2 from the model's own output (as published): it has no gradient at the full
model, so that methods which take only that one score everything zero. Of the trained
model the heads are known, not their edges, under corrupt activations. Methods that
learn a mask and `exact-div` measure the divergence from the model's output, all others
the difference of logits.

Areas are of rankings by the size of the score, where less than a millionth of the
largest counts as 0: what is outside a hand-built circuit scores exactly 0, and a
gradient of 1e-32 through saturated attention would pass as found. The column
`no floor` has the mean without this. Intervals: 95 % of a bootstrap over prompts where
a method scores prompts one by one, else the range of its seeds. Random scores have the
area 0.5.

Command:
    mijax run planted-circuits
    mijax run planted-circuits/quick      (two models, five methods)

Runtime: see experiments/README.md; almost all of it is compilation.
"""

import dataclasses
import json

import mijax.experiment

from ._cases import MODELS, cases
from ._methods import METHODS, Found, find, fits
from ._report import draw, report
from ._scoring import Cell, cells

DRAWN = ("exact", "eap")


class Config(mijax.experiment.Config):
    """What is compared."""

    models: tuple[str, ...] = MODELS
    "Models with a known circuit."
    ablations: tuple[str, ...] = ("corrupt", "zero")
    "Corrupt activations, zero, or both."
    methods: tuple[str, ...] = tuple(METHODS)
    "Discovery methods."
    prompts: int = 16
    "Prompts of compiled and trained models; hand-built ones have their own."
    seed: int = 0
    "Seed of those prompts and of the bootstrap."
    seeds: int = 3
    "Seeds of methods that learn a mask."
    steps: int = 1000
    "Steps of edge pruning; the other methods that learn a mask need half as many."
    resamples: int = 100
    "Bootstrap resamples of the prompts."
    picture: str = "inhibition/corrupt"
    "The case whose circuit and ROC curves are drawn."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs every method on every case."""
    found = cases(
        config.models, config.ablations, prompts=config.prompts, seed=config.seed
    )
    run.seed("prompts", config.seed)
    file = run.scratch / "cells.json"
    done = (
        [Cell(**one) for one in json.loads(file.read_text())] if file.exists() else []
    )
    known = {(cell.method, cell.case) for cell in done}
    drawn: dict[str, Found] = {}
    jobs = [
        (name, case)
        for case in found
        for name in config.methods
        if fits(METHODS[name], case)
    ]
    with run.progress("discover") as progress:
        for i, (name, case) in enumerate(jobs):
            shown = case.label == config.picture and name in DRAWN
            if shown or (name, case.label) not in known:
                result = find(name, case, seeds=config.seeds, steps=config.steps)
                if shown:
                    drawn[name] = result
                if (name, case.label) not in known:
                    done += cells(name, case, result, resamples=config.resamples)
                    text = json.dumps([dataclasses.asdict(one) for one in done])
                    mijax.io.replace_file(file, lambda new, t=text: new.write_text(t))
            progress(i + 1, len(jobs))
    report(done, found, config.methods, run)
    for case in found:
        if case.label == config.picture:
            draw(case, drawn, done, run)
