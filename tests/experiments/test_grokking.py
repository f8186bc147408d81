"""Grokking: it runs, and its shortcuts are exact."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax._errors import ConfigError
from mijax.experiment import execute, load

P = 7


def part(name):
    package = load("grokking").function.__module__
    return importlib.import_module(f"{package}{name}")


def model():
    key = jax.random.key(0)
    drawn = part("._model").initial(key, P, embed=16, heads=2, mlp=24)
    # Biases start at 0, which would hide one that is forgotten.
    return jax.tree.map(lambda leaf: leaf + 0.05, drawn)


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("grokking/tiny", out=tmp_path / "run")
    assert result.passed
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"progress.png", "seeds.svg", "spectrum.png", "neurons.png"} <= written


def test_the_quick_way_is_the_model_itself_with_its_gradients():
    quick = part("._model")
    pairs = part("._training").every_pair(P)
    tokens = jnp.asarray(np.concatenate([pairs, np.full((P * P, 1), P)], axis=1))

    def slow(model):
        return jax.vmap(lambda row: model(row)[0][-1])(tokens)

    one = model()
    np.testing.assert_allclose(quick.logits(one, pairs), slow(one), atol=1e-5)
    weight = jax.random.normal(jax.random.key(1), (P * P, P + 1))
    found, expected = (
        jax.grad(lambda m, f=f: (f(m) * weight).sum())(one)
        for f in (lambda m: quick.logits(m, pairs), slow)
    )
    for got, want in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_losses_are_exact_where_they_are_tiny_and_where_they_are_large():
    losses = part("._model").losses
    random = np.random.default_rng(0).normal(size=(4, 5))
    logits = np.float32(random * np.array([[1.0], [300.0], [1.0], [1.0]]))
    logits[2, 3] += 35
    answers = np.array([0, logits[1].argmin(), 3, 1])
    wide = logits.astype(np.float64)
    apart = wide - wide[np.arange(4), answers][:, None]
    apart[np.arange(4), answers] = -np.inf
    expected = np.logaddexp.reduce(np.c_[apart, np.zeros(4)], axis=1)
    expected[2] = np.log1p(np.exp(apart[2]).sum())
    found = losses(jnp.asarray(logits), answers)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert 0 < found[2] < 1e-13
    slope = jax.grad(lambda x: losses(x, answers).sum())(jnp.asarray(logits))
    others = np.delete(np.arange(5), 3)
    np.testing.assert_allclose(slope[2, others], np.exp(apart[2, others]), rtol=2e-5)


def test_measures_are_those_of_a_plain_computation():
    one, chosen = model(), np.array([0, 3, 11, 30])
    pairs = part("._training").every_pair(P)
    tokens = np.concatenate([pairs, np.full((P * P, 1), P)], axis=1)
    every = np.asarray(mijax.run(one, tokens))[:, -1].astype(np.float64)
    answers = pairs.sum(1) % P

    def loss(logits):
        each = np.logaddexp.reduce(logits, axis=1)
        return each - logits[np.arange(P * P), answers]

    rows = [f(2 * np.pi * 2 * pairs.sum(1) / P) for f in (np.cos, np.sin)]
    basis = np.linalg.qr(np.stack(rows, 1))[0]
    sums = every[:, :P]
    kept = basis @ (basis.T @ sums)
    others = np.setdiff1d(np.arange(P * P), chosen)
    right = every.argmax(1) == answers
    found = part("._measures").measure(one, chosen, [2])
    expected = {
        "train": loss(every)[chosen].mean(),
        "test": loss(every)[others].mean(),
        "accuracy": [right[chosen].mean(), right[others].mean()],
        "restricted": loss(kept + sums.mean(0)).mean(),
        "excluded": loss(sums - kept)[chosen].mean(),
        "full": loss(sums).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-4, err_msg=name)


def test_what_sums_make_is_what_no_other_waves_of_the_pair_make():
    one, measures = model(), part("._measures")
    pairs = part("._training").every_pair(P)
    tokens = np.concatenate([pairs, np.full((P * P, 1), P)], axis=1)
    every = np.asarray(mijax.run(one, tokens))[:, -1, :P].astype(np.float64)
    power = np.abs(np.fft.fftn(every.reshape(P, P, P))) ** 2
    # Means over answers are not seen.
    power[..., 0] = 0
    found = measures.dissect(one)
    assert found.keys
    kept = sum(power[sign * k, sign * k].sum() for k in found.keys for sign in (1, -1))
    assert 0 < found.waves.sum() < found.sums < 1
    np.testing.assert_allclose(found.sums, kept / power.sum(), rtol=1e-3)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_is_between_none_and_all(share):
    with pytest.raises(ConfigError, match="share"):
        load("grokking").override({"share": share})
