"""A toy experiment that needs no model, for the tests of runs and commands."""

from pathlib import Path

SCRIPT = '''"""Toy: a claim about counting.

Run: mijax run toy
"""

import os
import signal
from typing import NamedTuple

import mijax.experiment


class Interval(NamedTuple):
    mean: float
    low: float
    high: float
    n: int


class Train(mijax.experiment.Config):
    steps: int = 4
    "How many steps."


class Config(mijax.experiment.Config):
    prompts: int = 3
    "How many prompts."
    rate: float = 0.5
    heads: tuple[int, ...] = (1, 2)
    word: str = "x"
    kill: bool = False
    train: Train = Train()


def run(config, run):
    with run.progress("steps") as progress:
        for step in range(config.train.steps):
            mark = run.scratch / f"step{step}"
            if mark.exists():
                continue
            mark.write_text("done")
            with (run.scratch / "log").open("a") as file:
                file.write(f"{step}\\n")
            progress(step + 1, config.train.steps)
            if config.kill and step == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    run.seed("model", 3)
    run.weights("toy", "abc")
    log = (run.scratch / "log").read_text().split()
    run.number("steps_done", len(log))
    run.number("score", Interval(config.prompts / 4, 0.5, 1.0, 7), note="<b>note</b>")
    run.number("best", [f"head {h}" for h in config.heads])
    run.table("Heads <i>", ["head", "score"], [[h, h * config.rate] for h in (1, 2)])
    run.page("page", "<!doctype html><p>page</p>", caption="A page.")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    run.figure("curve", figure, caption="A <curve>.")
'''

CONFIG = """\
experiment: toy
description: A toy that counts.
config:
  prompts: 3
  rate: 1e-3
expected:
  score: {value: 0.8, tolerance: 0.1, source: "Table 1"}
  steps_done: {equals: 4, source: "by hand"}
  best: {equals: ["head 1", "head 2"], source: "by hand"}
"""


def make_toy(parent: Path, config: str = CONFIG) -> Path:
    """Writes the toy experiment into `parent/toy`; returns its config file."""
    folder = parent / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.py").write_text(SCRIPT)
    file = folder / "toy.yaml"
    file.write_text(config)
    return file
