"""Fourier analysis modulo p, against numpy's transform and functions made by hand."""

import numpy as np
import pytest

from mijax._errors import ShapeError
from mijax.features import (
    best_frequency,
    fourier_basis,
    fourier_power,
    keep_sums,
    wave_logits,
)

P = 11


def angles(*parts):
    """Pairs and answers as angles of frequency 1."""
    n = 2 * np.pi * np.arange(P) / P
    return np.meshgrid(*[n] * (parts[0] if parts else 2), indexing="ij")


def test_power_is_that_of_numpys_transform():
    x = np.random.default_rng(0).normal(size=(P, 3, 2))
    power = np.abs(np.fft.rfft(x, axis=0, norm="ortho")) ** 2
    power[1:] *= 2  # of negative frequencies
    np.testing.assert_allclose(fourier_power(x), power.sum((1, 2)), rtol=1e-5)
    basis = fourier_basis(P)
    np.testing.assert_allclose(basis @ basis.T, np.eye(P), atol=1e-12)
    with pytest.raises(ShapeError, match="odd"):
        fourier_basis(10)


def test_the_best_frequency_of_neurons_made_by_hand(unchecked):
    a, b = angles()
    random = np.random.default_rng(1)
    weight = random.normal(size=8)
    eight = [np.cos(4 * a), np.sin(4 * a), np.cos(4 * b), np.sin(4 * b)]
    eight += [f(4 * a) * g(4 * b) for f in (np.cos, np.sin) for g in (np.cos, np.sin)]
    neuron = sum(w * wave for w, wave in zip(weight, eight, strict=True))
    mixed = 1.5 + np.cos(5 * a) + 0.5 * np.cos(2 * a)
    same = np.full((P, P), 2.0)
    frequency, share = best_frequency(np.stack([neuron + 3, mixed, same], -1))
    assert frequency[:2].tolist() == [4, 5]
    np.testing.assert_allclose(share, [1, 0.8, 0], atol=1e-5)
    with pytest.raises(ShapeError, match="all pairs"):
        best_frequency(np.zeros((P, 3, 2)))


def test_waves_of_sums_are_a_projection(unchecked):
    a, b = angles()
    x = np.random.default_rng(2).normal(size=(P, P, 4))
    rows = [f(k * (a + b)).reshape(-1) for k in (2, 5) for f in (np.cos, np.sin)]
    basis = np.linalg.qr(np.stack(rows, 1))[0]
    expected = (basis @ (basis.T @ x.reshape(P * P, 4))).reshape(x.shape)
    kept = keep_sums(x, [2, 5])
    np.testing.assert_allclose(kept, expected, atol=1e-5)
    np.testing.assert_allclose(keep_sums(kept, [2, 5]), kept, atol=1e-5)
    assert np.abs(keep_sums(x - np.asarray(kept), [2, 5])).max() < 1e-5
    with pytest.raises(ShapeError, match="1 to 5"):
        keep_sums(x, [6])


def test_shares_of_logits_are_those_of_least_squares(unchecked):
    a, b, c = angles(3)
    random = np.random.default_rng(3)
    waves = [np.cos(k * (a + b - c)) for k in (1, 3)]
    logits = 2 * waves[0] - waves[1] + 0.3 * random.normal(size=(P, P, P))
    logits += random.normal(size=(P, P, 1))  # no probability notices
    centred = logits - logits.mean(-1, keepdims=True)
    design = np.stack([wave.reshape(-1) for wave in waves], 1)
    residual = np.linalg.lstsq(design, centred.reshape(-1), rcond=None)[1]
    share = wave_logits(logits, [1, 3])
    expected = 1 - residual / (centred**2).sum()
    np.testing.assert_allclose(share.sum(), expected[0], atol=1e-5)
    assert share[0] > 3 * share[1]
    with pytest.raises(ShapeError, match="answers"):
        wave_logits(logits[:4], [1])


def test_a_frequency_counts_once_and_none_is_nothing(unchecked):
    x = np.random.default_rng(4).normal(size=(P, P, P))
    np.testing.assert_array_equal(keep_sums(x, [3, 3]), keep_sums(x, [3]))
    np.testing.assert_array_equal(keep_sums(x, []), 0 * x)
    assert wave_logits(x, []).shape == (0,)
    with pytest.raises(ShapeError, match="once"):
        wave_logits(x, [3, 3])


def test_a_large_mean_hides_no_frequency(unchecked):
    a, b = angles()
    small = 0.05 * np.cos(4 * (a + b)) + 0.05 * np.cos(2 * a)
    x = np.stack([small, 1000 + small, np.full((P, P), 1000.1)], -1)
    frequency, share = best_frequency(x)
    assert set(frequency[:2].tolist()) <= {2, 4}
    # The second wave has the larger variance by nothing: both explain half.
    np.testing.assert_allclose(share, [0.5, 0.5, 0], atol=1e-3)
