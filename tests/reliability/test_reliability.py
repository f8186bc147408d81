"""Short forms of the scripts for killed processes and flipped bits."""

import subprocess
import sys
from pathlib import Path

import pytest
from reliability import flips


def test_killed_jobs_resume_with_identical_results():
    script = Path(__file__).parent / "kill.py"
    command = [sys.executable, script, "--kills", "1", "--only", "training", "save"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 faults") == 2


@pytest.mark.parametrize("kind", [k for k in flips.KINDS if k != "training"])
def test_flipped_bits_never_come_back_as_numbers(kind, tmp_path):
    refused, _, silent = flips.flip(flips.KINDS[kind], tmp_path / "saved", 15, 0)
    assert silent == 0
    assert refused > 5
