"""Folders of checkpoints hold nothing else, and are verified."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from mijax import train
from mijax._errors import OutputError
from mijax.io import locked
from mijax.train._checkpoints import Checkpoints

STATE = {"a": jnp.arange(64.0), "b": jnp.zeros((), jnp.int32)}


def save(folder, steps=(1, 2, 3)):
    with Checkpoints(folder, "job") as kept:
        for step in steps:
            kept.save(step, {**STATE, "b": jnp.int32(step)})


def load(folder):
    with Checkpoints(folder, "job") as kept:
        return kept.load(STATE)


def tree(folder):
    return {p: p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def refused(folder, match):
    before = tree(folder)
    with pytest.raises(OutputError, match=match) as caught:
        save(folder)
    assert "\n" not in str(caught.value)
    assert tree(folder) == before


def test_the_last_two_are_kept(tmp_path):
    save(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        *("2", "3", "mijax_checkpoints.json")
    }
    assert int(load(tmp_path / "run")["b"]) == 3


def test_files_of_the_user_are_refused(tmp_path):
    mine = tmp_path / "mine"
    (mine / "1").mkdir(parents=True)
    (mine / "1" / "chapter.txt").write_text("mine")
    refused(mine, "holds '1', which no training of mijax wrote")
    shutil.rmtree(mine / "1")
    (mine / "chapter.txt").write_text("mine")
    refused(mine, r"holds 'chapter\.txt'")
    run = tmp_path / "run"
    save(run)
    (run / "1").mkdir()
    (run / "1" / "chapter.txt").write_text("mine")
    refused(run, "holds '1', which no training")
    shutil.rmtree(run / "1")
    (run / "3" / "chapter.txt").write_text("mine")
    refused(run, "holds '3', which no training")
    (run / "3" / "chapter.txt").unlink()
    (run / "mijax_checkpoints.json").unlink()
    refused(run, r"has no mijax_checkpoints\.json")
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(OutputError, match="is a link"):
        save(tmp_path / "link")


def test_a_second_training_is_refused(tmp_path):
    save(tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(OutputError, match="another process"):
        load(tmp_path / "run")
    load(tmp_path / "run")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_damaged_checkpoint_is_refused(tmp_path):
    save(tmp_path / "run", steps=(1, 2))
    note = tmp_path / "run" / "2" / "note" / "metadata"
    content = json.loads(note.read_text())
    assert set(content["sha256"]) == {"a", "b"}
    content["sha256"]["a"] = "0" * 64
    note.write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"run/2 is damaged .*checksum of 'a'"):
        load(tmp_path / "run")
    note.write_text("{")
    with pytest.raises(OutputError, match="run/2 is damaged"):
        load(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "2")
    assert int(load(tmp_path / "run")["b"]) == 1


def test_a_log_of_something_else_is_not_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = ["notes\n", '{"loss": 1}\n', '{"step": 1}\nnotes', "[1]\n"]
    for text in lines:
        path.write_text(text)
        with pytest.raises(OutputError, match="holds lines that no training wrote"):
            train.Jsonl(path).open(0, 1)
        assert path.read_text() == text
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x": 1}\n{"ste')
    with train.Jsonl(path) as log:
        log.open(1, 3)
        log.write(2, {"x": np.float32(2).item()})
    assert path.read_text() == '{"step": 1, "x": 1}\n{"step": 2, "x": 2.0}\n'
