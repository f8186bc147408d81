"""Flip single bits of saved files: each is refused in one line or changes nothing.

Run: python tests/reliability/flips.py [--flips 200] [--seed 0]
"""

import argparse
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mijax
from mijax import dictionaries, io, models, train
from mijax._errors import MijaxError
from mijax.core._journal import Journal
from mijax.data import Examples, Stored, store

SPEC = models.AttentionOnlySpec(layers=2, embed=16, vocab=50)


class Squares(train.AbstractObjective):
    """A regression on fixed rows."""

    def key(self):
        return jax.random.key(1)

    def start(self, key):
        return jax.random.normal(key, (16, 16)), None

    def loss(self, params, memory, batch, step):
        return jnp.mean((batch.x @ params - batch.x) ** 2), ({}, None)

    def optimiser(self):
        return optax.adam(1e-2)


def checkpoint(path):
    """Save and load a checkpoint."""
    tree = {"a": jax.random.normal(jax.random.key(0), (16, 16)), "b": jnp.arange(5)}
    if not path.exists():
        io.save_checkpoint(tree, path, metadata={"step": 3})
    return io.load_checkpoint(tree, path), io.checkpoint_metadata(path)["step"]


def model(path):
    """Save and load a model."""
    if not path.exists():
        models.save(models.init(SPEC, jax.random.key(0)), SPEC, path)
    loaded = models.load(path)
    return loaded.model, loaded.spec == SPEC


def dictionary(path):
    """Save and load a dictionary."""
    kind = dictionaries.SAE(16)
    sae = dictionaries.untrained(
        dictionaries.TopK(4), kind, latents=32, key=jax.random.key(0)
    )
    if not path.exists():
        dictionaries.save(sae, path, site=mijax.Site("resid_post", layer=1))
    loaded = dictionaries.load(path)
    assert loaded.site is not None
    return loaded.dictionary.weights, loaded.site.layer


def training(path):
    """Train for two steps, or load their checkpoint."""
    rows = jax.random.normal(jax.random.key(2), (8, 16))
    source = Examples(rows, batch=4, seed=0)
    return train.fit(Squares(), source, steps=2, checkpoint=path, every=2).params


def resume_file(path):
    """Save and load the file of an interrupted sweep."""
    with Journal(path, "job") as journal:
        values = np.zeros(64, np.float32)
        journal.load(values)
        if not path.exists():
            values = np.arange(64, dtype=np.float32)
            journal.save(values, 3)
            journal.done = 3
    return values, journal.done


def activations(path):
    """Store and load activations."""
    rows = jax.random.normal(jax.random.key(3), (32, 4))
    if not path.exists():
        store(Examples(rows, batch=4, seed=0), path, 16, shard=8, digest="rows")
    source = Stored(path, batch=16)
    return source.batch(source.start())[1].x


KINDS = {
    "checkpoint": checkpoint,
    "model": model,
    "dictionary": dictionary,
    "training": training,
    "resume file": resume_file,
    "activations": activations,
}


def outcome(load, path):
    """Load once; return the leaves, or `None` if it was refused in one line."""
    try:
        found = jax.tree.leaves(load(path))
    except MijaxError as error:
        if "\n" in str(error):
            raise AssertionError(str(error)) from error
        return None
    return [np.asarray(leaf) for leaf in found]


def flip(load, path, count, seed):
    """Flip bits one at a time; return how many were refused, harmless and silent."""
    good = outcome(load, path)
    assert good is not None
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in files if file.is_file() and file.stat().st_size]
    rng = np.random.default_rng(seed)
    # Half by size, half by file, so that small files are hit as well.
    sizes = np.array([file.stat().st_size for file in files], float)
    chance = sizes / sizes.sum() / 2 + 0.5 / len(files)
    refused = harmless = silent = 0
    for i in range(count):
        file = files[rng.choice(len(files), p=chance)]
        data = bytearray(file.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        copy = path.with_name(f"copy-{i}")
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
        (copy / file.relative_to(path) if path.is_dir() else copy).write_bytes(
            bytes(data)
        )
        found = outcome(load, copy)
        if found is None:
            refused += 1
        elif len(found) == len(good) and all(map(np.array_equal, found, good)):
            harmless += 1
        else:
            silent += 1
    return refused, harmless, silent


def main():
    """Flip bits of every kind of file and print a table."""
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__ or ""))
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bad = 0
    for name, load in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "saved"
            counts = flip(load, path, options.flips, options.seed)
        bad += counts[2]
        print(
            f"{name}: {options.flips} flips, {counts[0]} refused, {counts[1]} changed "
            f"nothing, {counts[2]} came back as other numbers",
            flush=True,
        )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
