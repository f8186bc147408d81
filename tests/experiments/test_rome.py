"""ROME: it runs, and reads facts as they are."""

import importlib
import json

import pytest

import mijax
from mijax.data import Tokenizer
from mijax.experiment import execute, load


def part(name=""):
    package = load("rome").function.__module__
    return importlib.import_module(f"{package}{name}")


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("rome/tiny", out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    assert numbers["em"].value > numbers["before_em"].value
    assert numbers["growth"].count == 3
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert "effects.png" in written


def test_without_data_it_says_what_to_give(tmp_path):
    with pytest.raises(mijax.MijaxError, match="--data"):
        execute("rome", out=tmp_path / "run")


def test_counterfact_is_read_as_it_is():
    record = {
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "subject": "Danielle Darrieux",
            "target_new": {"str": "English"},
            "target_true": {"str": "French"},
        },
        "paraphrase_prompts": ["Danielle Darrieux, a native"],
        "neighborhood_prompts": ["The native language of Montesquieu is"],
    }
    ((fact, related),) = part("._records").counterfact([record, record], 1)
    assert (fact.target, fact.true, related) == (" English", " French", ())
    assert fact.neighbors == ("The native language of Montesquieu is",)


def test_relations_keep_what_the_model_knows(tmp_path):
    content = {
        "prompt_templates": ["{} is in"],
        "prompt_templates_zs": ["{} is in a"],
        "samples": [
            {"subject": name, "object": place}
            for name, place in [("Ann", "Rome"), ("Bob", "Rome"), ("Cid", "Oslo")]
        ],
    }
    (tmp_path / "place.json").write_text(json.dumps(content))
    module, tiny = part("._records"), part("._tiny")
    loaded = tiny.random_model(0)
    assert module.read(tmp_path, ["place"]) == {"place": content}
    with pytest.raises(mijax.MijaxError, match="no relation 'other'"):
        module.read(tmp_path, ["other"])
    options = {"facts": 9, "considered": 3, "seed": 0}
    with pytest.raises(mijax.MijaxError, match="facts of these relations"):
        module.records(str(tmp_path), ["place"], loaded, **options)
    assert isinstance(loaded.tokenizer, Tokenizer)
