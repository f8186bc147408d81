"""Runs that are killed, and runs of several processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).parent.parent / "training_program.py"


def start(folder, *arguments, devices=1):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(PROGRAM), str(folder), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def result(folder):
    with np.load(folder / "result.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder))
    return result(folder)


def test_killed_and_resumed_is_uninterrupted(whole, tmp_path):
    slow = start(tmp_path, "--slow")
    kept = tmp_path / "run"
    for _ in range(1200):
        if any(name.isdigit() and int(name) > 8 for name in names(kept)):
            break
        assert slow.poll() is None, slow.stderr.read()
        time.sleep(0.1)
    slow.send_signal(signal.SIGKILL)
    slow.wait()
    slow.stderr.close()
    assert not (tmp_path / "result.npz").exists()
    finish(start(tmp_path))
    for name, expected in whole.items():
        np.testing.assert_array_equal(result(tmp_path)[name], expected)


def names(folder):
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_two_processes_train_and_keep_one_dictionary(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [start(tmp_path, "--process", i, "--port", port, devices=2) for i in (0, 1)]
    for process in both:
        finish(process)
    for name, expected in whole.items():
        np.testing.assert_allclose(result(tmp_path)[name], expected, atol=1e-5)
    # What both kept is one checkpoint: a third goes on from it and has nothing to do.
    (tmp_path / "result.npz").unlink()
    again = start(tmp_path, "--process", 0, "--port", port, "--alone", devices=4)
    finish(again)
    for name, expected in whole.items():
        np.testing.assert_allclose(result(tmp_path)[name], expected, atol=1e-5)
