"""Circuit localisation: methods run, prompts are split, published numbers are kept."""

import importlib
import json

import jax
import numpy as np
import pytest

import mijax
from mijax import circuits
from mijax._errors import ConfigError
from mijax.data import Tokenizer, ioi
from mijax.experiment import execute, load
from mijax.models import GPT2Spec

NAMES = ("Mary", "John", "Anna", "Tom", "Paul")
PIECES = (*(f" {name}" for name in NAMES), " park", " book", " gave", " When")


def part(name):
    package = load("mib-ioi").function.__module__
    return importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module")
def tokenizer():
    plain = Tokenizer.from_pieces(PIECES)
    return Tokenizer(plain.backend, bos=0)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, tokenizer):
    """A tiny random GPT-2."""
    vocab, context = tokenizer.vocab_size, 128
    spec = GPT2Spec(layers=2, embed=16, heads=2, mlp=32, vocab=vocab, context=context)
    path = tmp_path_factory.mktemp("mib") / "model"
    model = mijax.models.init(spec, jax.random.key(0))
    mijax.models.save(model, spec, path, tokenizer=tokenizer)
    return path


def test_tiny_runs_and_writes_everything(tmp_path):
    methods = ["eap_cf", "eap_oa", "nap_cf", "ifr", "ugs"]
    options = {"methods": methods, "prompts": 4, "evaluation": 4}
    options |= {"optimal_steps": 1, "ugs_steps": 1}
    result = execute("mib-ioi/tiny", options, out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    for name in methods:
        for area in ("cpr", "cmd"):
            number = numbers[f"{area}_{name}"]
            assert number.low <= number.value <= number.high
            assert number.count == 4
    assert numbers["prompts_in_common"].value == 0
    assert numbers["best_cpr"].value in {"eap_cf", "eap_oa", "ifr", "ugs"}
    table = result.tables[0].rows
    assert table[0][2:4] == pytest.approx((0.25, 0.749))  # published, analytic
    assert [row[1] for row in table[1:]] == ["edge", "edge", "node", "edge", "edge"]
    written = {path.name for path in (tmp_path / "run").iterdir()}
    for name in ("faithfulness-signed", "faithfulness-absolute", "circuit"):
        assert {f"{name}.png", f"{name}.svg"} <= written
    assert "circuit-page.html" in written
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["seeds"] == {"prompts": 0}


def test_configs_name_methods_that_there_are():
    known = part("_methods").methods(ugs_steps=1)
    published = set(load("mib-ioi/gpt2").expected)
    ours = ("gim", "relp", "nap_gim", "nap_atp_star")
    table = [name for name in known if name not in ours]
    for name in table:
        # The one number that does not come out of the benchmark's own code.
        assert ({f"cpr_{name}", f"cmd_{name}"} <= published) == (name != "nap_cf")
    notes = load("mib-ioi/gpt2").config.notes
    assert set(notes) == {"cpr_nap_cf", "cmd_nap_cf"}
    assert "published 0.28" in notes["cpr_nap_cf"]
    assert set(load("mib-ioi").config.methods) <= set(known)
    assert load("mib-ioi/gpt2").config.methods == ("all",)
    with pytest.raises(ConfigError, match=r"'eap_fc'.*eap_cf"):
        execute("mib-ioi/tiny", {"methods": ["eap_fc"]})


def test_gpt2_config_runs_up_to_its_verdicts(gpt2, tmp_path):
    options = {"model": str(gpt2), "methods": ["eap_cf"], "memory_mb": 512}
    options |= {"prompts": 2, "evaluation": 2}
    result = execute("mib-ioi/gpt2", options, out=tmp_path / "run")
    verdicts = {verdict.name: verdict for verdict in result.verdicts}
    assert verdicts["cpr_eap_cf"].published == "1.2 ± 0.04"
    assert verdicts["cmd_eap_cf"].published == "0.03 ± 0.04"
    assert verdicts["cpr_ugs"].verdict == "missing"
    assert verdicts["prompts_in_common"].verdict == "PASS"


def test_prompts_are_split(tokenizer):
    prompts = part("_prompts")
    one, other = prompts.draw(tokenizer, "ioi", (16, 8), seed=0, bos=True)
    assert (len(one), len(other)) == (16, 8)
    assert prompts.in_common(one, other) == prompts.in_common(other, one) == 0
    assert prompts.in_common(one, one) == 16
    assert set(np.asarray(one.clean.tokens)[:, 0].tolist()) == {tokenizer.bos}
    again, _ = prompts.draw(tokenizer, "ioi", (16, 8), seed=0, bos=True)
    assert again.clean.texts == one.clean.texts
    with pytest.raises(ConfigError, match="give fewer"):
        prompts.split(lambda n: one[np.arange(n) % 4], (4, 1))
    plain = Tokenizer(tokenizer.backend)
    with pytest.raises(ConfigError, match="no token that begins"):
        prompts.draw(plain, "ioi", (2, 2), seed=0, bos=True)


def test_divergence_is_that_of_all_logits(gpt2, tokenizer):
    model = mijax.models.load(str(gpt2)).model
    pairs = ioi(tokenizer, 4)
    assert len(set(np.asarray(pairs.clean.lengths))) > 1
    metric = part("_methods").divergence(model, pairs)
    logits = mijax.capture(model, pairs.clean.tokens, mijax.Site("logits"))
    whole = mijax.core.negative(mijax.core.kl(logits, position=pairs.clean.last))
    graph = circuits.Graph.of(model)
    ends = [circuits.Circuit.full(graph), circuits.Circuit.empty(graph)]
    ours, theirs = (
        circuits.run_circuits(model, circuits.Task.of(pairs, metric=m), ends)
        for m in (metric, whole)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(ours[0], 0, atol=1e-6)
    assert (ours[1] < 0).all()
