"""Attributions against exact patching: it runs, and its statistics are right."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from mijax._errors import ConfigError, MijaxError
from mijax.experiment import execute, load


def part(name):
    package = load("attribution-fidelity").function.__module__
    return importlib.import_module(f"{package}.{name}")


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("attribution-fidelity/tiny", out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    for name in ("q_atp", "q_atp_star", "q_gim", "edges_eap", "edges_relp"):
        for statistic in ("r", "rho"):
            number = numbers[f"{statistic}_{name}"]
            assert -1 <= number.low <= number.high <= 1
            assert number.count == 4
    assert numbers["unchanged_places"].value > 0
    written = {path.name for path in (tmp_path / "run").iterdir()}
    for name in ("pearson-sites", "pearson-edges", "q-atp", "q-atp_star", "edge-eap"):
        assert {f"{name}.png", f"{name}.svg"} <= written


def test_agreement_is_that_of_means_over_prompts():
    agreement = part("_agreement")
    draws = np.random.default_rng(0)
    exact = draws.normal(size=(6, 20))
    estimate = exact + draws.normal(size=(6, 20))
    effects = agreement.Effects(estimate, exact, [str(i) for i in range(20)])
    found = agreement.agreement(effects, seed=0)
    means = (estimate.mean(0), exact.mean(0))
    np.testing.assert_allclose(found.pearson.mean, pearsonr(*means)[0], rtol=1e-6)
    np.testing.assert_allclose(found.spearman.mean, spearmanr(*means)[0], rtol=1e-6)
    assert found.pearson.low < found.pearson.mean < found.pearson.high
    perfect = effects._replace(estimate=2 * exact)
    for value in agreement.agreement(perfect, seed=0):
        np.testing.assert_allclose([value.low, value.high], 1, rtol=1e-6)


def test_sizes_and_rounding():
    agreement = part("_agreement")
    exact = np.array([[1.0, -2.0, 0.0, 0.0], [1.0, -2.0, 0.0, 0.0]])
    noise = np.array([0.0, 0.0, 1e-9, -1e-9])
    effects = agreement.Effects(exact + noise, exact, list("abcd"))
    spearman = agreement.agreement(effects, seed=0).spearman
    np.testing.assert_allclose(spearman.mean, 1, rtol=1e-6)
    unsigned = agreement.Effects(np.abs(exact), exact, list("abcd"), signed=False)
    assert float(agreement.agreement(unsigned, seed=0).pearson.mean) < 0.5
    both = agreement.agreement(unsigned.comparable(), seed=0)
    np.testing.assert_allclose(both.pearson.mean, 1, rtol=1e-6)


def test_sampled_edges_are_those_of_all_edges():
    """The sample holds what the whole holds, edge by edge."""
    from mijax import circuits, models  # noqa: PLC0415
    from mijax.data import induction  # noqa: PLC0415

    edges = part("_edges")
    model = models.load("induction-2l").model
    task = circuits.Task.of(induction(64, 2, length=4))
    scores = circuits.discover(model, task, circuits.EAP(), keep_prompts=True)
    options = {"memory": 2**28, "progress": None}
    whole, exact, apart = edges.every(model, task, options)
    assert apart < 1e-4
    index, some = edges.some(model, task, {"eap": scores}, 6, 0, options)
    place = {pair: i for i, pair in enumerate(zip(*whole, strict=True))}
    chosen = [place[pair] for pair in zip(*index, strict=True)]
    assert len(set(chosen)) == 12
    np.testing.assert_allclose(some, exact[:, chosen], atol=1e-4)
    best = np.argsort(-np.abs(np.asarray(scores.values))[whole])[:6]
    assert set(best) <= set(chosen)


def test_refuses_what_it_does_not_know(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"'atp_start'.*atp_star"):
        execute("attribution-fidelity/tiny", {"site_methods": ["atp_start"]}, out=out)
    with pytest.raises(ConfigError, match=r"'eapig'.*eap_ig"):
        part("_edges").named(("eapig",), 2)
    with pytest.raises(MijaxError, match="nowhere"):
        execute("attribution-fidelity/tiny", {"positions": ["nowhere"]}, out=out)


def test_a_nan_is_the_largest_effect(monkeypatch):
    sites = part("_sites")
    one = SimpleNamespace(tokens=None)
    pairs = SimpleNamespace(clean=one, corrupt=one)
    monkeypatch.setattr(sites, "capture", lambda *given: np.zeros((1, 1, 2, 4)))
    monkeypatch.setattr(sites, "at_places", lambda same, places: same)
    monkeypatch.setattr(sites, "flat", lambda same: same)
    fine, bad = np.ones((1, 1, 2)), np.full((1, 1, 2), np.nan)
    methods = {
        "bad": SimpleNamespace(estimate=fine, exact=bad),
        "fine": SimpleNamespace(estimate=fine, exact=fine),
    }
    count, largest = sites.unchanged(None, pairs, {}, {"z": methods})
    assert count == 2
    assert np.isnan(largest)
