"""Variables of induction and of names: questions are right, and so are swaps."""

import importlib
from functools import partial

import jax
import numpy as np

from mijax.data import Tokenizer
from mijax.experiment import execute, load


def part(name):
    package = load("interchange").function.__module__
    return importlib.import_module(f"{package}.{name}")


def test_tiny_holds_and_writes_everything(tmp_path):
    result = execute("interchange/tiny", {}, out=tmp_path / "run")
    assert result.passed
    written = {path.name for path in result.folder.iterdir()}
    assert {"whole-vector.png", "subspace.svg", "between-layers.png"} <= written


def test_labels_are_what_a_copy_of_the_source_would_say():
    """By hand: the tokens that stand where the variables say."""
    draw = partial(part("_previous").draw, vocab=64, length=16, place=7)
    tasks = jax.vmap(draw)(jax.random.split(jax.random.key(0), 64))
    changed = [0, 0]
    for task, given in enumerate(tasks[:2]):
        rows = map(np.asarray, (given.base, given.sources, given.label))
        for base, sources, label in zip(*rows, strict=True):
            source, query = sources[0], base[-1]
            before = source[6] if task == 0 else base[6]
            content = source[7] if task == 1 else base[7]
            assert base[7] != source[7]
            if before == query:
                assert label == content
                changed[task] += 1
            else:
                (at,) = np.flatnonzero(base[:-1] == query)
                assert label == base[at + 1]
    assert 16 < min(changed) < 48


def test_sources_tell_the_programs_apart():
    words = "Mary John Anna Tom Paul Emma park book"
    tokenizer = Tokenizer.from_pieces([f" {word}" for word in words.split()])
    asked = part("_names").questions(tokenizer, 24, seed=3)
    position, token = asked.labels
    assert (position[:2] == 1 - token[:2]).all()
    assert (position[0] == 1).all()
    assert (position[1] == 0).all()
    assert (asked.labels[:, 2] == 1).all()
    io, subject, new = np.asarray(asked.names).T
    row, second = np.arange(24), np.asarray(asked.second)
    again = np.asarray(asked.sources)[:, row, second]
    np.testing.assert_array_equal(again, [subject, io, io])
    for source in np.asarray(asked.sources):  # the new name comes once: the answer
        assert ((source == new[:, None]).sum(1) == 1).all()
