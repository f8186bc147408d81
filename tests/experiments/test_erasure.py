"""Concept erasure: it runs, and reads sentences of both labels."""

import importlib
import zipfile

import pytest

import mijax
from mijax.data import Tokenizer
from mijax.experiment import execute, load


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("erasure/tiny", out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    assert numbers["accuracy_leace"].value < numbers["accuracy_before"].value
    assert numbers["rank_leace"].value == 1
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"accuracy.png", "cost.png"} <= written


def test_sentences_are_of_both_labels(tmp_path):
    path = tmp_path / "polarity.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, word in (("neg", "dull"), ("pos", "fun")):
            lines = [f"{word} film {i}\n" for i in range(8)]
            archive.writestr(f"x/rt-polarity.{name}", "".join(lines))
    package = load("erasure").function.__module__
    read = importlib.import_module(f"{package}._sentences").polarity
    tokenizer = Tokenizer.from_pieces(["dull", "fun", " film", " 1", " 2"])
    (prompts, labels), known = read(str(path), tokenizer, 10, longest=9, seed=0)
    fun = prompts.tokens[:, 0] == tokenizer.token("fun")
    assert fun.tolist() == (labels == 1).tolist()
    assert known.startswith("sha256:")
    with pytest.raises(mijax.MijaxError, match="are asked for"):
        read(str(path), tokenizer, 99, longest=9, seed=0)
    with pytest.raises(mijax.MijaxError, match="not a zip file"):
        read(str(tmp_path), tokenizer, 9, longest=9, seed=0)
