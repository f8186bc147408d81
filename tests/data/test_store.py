"""What is stored is what was given, or it is refused."""

import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax._errors import ConfigError, LoadError, OutputError, ShapeError, TokenError
from mijax.data import AbstractSource, Batch, Stored, store
from mijax.data._permute import permuted
from mijax.data.activations import _store
from mijax.io import locked

ROWS = np.random.default_rng(0).normal(size=(64, 2, 5)).astype(np.float32)


class Given(AbstractSource):
    """Rows of a table in order; stops with an error where it is told to."""

    table: np.ndarray
    targets: bool = False
    stop: int = 1000
    digest: str = "given"

    def start(self):
        return {"at": np.asarray(0, np.int32), "half": jnp.ones(3, jnp.bfloat16)}

    def batch(self, state):
        at = int(state["at"])
        assert state["half"].dtype == jnp.bfloat16
        if at >= self.stop:
            raise RuntimeError("stopped")
        x = jnp.asarray(self.table[at : at + 4])
        state = state | {"at": np.asarray(at + 4, np.int32)}
        return state, Batch(x, 2 * x if self.targets else None)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def taken(source, batches, state=None):
    state = source.start() if state is None else state
    found = []
    for _ in range(batches):
        state, batch = source.batch(state)
        found.append(batch)
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 0), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
def test_round_trip(tmp_path, dtype, tolerance):
    store(Given(ROWS, targets=True), tmp_path / "a", 50, dtype=dtype, shard=10)
    source = Stored(tmp_path / "a", batch=25, seed=1, epochs=1)
    assert (source.n, source.length) == (50, 2)
    batches = taken(source, 2)
    x = np.concatenate([batch.x for batch in batches])
    y = np.concatenate([batch.y for batch in batches])
    assert x.dtype == np.float32
    order = [np.abs(ROWS[:50] - row).max((1, 2)).argmin() for row in x]
    assert sorted(order) == list(range(50))
    assert order != sorted(order)
    np.testing.assert_allclose(x, ROWS[order], atol=tolerance)
    np.testing.assert_allclose(y, 2 * ROWS[order], atol=2 * tolerance)
    with pytest.raises(TokenError, match="1 epochs of 50 rows are over after 2"):
        source.batch(np.asarray(2, np.int32))


def test_order(tmp_path):
    store(Given(ROWS), tmp_path / "a", 64, shard=7)
    source = Stored(tmp_path / "a", batch=24, seed=3)
    found = taken(source, 8)
    epochs = np.concatenate([batch.x for batch in found]).reshape(3, 64, 10)
    whole = np.sort(ROWS.reshape(64, 10), axis=0)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch, axis=0), whole)
    assert not np.array_equal(epochs[0], epochs[1])
    assert found[0].y is found[0].x
    resumed = taken(Stored(tmp_path / "a", batch=24, seed=3), 3, np.int32(5))
    for one, other in zip(found[5:], resumed, strict=True):
        np.testing.assert_array_equal(one.x, other.x)
    split = Stored(tmp_path / "a", batch=24, seed=3, mesh=mijax.train.mesh(data=8))
    (batch,) = taken(split, 1)
    np.testing.assert_array_equal(batch.x, found[0].x)
    assert len(batch.x.sharding.device_set) == 8
    digests = {source.digest, Stored(tmp_path / "a", batch=24, seed=4).digest}
    assert len(digests) == 2


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 65, 1000, 4097])
def test_permutation(size):
    index = np.arange(size)
    found = permuted(index, size, 7, 0)
    assert sorted(found) == index.tolist()
    np.testing.assert_array_equal(permuted(index[::2], size, 7, 0), found[::2])
    if size > 3:
        assert not np.array_equal(found, permuted(index, size, 7, 1))
        assert not np.array_equal(found, permuted(index, size, 8, 0))
    if size > 999:
        # Where an index goes does not depend on where it is or what its neighbour does.
        assert abs(np.corrcoef(index, found)[0, 1]) < 0.1
        steps = np.diff(found)
        assert abs(np.corrcoef(steps[:-1:2], steps[1::2])[0, 1] + 0.5) < 0.2
        assert (np.abs(steps) < size / 100).mean() < 0.05


def test_written_once(tmp_path):
    folder = tmp_path / "a"
    store(Given(ROWS), folder, 32, shard=8)
    before = contents(folder)
    assert "state.npz" not in before
    store(Given(ROWS, stop=0), folder, 32, shard=16)
    assert contents(folder) == before
    for source, n, dtype in (
        (Given(ROWS, digest="other"), 32, "float32"),
        (Given(ROWS), 40, "float32"),
        (Given(ROWS), 32, "float16"),
    ):
        with pytest.raises(OutputError, match="a holds other activations"):
            store(source, folder, n, dtype=dtype)


@pytest.mark.parametrize("stop", [4, 12, 20, 28])
def test_interrupted_writing_goes_on(tmp_path, stop):
    whole, folder = tmp_path / "whole", tmp_path / "a"
    store(Given(ROWS, targets=True), whole, 30, shard=8)
    with pytest.raises(RuntimeError, match="stopped"):
        store(Given(ROWS, targets=True, stop=stop), folder, 30, shard=8)
    if stop > 8:
        with pytest.raises(LoadError, match=f"holds {stop // 8 * 8} of 30 rows"):
            Stored(folder, batch=2)
    store(Given(ROWS, targets=True), folder, 30, shard=8)
    assert contents(folder) == contents(whole)


def test_goes_on_where_it_was_and_not_from_the_start(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        store(Given(ROWS, stop=20), tmp_path / "a", 30, shard=8)
    late = ROWS.copy()
    late[:8] = np.nan  # would be refused, if it were read again
    store(Given(late), tmp_path / "a", 30, shard=8)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="holds other files"):
        store(Given(ROWS), tmp_path / "b", 30)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    folder, writes, save = tmp_path / "a", [], np.save

    def full(file, array):
        writes.append(1)
        if len(writes) > 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    monkeypatch.setattr("numpy.save", full)
    says = r"Cannot write .*x-00002\.npy: No space left.*what is finished is kept"
    with pytest.raises(OutputError, match=says):
        store(Given(ROWS), folder, 32, shard=8)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "state.npz",
        "x-00000.npy",
        "x-00001.npy",
    }
    monkeypatch.undo()
    store(Given(ROWS), folder, 32, shard=8)
    x = np.concatenate([np.load(folder / f"x-0000{i}.npy") for i in range(4)])
    np.testing.assert_array_equal(x, ROWS[:32])


def test_damage_is_named(tmp_path):
    folder = tmp_path / "a"
    store(Given(ROWS), folder, 32, shard=8)
    path = folder / "x-00002.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(LoadError, match=r"x-00002\.npy is damaged"):
        Stored(folder, batch=4)
    Stored(folder, batch=4, verify=False)
    path.write_bytes(good[:-1])
    with pytest.raises(LoadError, match=r"x-00002\.npy has 447 bytes instead of 448"):
        Stored(folder, batch=4, verify=False)
    path.unlink()
    with pytest.raises(LoadError, match=r"x-00002\.npy is missing"):
        Stored(folder, batch=4)
    (folder / "manifest.json").write_text(json.dumps({"form": "other"}))
    with pytest.raises(LoadError, match=r"manifest\.json is not 'mijax activations 1'"):
        Stored(folder, batch=4)
    (folder / "manifest.json").unlink()
    with pytest.raises(LoadError, match=r"manifest\.json cannot be read"):
        Stored(folder, batch=4)


def test_a_damaged_state_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        store(Given(ROWS, stop=20), tmp_path / "a", 30, shard=8)
    (tmp_path / "a" / "state.npz").write_bytes(b"x")
    with pytest.raises(LoadError, match=r"state\.npz is damaged"):
        store(Given(ROWS), tmp_path / "a", 30, shard=8)
    (tmp_path / "a" / "state.npz").unlink()
    store(Given(ROWS), tmp_path / "a", 30, shard=8)


@pytest.mark.parametrize(
    ("table", "options", "error", "says"),
    [
        (ROWS * 1e5, {"dtype": "float16"}, OutputError, "do not fit float16: store bf"),
        (ROWS * np.nan, {}, OutputError, "do not fit float32"),
        (
            ROWS,
            {"dtype": "float8"},
            ConfigError,
            "'float8' is not a supported type.*'float16'",
        ),
        (ROWS, {"n": 0}, ConfigError, "at least one row, got 0"),
    ],
)
def test_refuses_to_store(tmp_path, table, options, error, says):
    with pytest.raises(error, match=says):
        store(Given(table), tmp_path / "a", **{"n": 8} | options)


def test_refuses_more(tmp_path, monkeypatch):
    nameless = Given(ROWS, digest=None)
    with pytest.raises(ConfigError, match="Given has no digest"):
        store(nameless, tmp_path / "a", 8)
    store(nameless, tmp_path / "a", 8, digest="mine")
    for options in ({"batch": 9}, {"batch": 0}, {"batch": 1, "epochs": 0}):
        with pytest.raises(ShapeError, match="cannot be taken from 8 rows"):
            Stored(tmp_path / "a", **options)
    with pytest.raises(ShapeError, match="split over 8 devices"):
        Stored(tmp_path / "a", batch=4, mesh=mijax.train.mesh(data=8))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ConfigError, match="One process writes"):
        store(Given(ROWS), tmp_path / "b", 8)


def test_activations_are_stored_and_resumed(tmp_path, monkeypatch):
    """Interrupted between refills, the buffer comes back bit for bit."""
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    corpus = mijax.data.Corpus.from_ids([range(3, 60), range(2, 50)], separator=0)
    stream = mijax.data.Tokens(corpus, seq=8, batch=2, epochs=2)
    site = mijax.Site("resid_post", layer=1)
    source = mijax.data.Activations(model, stream, site, batch=8, buffer=32)
    assert source.available == 2 * stream.count((0,))
    with pytest.raises(TokenError, match="The source ends after"):
        store(source, tmp_path / "a", source.available + 1)
    store(source, tmp_path / "whole", 100, shard=16)
    shards = []
    narrow = _store.Writer._shard

    def stopping(self, index, rows):
        shards.append(index)
        if index == 4:
            raise KeyboardInterrupt
        return narrow(self, index, rows)

    monkeypatch.setattr(_store.Writer, "_shard", stopping)
    monkeypatch.setattr(_store, "SHARE_OF_SAVING", 1.0)
    with pytest.raises(KeyboardInterrupt):
        store(source, tmp_path / "a", 100, shard=16)
    monkeypatch.setattr(_store.Writer, "_shard", narrow)
    store(source, tmp_path / "a", 100, shard=16)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    assert shards == [0, 1, 2, 3, 4]


def test_files_of_the_user_are_not_replaced(tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(RuntimeError, match="stopped"):
        store(Given(ROWS, stop=12), folder, 32, shard=8)
    (folder / "x-00001.npy").write_text("mine")
    before = contents(folder)
    with pytest.raises(OutputError, match=r"x-00001\.npy is not the file that is st"):
        store(Given(ROWS), folder, 32, shard=8)
    assert contents(folder) == before
    (folder / "x-00001.npy").unlink()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OutputError, match="is a link"):
        store(Given(ROWS), tmp_path / "link", 32, shard=8)
    with locked(folder), pytest.raises(OutputError, match="another process"):
        store(Given(ROWS), folder, 32, shard=8)
    store(Given(ROWS), folder, 32, shard=8)
    with locked(folder):  # a complete store is read only
        store(Given(ROWS), tmp_path / "link", 32, shard=8)


def test_an_edited_record_is_refused(tmp_path):
    folder = tmp_path / "a"
    store(Given(ROWS), folder, 32, shard=8)
    record = json.loads((folder / "manifest.json").read_text())
    record["shards"][1]["rows"] = 7
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(LoadError, match=r"manifest\.json is damaged or was changed"):
        Stored(folder, batch=4)
    del record["checksum"]  # as version 0.1.0 wrote it
    record["shards"][1]["rows"] = 8
    (folder / "manifest.json").write_text(json.dumps(record))
    assert Stored(folder, batch=4).n == 32
