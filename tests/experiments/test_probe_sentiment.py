"""Sentiment by layer: it runs, and reads sentences as they are."""

import importlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.data import Tokenizer
from mijax.experiment import execute, load


def part(name=""):
    package = load("probe-sentiment").function.__module__
    return importlib.import_module(f"{package}{name}")


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("probe-sentiment/tiny", out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    assert numbers["accuracy"].low <= numbers["accuracy"].value
    # What random directions do is little; what is removed can no longer be read.
    assert numbers["steering_over_random"].value > 1
    assert numbers["without_logistic"].value < numbers["without_nothing"].value - 0.1
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"accuracy.png", "removal.png", "steering.png"} <= written


def test_without_data_it_says_what_to_give(tmp_path):
    with pytest.raises(mijax.MijaxError, match="--data"):
        execute("probe-sentiment", out=tmp_path / "run")


def test_sentences_are_read_once_and_of_both_labels(tmp_path):
    path = tmp_path / "sentence_polarity.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, word in (("neg", "dull"), ("pos", "fun")):
            lines = [f"{word} film {i % 8}\n" for i in range(12)]
            archive.writestr(f"x/rt-polarity.{name}", "".join(lines))
    words = ["dull", "fun", " film", *(f" {i}" for i in range(8))]
    tokenizer = Tokenizer.from_pieces(words)
    read = part("._sentences").polarity
    train, held_out, digest = read(str(path), tokenizer, (10, 6), longest=9, seed=0)
    rows = [tuple(row) for row in np.concatenate([train.tokens, held_out.tokens])]
    assert len(set(rows)) == 16
    labels = np.concatenate([train.labels, held_out.labels])
    assert labels.mean() == 0.5
    fun = tokenizer.token("fun")
    assert [row[0] == fun for row in rows] == labels.tolist()
    assert digest.startswith("sha256:")
    with pytest.raises(mijax.MijaxError, match="ask for fewer"):
        read(str(path), tokenizer, (10, 7), longest=9, seed=0)
    with pytest.raises(mijax.MijaxError, match="--data"):
        read(str(tmp_path / "none"), tokenizer, (1, 1), longest=9, seed=0)


def test_activations_are_those_of_each_sentence():
    reading, sentences = part("._reading"), part("._sentences")
    some, _ = sentences.generated(60, (6, 0), 0)
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    found = reading.read(model, some)
    for i in (some.lengths.argmin(), some.lengths.argmax()):
        length = int(some.lengths[i])
        acts = mijax.capture(model, some.tokens[i, :length], mijax.Site("resid_post"))
        expected = [acts[:, -1], acts[:, 1:].mean(1), acts[:, length // 2]]
        np.testing.assert_allclose(found[1:, :, i].swapaxes(0, 1), expected, atol=1e-4)
    tokens = reading.sequences(model, some, 1)
    mean = (tokens.x * tokens.mask[..., None]).sum(1) / tokens.mask.sum(1)[:, None]
    np.testing.assert_allclose(mean, found[2, 1], atol=1e-4)


def test_removed_components_are_their_mean():
    parts = part("._directions")
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    vector = jnp.zeros(32).at[3].set(1.0)
    direction = parts.Direction(vector, 0.5, 1.0)
    edits = parts.removal(direction, 1)
    site = mijax.Site("resid_post", layer=1)
    before, after = (mijax.capture(model, [4, 5, 6], site, e) for e in (None, edits))
    np.testing.assert_allclose(after[:, 3], 0.5, atol=1e-6)
    np.testing.assert_allclose(after[:, 4:], before[:, 4:], atol=1e-6)
