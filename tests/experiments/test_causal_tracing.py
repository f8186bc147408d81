"""Causal tracing runs on a tiny model with a token for each word."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import models as token_models

import mijax
from mijax.data import Tokenizer
from mijax.experiment import execute
from mijax.models import LlamaSpec

NAMES = ["Ann Lee", "Bob Ray", "Cy Day", "Dee Fox"]
TEXT = "{} was born in"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A random model, and facts whose attribute is what it says."""
    folder = tmp_path_factory.mktemp("tracing")
    texts = " ".join([*NAMES, TEXT, " was Ann Bob Cy Dee Ray"]).split()
    words = ["?", *dict.fromkeys(w for t in texts for w in (t, " " + t))]
    backend = Backend(
        token_models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[\w']+|[^\w\s]"), "isolated")
    spec = LlamaSpec(
        layers=4,
        embed=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp=48,
        vocab=len(words),
        context=64,
    )
    model = mijax.models.init(spec, jax.random.key(0))
    model = jax.tree.map(lambda a: 6 * a if a.ndim > 2 else a, model)
    path = folder / "model"
    mijax.models.save(model, spec, path, tokenizer=Tokenizer(backend))
    loaded = mijax.models.load(path)
    facts = []
    for i, name in enumerate(NAMES):
        prompt = TEXT.format(name)
        ids = np.asarray(loaded.tokenizer.encode(prompt))
        best = int(mijax.run(loaded.model, ids)[-1].argmax())
        word = loaded.tokenizer.decode([best]).strip()
        fact = {"subject": name, "attribute": word, "prompt": prompt}
        facts.append(fact | {"relation_id": "P1", "known_id": i})
    data = folder / "facts.json"
    data.write_text(json.dumps(facts))
    return SimpleNamespace(model=str(path), data=str(data), facts=facts)


@pytest.mark.parametrize("every", [False, True])
def test_runs_and_writes_everything(given, tmp_path, every):
    options = {
        "model": given.model,
        "data": given.data,
        "prompts": 3,
        "copies": 2,
        "width": 3,
        "batch": 2,
        "every_position": every,
    }
    result = execute("causal-tracing", options, out=tmp_path / "run")
    numbers = {number.name: number.value for number in result.numbers}
    assert numbers["facts"] == 3
    for name in ("total_effect", "mlp_last_subject", "early_site_ahead"):
        assert np.isfinite(numbers[name])
    assert {"late_site_ahead", "kept_without_mlps", "replaced_facts"} <= set(numbers)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"effects-noise.png", "severed.png", "report.html"} <= written


def test_refuses_no_data_and_other_files(given, tmp_path):
    with pytest.raises(mijax.MijaxError, match="Give --data"):
        execute("causal-tracing", {"model": given.model}, out=tmp_path / "a")
    file = tmp_path / "other.json"
    file.write_text('[{"subject": "a"}]')
    options = {"model": given.model, "data": str(file)}
    with pytest.raises(mijax.MijaxError, match="not a list of facts"):
        execute("causal-tracing", options, out=tmp_path / "b")
