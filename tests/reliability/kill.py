"""Kill a run, a training, a sweep and a save at random moments, and resume them.

Each job runs once in full. Then, for every kill, a fresh process starts the job in a
new folder, gets SIGKILL at a random moment, and the same job is run again to its end:
its result must equal the full one bit for bit, what was saved must load at every
moment, and files of the user next to and around the outputs must be untouched.

Run: python tests/reliability/kill.py [--kills 30] [--seed 0] [--only run save]
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401 - imported once, before processes are forked

import mijax
from mijax import experiment, io, models, train
from mijax._errors import MijaxError
from mijax.core import _journal
from mijax.data import Examples

if jax.config.jax_compilation_cache_dir is None:
    cache = Path(__file__).parents[2] / ".cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# A save after every chunk: with half a minute between them nothing would be resumed.
_journal.SECONDS_BETWEEN_SAVES = 0.0
FORK = multiprocessing.get_context("fork")
EXPERIMENT = '''
"""Counted: steps that are kept, and a sweep that is resumed.

Run: mijax run counted
"""
import kill
import numpy as np
import mijax.experiment


class Config(mijax.experiment.Config):
    steps: int = 6
    "Number of steps."


def run(config, run):
    total = 0.0
    with run.progress("steps") as progress:
        for step in range(config.steps):
            file = run.scratch / f"step{step}.npy"
            if not file.exists():
                draw = np.random.default_rng(step).normal(size=50_000)
                mijax.io.replace_file(file, lambda new: save(new, draw))
            total += float(np.load(file).sum())
            progress(step + 1, config.steps)
    run.number("total", total)
    values = kill.swept(run.scratch / "sweep.npz")
    run.number("swept", float(values.sum()))
    run.page("page", f"<!doctype html><p>{total}</p>")


def save(path, array):
    with path.open("wb") as file:
        np.save(file, array)
'''


def digest(*arrays):
    """Return the SHA-256 of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def swept(file):
    """Sweep a tiny model over layers, heads and positions in many chunks."""
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    tokens = jnp.arange(21).reshape(3, 7) % 50
    found = mijax.sweep(
        model,
        tokens,
        mijax.Zero().at("z"),
        over=("layer", "head", "position"),
        metric=mijax.logit_difference(5, 6),
        chunks=mijax.Chunks(memory=30_000, resume=str(file)),
    )
    return np.asarray(found.values)


class Noisy(train.AbstractObjective):
    """A regression with noise that is drawn in every step."""

    def key(self):
        return jax.random.key(1)

    def start(self, key):
        return jax.random.normal(key, (64, 64)), None

    def loss(self, params, memory, batch, step):
        noise = 0.1 * jax.random.normal(step.key, batch.x.shape)
        return jnp.mean(((batch.x + noise) @ params - batch.x) ** 2), ({}, None)

    def optimiser(self):
        return optax.adam(1e-2)


class Sweep:
    """A sweep with a file to resume from."""

    def work(self, folder):
        """Run the job in a folder and return a digest of its result."""
        return digest(swept(folder / "out" / "sweep.npz"))

    def check(self, folder):
        """Raise if what a killed process left is broken."""


class Training(Sweep):
    """A training with checkpoints and a log."""

    def work(self, folder):
        """Train, keeping a checkpoint every two steps."""
        rows = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
        log = folder / "out" / "log.jsonl"
        state = train.fit(
            Noisy(),
            Examples(jnp.asarray(rows), batch=8, seed=0),
            steps=12,
            sinks=[train.Jsonl(log)],
            report=1,
            checkpoint=folder / "out" / "checkpoints",
            every=2,
        )
        return digest(state.params, np.frombuffer(log.read_bytes(), np.uint8))


class Run(Sweep):
    """An experiment that replaces an older run."""

    def work(self, folder):
        """Run an experiment into `out/run`."""
        script = folder / "counted"
        if not script.exists():
            io.replace_folder(
                script,
                lambda new: (new / "experiment.py").write_text(EXPERIMENT),
            )
            (script / "mijax_files.json").unlink()
        sys.path.insert(0, str(Path(__file__).parent))
        result = experiment.execute(script, out=folder / "out" / "run")
        values = [float(number.value) for number in result.numbers]
        io.check_files(folder / "out" / "run")
        return digest(values)

    def check(self, folder):
        """The run folder is complete or not there."""
        if (folder / "out" / "run").exists():
            io.check_files(folder / "out" / "run")
            experiment.read_result(folder / "out" / "run")


class Save(Sweep):
    """Models and checkpoints that are saved again and again."""

    SPEC = models.AttentionOnlySpec(layers=2, embed=64, vocab=200)
    VERSIONS = 6

    def model(self, version):
        """Return the model of a version."""
        return models.init(self.SPEC, jax.random.key(version))

    def work(self, folder):
        """Save versions over each other; return what the last one loads as."""
        for version in range(self.VERSIONS):
            model = self.model(version)
            models.save(model, self.SPEC, folder / "out" / "model")
            io.save_checkpoint(model, folder / "out" / "checkpoint")
        return digest(*self.loaded(folder, "model"), *self.loaded(folder, "checkpoint"))

    def loaded(self, folder, name):
        """Return the arrays that were saved."""
        path = folder / "out" / name
        if name == "model":
            return jax.tree.leaves(models.load(path).model)
        return jax.tree.leaves(io.load_checkpoint(self.model(0), path))

    def check(self, folder):
        """Whatever is there loads as one of the versions."""
        known = {
            digest(*jax.tree.leaves(self.model(version)))
            for version in range(self.VERSIONS)
        }
        for name in ("model", "checkpoint"):
            if (folder / "out" / name).exists():
                found = digest(*self.loaded(folder, name))
                assert found in known, f"{name} is none of the saved versions"


JOBS = {"run": Run(), "training": Training(), "sweep": Sweep(), "save": Save()}
THEIRS = (
    *("notes.txt", "out/notes.txt", "out/run.previous/chapter.txt"),
    *("out/run.partial.txt", "out/.run.mijax-mine/chapter.txt"),
    *("out/model.previous/chapter.txt", "out/.model.tmp/chapter.txt"),
    *("out/checkpoints.txt", "out/sweep.npz.part", "out/.checkpoint.part/a.txt"),
)


def plant(folder):
    """Put files of the user around every output."""
    for name in THEIRS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def touched(folder):
    """Return the files of the user that are not as they were."""
    return [
        name
        for name in THEIRS
        if not (folder / name).is_file()
        or (folder / name).read_text() != f"mine: {name}"
    ]


def strange(folder):
    """Return the leftovers of a finished job, neither output nor files of the user."""
    theirs = {Path(name).parts[1] for name in THEIRS if name.startswith("out/")}
    outputs = {"run", "checkpoints", "log.jsonl", "sweep.npz", "model", "checkpoint"}
    found = {path.name for path in (folder / "out").iterdir()}
    return sorted(found - theirs - outputs)


def report(pipe, function, folder):
    """Send the result of a function, or its error, to the parent."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            pipe.send(("ok", function(folder)))
        except (MijaxError, AssertionError, OSError) as error:
            pipe.send(("error", f"{type(error).__name__}: {error}"))


def in_process(function, folder, kill_after=None):
    """Run a function in a fresh process; return its status, result and seconds."""
    mine, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=report, args=(its, function, folder))
    begun = time.monotonic()
    process.start()
    its.close()
    process.join(kill_after) if kill_after is not None else None
    if kill_after is not None and process.is_alive():
        process.kill()
        process.join()
        return "killed", None, kill_after
    try:
        status, value = mine.recv()
    except EOFError:
        status, value = "error", f"the process ended with code {process.exitcode}"
    process.join()
    return status, value, time.monotonic() - begun


def trial(job, wanted, moment):
    """Kill a job once and resume it; return whether it was killed, and faults."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant(folder)
        killed = in_process(job.work, folder, moment)[0] == "killed"
        faults = [f"{theirs} was touched by the kill" for theirs in touched(folder)]
        status, value, _ = in_process(job.check, folder)
        faults += [] if status == "ok" else [f"left: {value}"]
        status, value, _ = in_process(job.work, folder)
        if status != "ok" or value != wanted:
            faults.append(f"resumed: {value if status != 'ok' else 'other numbers'}")
        faults += [f"{theirs} was touched by the resume" for theirs in touched(folder)]
        faults += [f"{extra} was left behind" for extra in strange(folder)]
    return killed, faults


def full(job):
    """Run a job twice in full; return its result and the seconds of the second run."""
    results = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            plant(Path(name))
            results.append(in_process(job.work, Path(name)))
    (status, value, _), (_, again, seconds) = results
    assert status == "ok", value
    assert value == again, "two full runs differ"
    return value, seconds


def main():
    """Kill every job and print a table."""
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__ or ""))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=JOBS, default=list(JOBS))
    options = parser.parse_args()
    bad = 0
    for name in options.only:
        draw = random.Random(f"{options.seed} {name}")
        wanted, seconds = full(JOBS[name])
        kills, found = 0, []
        while kills < options.kills:
            moment = draw.uniform(0.0, seconds)
            killed, faults = trial(JOBS[name], wanted, moment)
            kills += killed
            found += [f"at {moment:.3f} s: {fault}" for fault in faults]
            seconds = seconds if killed else moment
        bad += len(found)
        print(
            f"{name}: {kills} kills within {seconds:.2f} s, {len(found)} faults",
            flush=True,
        )
        print("".join(f"  {line}\n" for line in found), end="", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
