import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mijax
from mijax._errors import ConfigError
from mijax.cli import main
from mijax.experiment import _discover as discover
from mijax.io._manifest import write_manifest

COMMANDS = ["list", "run", "reproduce", "show", "patch", "logits", "attention"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  mijax {command}" in text


def test_help_and_version(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main(["--version"]) == 0
    assert re.fullmatch(r"mijax \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run"], "give an experiment"),
        (["run", "nothing"], "no experiment 'nothing'"),
        (["run", "toy/toy.yaml", "--promts", "3"], "Did you mean '--prompts'"),
        (["run", "toy/toy.yaml", "--prompts", "x"], "--prompts"),
        (["run", "toy/toy.yaml", "--out", "toy/toy.yaml/x"], "Cannot write"),
        (["show", "nothing"], "not a finished run"),
        (["show", "a", "--jsno"], "does not take '--jsno'"),
        (["patch", "model"], "--clean"),
        (["logits", "model", "text", "--top", "0"], "--top 0"),
        (["attention", "model", "text", "--layer", "x"], "invalid int"),
        (["--bad"], "--bad"),
        (["reproduce", "toy", "--which", "none"], "--which without --all"),
        (["reproduce", "toy", "--size", "tiny", "--page", "p"], "--size, --page"),
    ],
)
def test_errors_are_one_line(capsys, toy, words, says):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert says in said.err


def test_debug_shows_the_traceback(toy):
    for words in (["--debug", "run", "nothing"], ["run", "nothing", "--debug"]):
        with pytest.raises(ConfigError):
            main(words)


def test_list(capsys, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(discover, "shipped_folder", lambda: tmp_path)
    assert main(["list"]) == 0
    assert re.search(r"toy +A toy that counts\.", capsys.readouterr().out)


def test_run_then_show(capsys, toy):
    assert main(["run", "toy/toy.yaml", "--prompts", "4"]) == 0
    text = capsys.readouterr().out
    assert "Heads <i>" in text
    assert re.search(r"score +0\.8 ± 0\.1 +1 \[0\.5, 1\] +FAIL +\[\d\]", text)
    assert re.search(r"\[\d\] Table 1", text)
    assert "runs/toy/report.html" in text
    assert main(["show", "runs/toy"]) == 0
    text = capsys.readouterr().out
    assert "FAIL" in text
    assert "runs/toy/curve.png" in text


def test_help_of_an_experiment_lists_its_options(capsys, toy):
    assert main(["run", "toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert "a claim about counting" in text
    assert re.search(r"--prompts INT +How many prompts\. \(default: 3\)", text)
    assert "--train.steps" in text
    assert "example:" in text


def test_reproduce(capsys, toy):
    assert main(["reproduce", "toy", "--out", "a"]) == 0
    assert capsys.readouterr().out.count("PASS") == 3
    assert main(["reproduce", "toy", "--out", "b", "--prompts", "9"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["reproduce", "a/config.yaml"]) == 0
    capsys.readouterr()
    toy.write_text("experiment: toy\n")
    assert main(["reproduce", "toy"]) == 2
    assert "no published numbers" in capsys.readouterr().err


def test_missing_number_is_not_reproduced(capsys, toy):
    text = toy.read_text().replace("  score:", "  other:")
    toy.write_text(text)
    assert main(["reproduce", "toy"]) == 1
    assert "missing" in capsys.readouterr().out


def start(*words):
    # A shell that starts jobs in the background has them ignore interrupts.
    code = (
        "import signal, sys; from mijax.cli import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(mijax.__file__).parent.parent)},
    )


def test_interrupt_says_how_to_resume(toy, tmp_path):
    script = toy.parent / "experiment.py"
    slow = 'run.seed("model", 3)\n    import time; time.sleep(60)'
    script.write_text(script.read_text().replace('run.seed("model", 3)', slow))
    with start("run", "toy") as process:
        mark = tmp_path / "runs" / "toy.partial" / "scratch" / "step3"
        for _ in range(600):
            if mark.exists():
                break
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Repeat the same command to resume" in said
    assert "Traceback" not in said


def test_reader_that_leaves(toy):
    with start("run", "toy", "--help") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        process.wait(timeout=60)
    assert "Traceback" not in said
    assert "Exception" not in said


def test_reproduce_all_of_a_size(capsys, toy, monkeypatch):
    text = toy.read_text().replace("experiment: toy", "experiment: toy\nsize: small")
    toy.write_text(text)
    wrong = text.replace("prompts: 3", "prompts: 9")
    (toy.parent / "worse.yaml").write_text(wrong)
    (toy.parent / "other.yaml").write_text(text.replace("small", "tiny"))
    (toy.parent / "whole.yaml").write_text(text.replace("small", "full"))
    monkeypatch.setattr(discover, "shipped_folder", lambda: toy.parent.parent)
    assert main(["list"]) == 0
    assert "small" in capsys.readouterr().out
    words = ["reproduce", "--all", "--out", "kept", "--page", "page.md"]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "toy/worse: FAIL" in printed.err
    page = Path("page.md").read_text()
    assert "| `toy` |" in page
    assert "toy/other" not in page
    assert page.count("FAIL") >= 2
    assert "| `toy/whole` | not run |" in page.split("## At full size")[1]
    # What is there is read, not run again.
    before = Path("kept/toy/record.json").stat().st_mtime_ns
    assert main(words) == 1
    assert Path("kept/toy/record.json").stat().st_mtime_ns == before
    # A run from before an option counts where the option is at its default.
    kept = Path("kept/toy/config.yaml")
    lines = kept.read_text().splitlines(keepends=True)
    older = [line for line in lines if not line.startswith("  word:")]
    assert len(older) == len(lines) - 1
    kept.write_text("".join(older))
    assert main(words) == 1
    assert Path("kept/toy/record.json").stat().st_mtime_ns == before
    # It is not replaced as long as it holds an edit that mijax did not make.
    assert main([*words, "--which", "all"]) == 1
    assert "which was" in capsys.readouterr().out
    assert Path("kept/toy/record.json").stat().st_mtime_ns == before
    write_manifest(kept.parent)
    assert main([*words, "--which", "all"]) == 1
    assert Path("kept/toy/record.json").stat().st_mtime_ns > before
    assert main(["run", "toy/whole", "--out", "kept/toy-whole"]) == 0
    (toy.parent / "third.yaml").write_text(text)
    assert main([*words, "--which", "none"]) == 1
    page = Path("page.md").read_text()
    assert "There is no finished run" in page
    assert "| `toy/whole` | 20" in page
    assert not Path("kept/toy-third").exists()
    assert main([*words, "--size", "medium"]) == 2
    assert main([*words, "toy"]) == 2
    assert "reproduce that one alone" in capsys.readouterr().err


def test_reproduce_all_without_a_result_fails(capsys, toy, monkeypatch):
    text = toy.read_text().replace("experiment: toy", "experiment: toy\nsize: small")
    toy.write_text(text)
    monkeypatch.setattr(discover, "shipped_folder", lambda: toy.parent.parent)
    assert main(["reproduce", "--all", "--out", "kept", "--which", "none"]) == 1
    assert "not run" in capsys.readouterr().err
    assert main(["reproduce", "--all", "--out", "kept"]) == 0


def test_the_module_has_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "mijax", "rnu"],
        env=os.environ | {"PYTHONPATH": str(Path(mijax.__file__).parent.parent)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
