"""Two processes run one experiment: the same numbers, written once."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mijax.cli import main

SCRIPT = '''"""Ablates every head at every position."""

import os

import jax
import jax.numpy as jnp
import numpy as np

import mijax
import mijax.experiment


class Config(mijax.experiment.Config):
    """What is run."""

    memory: int = 60_000
    "Bytes of one chunk."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the sweep on every device of every process."""

    def progress(done, total):
        if "STOP" in os.environ and 2 * done > total:
            raise KeyboardInterrupt

    found = mijax.sweep(
        mijax.testing.tiny_llama(jax.random.key(3)),
        jnp.array([[5, 9, 2, 7, 11, 3, 8], [60, 50, 40, 30, 20, 10, 6]]),
        mijax.Zero().at("z"),
        over=("layer", "head", "position"),
        metric=mijax.logit_difference(4, 7),
        mesh=run.mesh,
        progress=progress,
        chunks=mijax.Chunks(config.memory, resume=str(run.scratch / "heads.npz")),
    )
    run.number("processes", jax.process_count())
    run.number("devices", jax.device_count())
    run.number("sum", float(np.abs(found.values).sum()))
'''
CONFIG = """experiment: heads
description: Ablates every head.
size: tiny
config: {memory: 60000}
"""
MIJAX = "import sys; from mijax.cli import main; sys.exit(main())"


def start(folder, *options, **environment):
    words = ["run", str(folder / "heads"), "--out", str(folder / "out"), *options]
    flags = "--xla_force_host_platform_device_count=2"
    return subprocess.Popen(
        [sys.executable, "-c", MIJAX, *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_run_goes_on_in_two_processes(tmp_path):
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "experiment.py").write_text(SCRIPT)
    (tmp_path / "heads" / "heads.yaml").write_text(CONFIG)
    alone = start(tmp_path, STOP="1")
    assert "interrupted" in alone.communicate(timeout=300)[1]
    assert (tmp_path / "out.partial" / "scratch" / "heads.npz").exists()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = ("--distributed", "--coordinator", address, "--processes", "2")
    both = [start(tmp_path, *words, "--process", str(i)) for i in (0, 1)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "report: " in said[0][0]
    assert "report: " not in said[1][0]
    out = tmp_path / "out"
    assert json.loads((out / "record.json").read_text())["resumed"]
    found = json.loads((out / "result.json").read_text())["numbers"]
    ours = {number["name"]: number["value"] for number in found}
    assert (ours["processes"], ours["devices"]) == (2, 4)
    again = start(tmp_path, "--out", str(tmp_path / "single"))
    again.communicate(timeout=300)
    assert again.returncode == 0
    found = json.loads((tmp_path / "single" / "result.json").read_text())["numbers"]
    assert found[-1]["value"] == pytest.approx(ours["sum"], rel=1e-5)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--process", "0"], "give --distributed with the address"),
        (["--distributed", "--process", "0"], "--coordinator is missing"),
    ],
)
def test_incomplete_addresses_are_refused(words, says, capsys):
    assert main(["run", "induction", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
