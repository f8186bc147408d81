"""Coefficients of scikit-learn, and independent float64 solutions in NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax._errors import MijaxError
from mijax.probes import LDA, Logistic, Means, Ridge, fit

GOLDEN = Path(__file__).parent.parent / "golden" / "sklearn" / "probes.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def gauge(weight, bias):
    """Removes what all classes share."""
    if weight.shape[-1] > 1:
        return weight - weight.mean(-1, keepdims=True), bias - bias.mean()
    return weight, bias


CASES = [
    ("logistic_binary", lambda g: Logistic(l2=float(g["l2"])), "binary"),
    ("logistic_several", lambda g: Logistic(l2=float(g["l2"])), "several"),
    ("lda_binary", lambda g: LDA(shrinkage=float(g["shrinkage"])), "binary"),
    ("lda_several", lambda g: LDA(shrinkage=float(g["shrinkage"])), "several"),
    ("ridge", lambda g: Ridge(l2=float(g["l2"])), "values"),
]


@pytest.mark.parametrize(("name", "make", "labels"), CASES, ids=[c[0] for c in CASES])
def test_scikit_learn(golden, name, make, labels):
    x, y = golden["x"].astype(np.float32), golden[labels]
    found = fit(make(golden), x, y, x, y)
    assert bool(found.converged)
    weight, bias = gauge(*map(np.asarray, found.weights))
    expected, expected_bias = gauge(golden[f"{name}_weight"], golden[f"{name}_bias"])
    # Relative to what a typical difference between examples does to the logit.
    scale = golden["x"].std(0)[:, None]
    size = np.abs(expected * scale).max()
    np.testing.assert_allclose(weight * scale, expected * scale, atol=1e-4 * size)
    np.testing.assert_allclose(bias, expected_bias, atol=3e-4, rtol=1e-4)


def test_scikit_learn_with_balanced_classes(golden):
    """`class_weight="balanced"`, three times as many of one class as of the other."""
    with np.load(GOLDEN.with_name("balanced.npz")) as file:
        balanced = dict(file)
    kept = balanced["kept"]
    x, y = golden["x"].astype(np.float32)[kept], golden["binary"][kept]
    probe = Logistic(l2=float(golden["l2"]))
    found = fit(probe, x, y, x, y, example_weights="balanced")
    weight, bias = gauge(*map(np.asarray, found.weights))
    expected, expected_bias = gauge(
        balanced["logistic_weight"], balanced["logistic_bias"]
    )
    scale = golden["x"][kept].std(0)[:, None]
    size = np.abs(expected * scale).max()
    np.testing.assert_allclose(weight * scale, expected * scale, atol=1e-4 * size)
    np.testing.assert_allclose(bias, expected_bias, atol=3e-4, rtol=1e-4)
    each = 1 / np.bincount(y)[y]
    again = fit(probe, x, y, x, y, example_weights=5 * each)
    np.testing.assert_allclose(again.weights[0], found.weights[0], rtol=1e-5)
    plain = fit(probe, x, y, x, y)
    assert np.abs(plain.weights[1] - found.weights[1]).max() > 0.1
    for wrong in ("even", -each, each[1:]):
        with pytest.raises(MijaxError, match="example_weights"):
            fit(probe, x, y, x, y, example_weights=wrong)


def planted(n=300, d=12, classes=5):
    one, two, three = jax.random.split(jax.random.key(5), 3)
    x = jax.random.normal(one, (n, d)) * jnp.linspace(0.5, 4, d) + 1
    scores = x @ jax.random.normal(two, (d, classes))
    y = jnp.argmax(scores + 2 * jax.random.normal(three, scores.shape), axis=1)
    return np.asarray(x), np.asarray(y)


def test_the_solver_is_optimal_in_float64():
    """The gradient of the objective, in NumPy, is zero."""
    x, y = planted()
    l2 = 1e-2
    found = fit(Logistic(l2=l2), x, y, x, y)
    assert bool(found.converged)
    z = ((x - x.mean(0)) / x.std(0)).astype(np.float64)
    weight = np.asarray(found.params.weight, np.float64)
    logits = z @ weight + np.asarray(found.params.bias, np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = (p - np.eye(5)[y]) / len(x)
    start = np.linalg.norm(z.T @ (0.2 - np.eye(5)[y]) / len(x))
    gradient = np.linalg.norm(z.T @ error + l2 * weight)
    assert gradient < 1e-4 * start
    assert np.abs(error.sum(0)).max() < 1e-5  # the bias is not penalised


def test_means_by_hand():
    x, y = planted(classes=2)
    found = fit(Means(), x, y, x, y)
    difference = x[y == 1].mean(0) - x[y == 0].mean(0)
    expected = difference / np.linalg.norm(difference)
    np.testing.assert_allclose(found.direction(), expected, atol=1e-5)
    middle = (x[y == 1].mean(0) + x[y == 0].mean(0)) / 2
    right = ((x - middle) @ difference > 0) == (y == 1)
    np.testing.assert_allclose(found.held_out.mean, right.mean(), atol=1e-6)


def test_offsets_far_from_zero_cost_nothing():
    """Float32 sums of large numbers would lose the signal; standardisation does not."""
    x, y = planted(classes=2)
    near = fit(Logistic(l2=0.1), x, y, x, y)
    far = fit(Logistic(l2=0.1), x + 1000.0, y, x + 1000.0, y)
    np.testing.assert_allclose(near.direction(), far.direction(), atol=2e-3)
    np.testing.assert_allclose(near.held_out.mean, far.held_out.mean, atol=0.01)


def test_values_that_float32_cannot_tell_apart_are_refused():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)).astype(np.float32)
    y = x[:, 0] + 0.1 * rng.normal(size=300)
    halves = lambda y: (x[:200], y[:200], x[200:], y[200:])  # noqa: E731
    near, far = (fit(Ridge(), *halves(y + offset)) for offset in (0, 1e4))
    np.testing.assert_allclose(near.held_out.mean, far.held_out.mean, atol=1e-3)
    with pytest.raises(mijax.MijaxError, match=r"y_train has the mean 1e\+08"):
        fit(Ridge(), *halves(y + 1e8))
    with pytest.raises(mijax.MijaxError, match=r"y_held_out has the mean 1e\+08"):
        fit(Ridge(), x[:200], y[:200], x[200:], y[200:] + 1e8)
