"""Parts of speech by layer: it runs, and reads tags as they are."""

import importlib
import zipfile

import jax
import numpy as np
import pytest

import mijax
from mijax.data import Tokenizer
from mijax.experiment import execute, load


def part(name=""):
    package = load("probe-pos").function.__module__
    return importlib.import_module(f"{package}{name}")


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("probe-pos/tiny", out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    assert numbers["accuracy"].low <= numbers["accuracy"].value
    assert 0 <= numbers["majority"].value < 1
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"accuracy.png", "accuracy.svg"} <= written


def test_brown_is_read_by_document(tmp_path):
    path = tmp_path / "brown.zip"
    line = "The/at dog's/nn$ tail/nn didn't/dod* wag/vb ,/, ``/`` FW/fw-in 2/cd ./.\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("ca01", "ca02", "cb01"):
            archive.writestr(f"brown/{name}", f"\n\n\t{line}\n{line}")
        archive.writestr("brown/README", "no/nn document/nn")
    tokenizer = Tokenizer.from_pieces([" The", " tail"])
    train, held_out, digest = part("._brown").brown(str(path), tokenizer, (9, 5), 0)
    names = [train.names[tag] for tag in train.tags[:7]]
    assert names == [
        *("determiner", "noun", "noun", "verb", "verb", "adposition", "numeral")
    ]
    assert len(train.tags) == 9
    assert len(held_out.tags) == 5
    assert train.kinds[0] == train.kinds[7] == held_out.kinds[0]
    assert digest.startswith("sha256:")
    ends = train.tokens[train.sentence, train.position]
    assert tokenizer.pieces(ends[[0, 2]].tolist()) == [" The", " tail"]
    with pytest.raises(mijax.MijaxError, match="--data"):
        part("._brown").brown(str(tmp_path / "none"), tokenizer, (9, 5), 0)


def test_activations_are_those_of_each_word():
    experiment = part()
    words, _ = part("._words").generated(60, (40, 10), 0)
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    found = experiment.activations(model, words)
    assert found.shape == (4, 40, 32)
    acts = mijax.capture(model, words.tokens[1], mijax.Site("resid_post"))
    np.testing.assert_allclose(found[1:, 17], acts[:, 1], atol=1e-4)
    moved = experiment.shuffled(model, jax.random.key(1))
    one, two = jax.tree.leaves(model)[0], jax.tree.leaves(moved)[0]
    np.testing.assert_allclose(np.sort(one, None), np.sort(two, None))
