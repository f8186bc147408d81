"""Files to resume from are written durably, locked, and verified."""

import errno

import numpy as np
import pytest

from mijax._errors import OutputError
from mijax.core._journal import Journal
from mijax.core._plan import Cost, Lanes, layer_overhead, pack
from mijax.io import _durable as durable

VALUES = np.arange(6, dtype=np.float32)


def saved(path):
    with Journal(path, "job") as journal:
        journal.save(VALUES, 2)
    return path


def loaded(path, job="job"):
    with Journal(path, job) as journal:
        values = np.zeros(6, np.float32)
        journal.load(values)
    return values, journal.done


def refused(path, match, **options):
    before = path.read_bytes()
    with pytest.raises(OutputError, match=match) as caught:
        loaded(path, **options)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_round_trip(tmp_path):
    values, done = loaded(saved(tmp_path / "deep" / "a.npz"))
    np.testing.assert_array_equal(values, VALUES)
    assert done == 2
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.npz"]
    refused(tmp_path / "deep" / "a.npz", "holds another sweep", job="other")


@pytest.mark.parametrize("keep", [0, 1, 100, -100, -1])
def test_torn_files_are_refused(tmp_path, keep):
    path = saved(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "cannot be read as a file to resume from: delete it")


def test_edited_files_are_refused(tmp_path):
    path = saved(tmp_path / "a.npz")
    with np.load(path) as file:
        content = dict(file)
    for name, value in (("values", VALUES + 1), ("done", 3), ("checksum", "0")):
        np.savez(path, **content | {name: value})
        refused(path, "was changed after it was written")
    np.savez(path, **{k: v for k, v in content.items() if k != "checksum"})
    refused(path, "cannot be read")


def test_files_of_the_user_are_refused(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("mine")
    refused(path, "cannot be read")
    np.savez(tmp_path / "mine.npz", values=VALUES)
    refused(tmp_path / "mine.npz", "cannot be read")
    np.save(tmp_path / "mine.npy", VALUES)
    refused(tmp_path / "mine.npy", "cannot be read")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be read"):
        loaded(tmp_path / "folder")
    (tmp_path / "link.npz").symlink_to("new.npz")
    with pytest.raises(OutputError, match=r"cannot be read|is a link"):
        loaded(tmp_path / "link.npz")
    (tmp_path / "a.npz.part").write_text("mine")
    saved(tmp_path / "a.npz")
    assert (tmp_path / "a.npz.part").read_text() == "mine"


def test_a_full_disk_keeps_the_older_file(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz")

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
    with (
        pytest.raises(OutputError, match=r"Cannot write .*No space left"),
        Journal(path, "job") as journal,
    ):
        journal.save(VALUES + 1, 3)
    np.testing.assert_array_equal(loaded(path)[0], VALUES)


def test_a_second_job_on_one_file_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz")
    with Journal(path, "job"), pytest.raises(OutputError, match="another process"):
        loaded(path)
    loaded(path)


def test_saves_come_every_half_minute(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mijax.core._journal.time.monotonic", lambda: now[0])
    with Journal(tmp_path / "a.npz", "job") as journal:
        due = []
        for _ in range(14):  # chunks of ten seconds
            now[0] += 10.0
            due.append(journal.due())
            if due[-1]:
                journal.save(VALUES, len(due))
    assert due == [False, False, False, True] * 3 + [False] * 2
    assert not Journal(None, "job").due()


def test_chunks_of_large_models_end_within_half_a_minute():
    layers, cells = 16, 4096
    cell = np.arange(cells)
    lanes = Lanes(cell, cell % 64, cell % layers, 0 * cell, 20 + 0 * cell)
    cost = Cost(layers, 8e3, 4e5, 1e5, layer_overhead(), row_flops=2.4e8)
    chunks = {}
    for memory in (2**20, 2**30, 2**36):
        plan = pack(lanes, cost, memory)
        chunks[memory] = plan.rows * plan.per_chunk * layers * cost.row_flops
        assert sum(len(tile.cell) for tile in plan.tiles) == cells
    # At 67 GFLOP/s; memory alone would allow a thousand times more.
    assert chunks[2**36] <= 2e12
    assert chunks[2**20] < chunks[2**36]
