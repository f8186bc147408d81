"""Writers replace only what mijax wrote and leave nothing half-written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax import dictionaries as d
from mijax import models
from mijax._errors import LoadError, OutputError
from mijax.io import _durable as durable
from mijax.io import (
    check_files,
    load_checkpoint,
    locked,
    publish,
    replace_file,
    replace_folder,
    save_checkpoint,
)

SPEC = models.AttentionOnlySpec(layers=1, embed=16, vocab=50)
SAE = d.untrained(d.TopK(4), d.SAE(16), latents=32, key=jax.random.key(0))


def one(folder, text="new"):
    replace_folder(folder, lambda new: (new / "a").write_text(text))


WRITERS = {
    "folder": one,
    "checkpoint": lambda path: save_checkpoint({"a": jnp.ones(3)}, path),
    "model": lambda path: models.save(models.init(SPEC, jax.random.key(0)), SPEC, path),
    **{
        format: lambda path, format=format: d.save(SAE, path, format=format)
        for format in ("mijax", "saelens", "sparsify", "dictionary_learning")
    },
}


def tree(folder):
    """Every file and link below a folder, with its contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def refused(parent, write, match, error=OutputError):
    """Run a call that must raise in one line and change nothing."""
    before = tree(parent)
    with pytest.raises(error, match=match) as caught:
        write()
    assert "\n" not in str(caught.value)
    assert tree(parent) == before


def thesis(path):
    (path / "thesis").mkdir(parents=True)
    (path / "thesis" / "chapter.txt").write_text("mine")


@pytest.mark.parametrize("name", WRITERS)
def test_folders_of_the_user_are_refused(name, tmp_path):
    write, path = WRITERS[name], tmp_path / "out"
    thesis(path)
    refused(tmp_path, lambda: write(path), "not a folder that mijax wrote")
    (path / "mijax_checkpoint.json").write_text("{}")
    (path / "mijax_files.json").write_text("{}")
    refused(tmp_path, lambda: write(path), "not a folder that mijax wrote")


@pytest.mark.parametrize("name", WRITERS)
def test_only_what_was_written_is_replaced(name, tmp_path):
    write, path = WRITERS[name], tmp_path / "out"
    write(path)
    write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (path / "notes.txt").write_text("mine")
    refused(tmp_path, lambda: write(path), "holds 'notes.txt', which mijax did not")
    (path / "notes.txt").unlink()
    file = next(p for p in sorted(path.rglob("*")) if p.is_file())
    file.write_bytes(file.read_bytes() + b"edit")
    refused(tmp_path, lambda: write(path), "changed after|not a folder that mijax")


@pytest.mark.parametrize("name", WRITERS)
def test_links_are_not_followed(name, tmp_path):
    write, path = WRITERS[name], tmp_path / "out"
    write(tmp_path / "real")
    path.symlink_to("real")
    refused(tmp_path, lambda: write(path), "is a link")
    path.unlink()
    path.symlink_to("nowhere")
    refused(tmp_path, lambda: write(path), "is a link")


def test_an_empty_folder_of_the_user_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    one(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "new"
    (tmp_path / "out" / "mine").mkdir()
    refused(tmp_path, lambda: one(tmp_path / "out"), "holds 'mine'")


def test_files_replace_files_only(tmp_path):
    write = lambda path: replace_file(path, lambda new: new.write_text("new"))  # noqa: E731
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    thesis(tmp_path / "folder")
    refused(tmp_path, lambda: write(tmp_path / "link"), "is a link")
    refused(tmp_path, lambda: write(tmp_path / "folder"), "is a folder")
    refused(tmp_path, lambda: write(Path(os.devnull)), "is a device")
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("name", WRITERS)
def test_two_writers_of_one_folder(name, tmp_path):
    write, path = WRITERS[name], tmp_path / "out"
    write(path)
    with locked(path):
        refused(tmp_path, lambda: write(path), "being written by another process")
    write(path)


def test_files_that_come_during_the_writing_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "out"
    one(path, "old")

    def fill(new):
        (new / "a").write_text("new")
        (path / "notes.txt").write_text("mine")

    for works in (True, False):
        if not works:
            monkeypatch.setattr(durable, "exchange", lambda new, path: False)
        with pytest.raises(OutputError, match=r"holds 'notes.txt'"):
            replace_folder(path, fill)
        assert sorted(tree(tmp_path)) == [
            "out/a",
            "out/mijax_files.json",
            "out/notes.txt",
        ]
        assert (path / "a").read_text() == "old"
        (path / "notes.txt").unlink()
    one(path)
    assert (path / "a").read_text() == "new"


def test_a_folder_is_published(tmp_path):
    work, path = tmp_path / "work", tmp_path / "out"
    one(path, "old")
    thesis(tmp_path / "user")
    work.mkdir()
    (work / "b").write_text("new")
    refused(tmp_path, lambda: publish(work, tmp_path / "user"), "not a folder that")
    publish(work, path)
    assert sorted(tree(tmp_path)) == [
        "out/b",
        "out/mijax_files.json",
        "user/thesis/chapter.txt",
    ]
    check_files(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_nothing(name, tmp_path, monkeypatch):
    write, path = WRITERS[name], tmp_path / "out"
    write(path)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
    refused(tmp_path, lambda: write(path), "Cannot write .*No space left")
    refused(tmp_path, lambda: write(tmp_path / "new"), "Cannot write .*No space left")
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(durable.tempfile, "mkdtemp", read_only)
    refused(tmp_path, lambda: one(tmp_path / "out"), "Cannot write .*Read-only")
    text = lambda new: new.write_text("")  # noqa: E731
    refused(tmp_path, lambda: replace_file(tmp_path / "a", text), "Read-only")


def test_every_file_and_folder_is_synced_before_the_rename(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(durable, "sync", lambda path: events.append(Path(path).name))
    monkeypatch.setattr(
        durable.os, "replace", lambda a, b: (events.append("rename"), replace(a, b))
    )
    save_checkpoint({"a": jnp.ones(3)}, tmp_path / "out")
    rename = len(events) - 1 - events[::-1].index("rename")
    files = {path.name for path in (tmp_path / "out").rglob("*")}
    assert files | {"new"} <= set(events[:rename])
    assert events[rename + 1 :] == [tmp_path.name]


def test_leftovers_of_killed_processes_are_removed(tmp_path, monkeypatch):
    path = tmp_path / "out"
    one(path, "old")
    code = (
        "import os, signal, sys; from mijax.io import replace_folder; "
        "replace_folder(sys.argv[1], lambda new: os.kill(os.getpid(), signal.SIGKILL))"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    (left,) = tmp_path.glob(".out.mijax-????????")
    assert (path / "a").read_text() == "old"
    thesis(tmp_path / ".out.mijax-thesis12")
    # Killed between the two renames of a system that cannot exchange names.
    os.replace(path, left / "old")
    one(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.mijax-thesis12", "out"]
    assert (path / "a").read_text() == "new"


def test_two_processes_are_kept_apart_until_the_first_dies(tmp_path):
    path = tmp_path / "out"
    code = (
        "import sys, time; from mijax.io import locked\n"
        "with locked(sys.argv[1]):\n    print('locked', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    with (
        pytest.raises(OutputError, match=r"out is being written by another process"),
        locked(path),
    ):
        pass
    child.kill()
    child.communicate()
    with locked(path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["checkpoint", "model", "mijax", "saelens"])
def test_flipped_bits_are_refused(name, tmp_path):
    path = tmp_path / "out"
    WRITERS[name](path)
    load = {
        "checkpoint": lambda: load_checkpoint({"a": jnp.zeros(3)}, path),
        "model": lambda: models.load(path).model,
    }.get(name, lambda: d.load(path).dictionary)
    good = [np.asarray(leaf) for leaf in jax.tree.leaves(load())]
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.stat().st_size]
    rng, refusals = np.random.default_rng(0), 0
    for file in (*files, *rng.choice(np.array(files), 12)):
        data = bytearray(file.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        before = file.read_bytes()
        file.write_bytes(bytes(data))
        try:
            found = [np.asarray(leaf) for leaf in jax.tree.leaves(load())]
        except LoadError:
            refusals += 1
        else:  # the flip is in the white space of the list
            assert file.name == "mijax_files.json"
            assert all(map(np.array_equal, found, good))
        file.write_bytes(before)
    assert refusals >= len(files) + 8
    load()


def test_extra_files_do_not_prevent_loading(tmp_path):
    path = tmp_path / "out"
    WRITERS["model"](path)
    (path / "README.md").write_text("notes")
    models.load(path)
    (path / "config.json").write_text((path / "config.json").read_text() + "\n")
    with pytest.raises(LoadError, match=r"config\.json is damaged or was changed"):
        models.load(path)
    (path / "mijax_files.json").unlink()
    models.load(path)
