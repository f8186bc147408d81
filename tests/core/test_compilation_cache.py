"""Compiled programs on disk: shared by processes, bounded, and never in the way."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import pytest

import mijax
from mijax.cli import main
from mijax.core._compilation_cache import _prepare

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import jax, jax.numpy as jnp, sys, warnings
warnings.simplefilter("error")
from mijax.core import compilation_cache
counts = {"cache_hits": 0, "cache_misses": 0}
def count(event, **_):
    name = event.rsplit("/", 1)[-1]
    if name in counts:
        counts[name] += 1
jax.monitoring.register_event_listener(count)
folder = compilation_cache(size=int(sys.argv[1]))
if "-W" in sys.argv:
    warnings.simplefilter("always")
x = jnp.arange(6.0)
for power in range(2, 6):
    x = jax.jit(lambda x, power=power: jnp.tanh(x) ** power)(x)
print(folder, counts["cache_hits"], counts["cache_misses"], float(x.sum()))
"""


def start(folder, *words, size=2**29, **variables):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_COMP", "JAX_PERSISTENT", "MIJAX", "XLA_FLAGS"))
    }
    environment |= {"MIJAX_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(size), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    folder, hits, misses, total = out.split()
    return folder, int(hits), int(misses), float(total), err


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Four processes that fill one folder at once."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, [end(one) for one in [start(folder) for _ in range(4)]]


def entries(folder):
    return sorted(Path(folder).glob("*-cache"))


def test_processes_share_a_folder(filled):
    _, found = filled
    own = Path(found[0][0])
    assert len({(folder, total) for folder, _, _, total, _ in found}) == 1
    assert all(hits + misses >= 4 for _, hits, misses, _, _ in found)
    assert len(entries(own)) == len(list(own.glob("*-atime"))) >= 4


def test_later_process_compiles_nothing(filled):
    folder, found = filled
    _, hits, misses, total, _ = end(start(folder))
    assert hits >= 4
    assert misses == 0
    assert total == found[0][3]


def test_torn_and_garbled_entries(filled):
    folder, found = filled
    torn, garbled, *_ = entries(found[0][0])
    # A process that was killed in a write leaves half an entry without its date.
    torn.write_bytes(torn.read_bytes()[:100])
    Path(str(torn).removesuffix("cache") + "atime").unlink()
    garbled.write_bytes(garbled.read_bytes()[:200] + b"\0" * 200)
    _, hits, misses, total, err = end(start(folder, "-W"))
    assert (hits, misses, total) == (found[0][1] + found[0][2] - 2, 2, found[0][3])
    assert torn.stat().st_size > 100  # written again; JAX keeps the garbled one
    assert err.count("Error reading persistent compilation cache entry") == 1


def test_size_is_bounded(filled, tmp_path):
    _, found = filled
    sizes = [file.stat().st_size for file in entries(found[0][0])]
    own, *_ = end(start(tmp_path, size=2 * max(sizes)))
    assert 0 < sum(file.stat().st_size for file in entries(own)) <= 2 * max(sizes)


def test_unused_versions_are_emptied(filled, tmp_path):
    old, new = tmp_path / "jax-0.0.1-aaaaaaaa", tmp_path / "jax-0.0.2-aaaaaaaa"
    names = [f"jit_f-{'0' * 64}-cache", f"jit_f-{'0' * 64}-atime", "notes-cache"]
    for folder in (old, new):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("x")
    past = time.time() - 31 * 24 * 3600
    os.utime(old, (past, past))
    _prepare(tmp_path / "jax-0.0.3-aaaaaaaa")
    assert {f.name for f in old.iterdir()} - {".lockfile"} == {"notes-cache"}
    assert sorted(f.name for f in new.iterdir()) == sorted(names)


def test_off(monkeypatch, tmp_path):
    monkeypatch.setenv("MIJAX_CACHE", "0")
    assert mijax.compilation_cache(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_is_one_warning(monkeypatch, tmp_path):
    monkeypatch.delenv("MIJAX_CACHE", raising=False)
    file = tmp_path / "file"
    file.touch()
    with pytest.warns(UserWarning, match="No compilation cache: cannot write") as told:
        assert mijax.compilation_cache(file) is None
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


def test_folder_of_jax_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("MIJAX_CACHE", raising=False)
    monkeypatch.delenv("MIJAX_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    found = mijax.compilation_cache()
    jax.config.update("jax_compilation_cache_dir", before)
    assert found == tmp_path
    assert not list(tmp_path.iterdir())


def test_command_line_turns_it_on(monkeypatch, tmp_path, capsys):
    asked = []

    def cache():
        asked.append(None)
        warnings.warn("No compilation cache: cannot write", stacklevel=1)

    monkeypatch.setattr(mijax, "compilation_cache", cache)
    assert main(["list"]) == 0
    assert len(asked) == 1
    assert capsys.readouterr().err == "mijax: No compilation cache: cannot write\n"
