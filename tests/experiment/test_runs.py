import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from toy import make_toy

import mijax
from mijax._errors import ConfigError, OutputError, ShapeError
from mijax.experiment import Run, Silent, execute, load, read_result, reproduce
from mijax.experiment._runner import _locked

FILES = [
    "config.yaml",
    "curve.png",
    "curve.svg",
    "mijax_files.json",
    "page.html",
    "record.json",
    "report.html",
    "result.json",
]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_run_folder(tmp_path):
    out = tmp_path / "deep" / "out"
    result = execute(make_toy(tmp_path), out=out)
    assert names(out) == FILES
    assert names(out.parent) == ["out"]
    assert read_result(out) == result
    assert result.passed
    record = json.loads((out / "record.json").read_text())
    assert record["seeds"] == {"model": 3}
    assert record["weights"] == {"toy": "abc"}
    assert {"jax", "jaxlib", "equinox", "mijax"} <= set(record["packages"])
    assert record["devices"]
    assert record["timings"]["stages_seconds"].keys() == {"steps"}
    assert record["resumed"] is False


def test_config_runs_again_as_is(tmp_path, monkeypatch):
    first = execute(make_toy(tmp_path), ["--prompts", "4"], out=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    again = execute("out/config.yaml")
    assert again.numbers == first.numbers
    assert again.verdicts == first.verdicts
    assert again.folder.name == "out-again"
    texts = [(r.folder / "config.yaml").read_text() for r in (first, again)]
    assert texts[0].replace(str(first.folder), "") == texts[1]


def kill(tmp_path, out, *words):
    file = make_toy(tmp_path)
    code = (
        "import sys; from mijax.experiment import execute; "
        "execute(sys.argv[1], sys.argv[3:], out=sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), str(out), "--kill", *words],
        env=os.environ | {"PYTHONPATH": str(Path(mijax.__file__).parent.parent)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    return file


def test_killed_run_resumes(tmp_path):
    out = tmp_path / "out"
    file = kill(tmp_path, out)
    assert not out.exists()
    partial = tmp_path / "out.partial"
    assert names(partial / "scratch") == ["log", "step0", "step1"]
    result = execute(file, ["--kill"], out=out)
    assert names(out) == FILES
    assert not partial.exists()
    # Four lines: the steps before the kill were not done a second time.
    assert result.numbers[0].value == 4
    assert json.loads((out / "record.json").read_text())["resumed"] is True


class Impatient(Silent):
    """An observer that interrupts the first stage."""

    said: ClassVar[list[str]] = []

    def stage(self, name):
        raise KeyboardInterrupt

    def message(self, text):
        self.said.append(text)


def test_other_config_starts_afresh(tmp_path):
    out = tmp_path / "out"
    file = kill(tmp_path, out)
    watcher = Impatient()
    with pytest.raises(KeyboardInterrupt):
        execute(file, out=out, observer=watcher)
    assert "starting afresh" in watcher.said[0]
    assert not any((tmp_path / "out.partial" / "scratch").glob("*"))


def test_older_run_stays_until_the_new_one_is_done(tmp_path):
    out = tmp_path / "out"
    file = make_toy(tmp_path)
    execute(file, out=out)
    before = (out / "result.json").read_text()
    kill(tmp_path, out)
    assert (out / "result.json").read_text() == before
    assert execute(file, {"prompts": 1}, out=out).numbers[1].value == 0.25
    assert names(tmp_path) == ["out", "toy"]


def test_a_previous_folder_of_the_user_is_not_touched(tmp_path):
    out = tmp_path / "out"
    file = make_toy(tmp_path)
    (tmp_path / "out.previous").mkdir()
    (tmp_path / "out.previous" / "chapter").write_text("mine")
    for _ in range(2):
        execute(file, out=out)
        assert (tmp_path / "out.previous" / "chapter").read_text() == "mine"
    assert names(tmp_path) == ["out", "out.previous", "toy"]


def test_a_run_is_replaced_only_if_mijax_wrote_all_of_it(tmp_path):
    out = tmp_path / "out"
    file = make_toy(tmp_path)
    out.mkdir()
    (out / "record.json").write_text("{}")
    (out / "chapter").write_text("mine")
    with pytest.raises(OutputError, match=r"is not a run of mijax.*may be yours"):
        execute(file, out=out)
    assert names(out) == ["chapter", "record.json"]
    (out / "chapter").unlink()
    (out / "record.json").unlink()
    execute(file, out=out)
    (out / "notes").write_text("mine")
    with pytest.raises(OutputError, match="holds 'notes', which mijax did not write"):
        execute(file, out=out)
    (out / "notes").unlink()
    (out / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'report\.html', which was changed"):
        execute(file, out=out)
    assert (out / "report.html").read_text() == "mine"
    mijax.io.replace_folder(tmp_path / "b", lambda new: (new / "a").write_text(""))
    with pytest.raises(OutputError, match="for something else"):
        execute(file, out=tmp_path / "b")


def test_links_are_not_followed(tmp_path):
    file = make_toy(tmp_path)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter").write_text("mine")
    (tmp_path / "out.partial").symlink_to("thesis")
    with pytest.raises(OutputError, match=r"out\.partial is not an .* is a link"):
        execute(file, out=tmp_path / "out")
    (tmp_path / "out.partial").unlink()
    (tmp_path / "out").symlink_to("thesis")
    with pytest.raises(OutputError, match="is a link"):
        execute(file, out=tmp_path / "out")
    (tmp_path / "out").unlink()
    assert names(thesis) == ["chapter"]


@pytest.mark.parametrize("left", ["", "lock", ".unfinished.json.mijax-abcdefgh/new"])
def test_a_run_killed_before_its_first_write_starts(tmp_path, left):
    out, file = tmp_path / "out", make_toy(tmp_path)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / ".out.partial.mijax-lock").touch()
    if left:
        (tmp_path / "out.partial" / left).parent.mkdir(exist_ok=True)
        (tmp_path / "out.partial" / left).touch()
    execute(file, out=out)
    assert names(tmp_path) == ["out", "toy"]


def test_a_working_folder_is_checked_and_taken_up_again(tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    file = kill(tmp_path, out)
    (partial / "chapter").write_text("mine")
    before = names(partial)
    for words in (["--kill"], []):
        with pytest.raises(OutputError, match="holds 'chapter', which mijax did not"):
            execute(file, words, out=out)
        assert names(partial) == before
    (partial / "chapter").unlink()
    (partial / "scratch").rename(tmp_path / "aside")
    (partial / "scratch").symlink_to(tmp_path / "aside")
    with pytest.raises(OutputError, match="holds 'scratch', which mijax did not"):
        execute(file, out=out)
    (partial / "scratch").unlink()
    (tmp_path / "aside").rename(partial / "scratch")
    shutil.copytree(partial, tmp_path / "copy")
    for text in ('{"name": "to', ""):
        if not partial.exists():
            (tmp_path / "copy").rename(partial)
        (partial / "unfinished.json").write_text(text)
        # Four lines: the steps before the kill were not done a second time.
        assert execute(file, ["--kill"], out=out).numbers[0].value == 4
        assert json.loads((out / "record.json").read_text())["resumed"] is True
    assert names(tmp_path) == ["out", "toy"]


def test_strange_folders_are_refused(tmp_path):
    file = make_toy(tmp_path)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter").write_text("1")
    with pytest.raises(OutputError, match="is not a run"):
        execute(file, out=thesis)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "chapter").write_text("1")
    with pytest.raises(OutputError, match="not an unfinished run"):
        execute(file, out=tmp_path / "out")
    assert (tmp_path / "out.partial" / "chapter").exists()


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*out.*--out"):
        execute(make_toy(tmp_path), out=tmp_path / "file" / "out")


def test_second_process_is_kept_out(tmp_path):
    file = make_toy(tmp_path)
    kill(tmp_path, tmp_path / "out")
    with (
        _locked(tmp_path / "out.partial"),
        pytest.raises(OutputError, match="another process"),
    ):
        execute(file, ["--kill"], out=tmp_path / "out")
    assert (tmp_path / "out.partial" / "scratch" / "step1").exists()


def test_failing_script_leaves_its_scratch(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    wrong = "if (run.scratch.parent.parent / 'bad').exists(): raise RuntimeError"
    new = script.read_text().replace('run.seed("model", 3)', wrong)
    script.write_text(new)
    (tmp_path / "bad").touch()
    with pytest.raises(RuntimeError):
        execute(file, out=tmp_path / "out")
    (tmp_path / "bad").unlink()
    execute(file, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["resumed"] is True


@pytest.mark.parametrize("name", ["experiment.py", "_beside.py"])
def test_a_script_that_has_changed_starts_afresh(tmp_path, name):
    out = tmp_path / "out"
    file = kill(tmp_path, out)
    script = file.parent / name
    before = script.read_text() if script.exists() else ""
    script.write_text(before + "\nFACTOR = 2\n")
    execute(load(file), {"kill": False}, out=tmp_path / "other")
    digests = [load(file).digest, load(make_toy(tmp_path)).digest]
    assert digests[0] == digests[1]
    script.write_text(before + "\nFACTOR = 2\n")
    with pytest.raises(KeyboardInterrupt):
        execute(file, ["--kill"], out=out, observer=Impatient())
    assert not any((tmp_path / "out.partial" / "scratch").glob("*"))


def test_all_code_counts_and_nothing_else(tmp_path):
    file = make_toy(tmp_path)
    first = load(file).code
    (file.parent / ".#experiment.py").symlink_to("nobody@nowhere:1")
    (file.parent / "._experiment.py").write_bytes(b"\xff\xfe")
    (file.parent / "notes.txt").write_text("notes")
    assert load(file).code == first
    below = file.parent / "below"
    below.mkdir()
    (below / "part.py").write_text("A = 1\n")
    second = load(file).code
    (below / "part.py").write_bytes("A = '\u00e9'\n".encode())
    assert len({first, second, load(file).code}) == 3


def test_compiles_are_counted(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    code = "import jax; jax.jit(lambda x: x * 3 + 1)(2.0); run.seed('model', 3)"
    script.write_text(script.read_text().replace('run.seed("model", 3)', code))
    execute(file, out=tmp_path / "out")
    timings = json.loads((tmp_path / "out" / "record.json").read_text())["timings"]
    assert timings["compile_count"] >= 1
    assert timings["compile_seconds"] > 0


def test_digest_is_of_the_config_alone(tmp_path):
    plan = load(make_toy(tmp_path))
    assert plan.digest == load(make_toy(tmp_path)).digest
    assert plan.digest != plan.override({"prompts": 4}).digest


def test_numbers(tmp_path):
    run = Run(tmp_path)
    interval = SimpleNamespace(
        mean=jnp.array(1.5), low=np.float32(1), high=2, n=jnp.array(4)
    )
    run.number("interval", interval)
    run.number("array", jnp.array([2.5]))
    run.number("count", np.int64(3))
    run.number("words", ["a", "b"])
    texts = [number.text for number in run.notes.numbers]
    assert texts == ["1.5 [1, 2]", "2.5", "3", "a, b"]
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        run.number("many", jnp.ones(2))
    with pytest.raises(ConfigError, match="twice"):
        run.number("count", 3)
    with pytest.raises(ShapeError, match="2 cells"):
        run.table("t", ["a"], [[1, 2]])
    for name in ("a/b", "", "report", "..", "page"):
        run.page("page", "") if name == "page" else None
        with pytest.raises(OutputError):
            run.page(name, "")


def test_numbers_that_are_not_finite_survive(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    text = script.read_text().replace("config.prompts / 4", "float('nan')")
    script.write_text(text)
    result = execute(file, out=tmp_path / "out")
    assert result.verdicts[0].verdict == "FAIL"
    assert np.isnan(read_result(tmp_path / "out").numbers[1].value)


def test_number_that_never_came_is_missing(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    script.write_text(script.read_text().replace('"score", Int', '"other", Int'))
    result = execute(file, out=tmp_path / "out")
    assert result.verdicts[0].verdict == "missing"
    assert not result.passed


def test_results_of_no_run(tmp_path):
    with pytest.raises(ConfigError, match="not a finished run"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a result"):
        read_result(tmp_path)


def test_report_needs_nothing_else(tmp_path):
    result = execute(make_toy(tmp_path), out=tmp_path / "out")
    report = (result.folder / "report.html").read_text()
    for outside in ('src="http', 'href="', "url(", "@import", "<link", "<script src"):
        assert outside not in report
    assert "data:image/svg+xml;base64," in report
    assert "<b>note</b>" not in report
    assert "&lt;b&gt;note" in report
    assert "A &lt;curve&gt;." in report
    assert "Table 1" in report
    assert "prefers-color-scheme" in report


def verdicts(file, out):
    (found,) = reproduce([str(file)], out=out, which="none")
    return found.result and [verdict.verdict for verdict in found.result.verdicts]


def test_a_finished_run_is_judged_by_what_is_expected_now(tmp_path):
    file = make_toy(tmp_path)
    execute(file, out=tmp_path / "runs" / "toy")
    assert verdicts(file, tmp_path / "runs") == ["PASS", "PASS", "PASS"]
    file.write_text(file.read_text().replace("equals: 4", "equals: 5"))
    assert verdicts(file, tmp_path / "runs") == ["PASS", "FAIL", "PASS"]


def test_only_texts_that_are_open_may_have_been_given(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    fields = "edges: int | None = None\n    data: str | None = None\n    word: str"
    script.write_text(script.read_text().replace("word: str", fields))
    out = tmp_path / "runs"
    execute(file, ["--data", "here"], out=out / "toy")
    assert verdicts(file, out) is not None
    execute(file, ["--edges", "5"], out=out / "toy")
    assert verdicts(file, out) is None
