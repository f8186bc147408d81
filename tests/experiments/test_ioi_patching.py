"""The IOI experiment runs on a tiny model whose tokens are whole words."""

import importlib
import json
import re
from itertools import chain
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import models as token_models

import mijax
from mijax.data import Tokenizer
from mijax.data.tasks._ioi import NAMES, OBJECTS, PLACES, TEMPLATES
from mijax.experiment import Run, execute, load
from mijax.models import LlamaSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama with one token per word and its leading space."""
    texts = [re.sub(r"{\w+}", "X", text) for text in TEMPLATES]
    found = chain.from_iterable(re.findall(r" ?[\w']+|[^\w\s]", t) for t in texts)
    words = [w for name in (*NAMES, *PLACES, *OBJECTS) for w in (name, " " + name)]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(["?", *found, *words]))}
    backend = Backend(token_models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[\w']+|[^\w\s]"), "isolated")
    spec = LlamaSpec(
        layers=2,
        embed=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp=48,
        vocab=len(vocabulary),
        context=64,
    )
    path = tmp_path_factory.mktemp("ioi") / "model"
    model = mijax.models.init(spec, jax.random.key(0))
    mijax.models.save(model, spec, path, tokenizer=Tokenizer(backend))
    return path


@pytest.mark.parametrize("counterfactual", ["s2_io_flip", "abc"])
def test_runs_and_writes_everything(folder, tmp_path, counterfactual):
    options = {"model": str(folder), "prompts": 4, "counterfactual": counterfactual}
    result = execute("ioi-patching/quick", options, out=tmp_path / "run")
    numbers = {number.name: number for number in result.numbers}
    assert {"logit_difference", "io_over_s", "top_heads"} <= set(numbers)
    assert len(numbers["top_heads"].value) == 8
    written = {path.name for path in (tmp_path / "run").iterdir()}
    for name in ("positions", "heads", "direct", "top-heads"):
        assert {f"{name}.png", f"{name}.svg"} <= written
    assert {"result.json", "record.json", "config.yaml", "report.html"} <= written
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["seeds"] == {"prompts": 0}
    assert str(folder) in record["weights"]


def test_gpt2_config_is_what_was_published(folder, tmp_path):
    """The config for GPT-2 runs up to its verdicts, which a random model fails."""
    options = {"model": str(folder), "prompts": 4, "top": 3}
    result = execute("ioi-patching/gpt2", options, out=tmp_path / "run")
    verdicts = {v.name: v for v in result.verdicts}
    assert verdicts["logit_difference"].published == "3.56 ± 0.6"
    assert verdicts["top_direct_heads"].verdict == "FAIL"
    assert not result.passed
    assert np.isfinite(float(verdicts["io_over_s"].ours.split()[0]))


@pytest.mark.parametrize(("last", "moved"), [(0.95, 1), (0.1, float("nan"))])
def test_names_that_never_move_have_no_layer(tmp_path, monkeypatch, last, moved):
    script = importlib.import_module(load("ioi-patching").function.__module__)
    labels = ["io", "subject2", "last"]
    sweep = SimpleNamespace(axes=[None, SimpleNamespace(labels=labels)])
    share = np.array([[0, 0.9, 0.1], [0, 0.8, last], [0, 0.7, last]])
    monkeypatch.setattr(script, "viz", SimpleNamespace(heatmaps=lambda *a, **k: None))
    run = Run(tmp_path)
    monkeypatch.setattr(run, "figure", lambda *given, **options: None)
    script.report_positions(
        dict.fromkeys(script.RESIDUAL, sweep),
        dict.fromkeys(script.RESIDUAL, share),
        run,
    )
    (number,) = run.notes.numbers
    np.testing.assert_equal(number.value, moved)
