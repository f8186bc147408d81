"""Statistics against NumPy in float64, also where offsets are large."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax._errors import ShapeError
from mijax.data import AbstractSource, Batch, geometric_median, statistics

ROWS = np.random.default_rng(0).normal(size=(96, 2, 6)) * [1, 2, 3, 4, 5, 6]


class Given(AbstractSource):
    table: np.ndarray
    size: int = 16

    def start(self):
        return np.asarray(0)

    def batch(self, state):
        x = jnp.asarray(self.table[int(state) : int(state) + self.size])
        return state + self.size, Batch(x, 3 * x)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_statistics(offset):
    table = (ROWS + offset).astype(np.float32)
    found = statistics(Given(table), 96)
    exact = table.astype(np.float64)
    norms = np.linalg.norm(exact, axis=-1)
    # What one rounding of such numbers to float32 does to a variance.
    noise = offset * 2**-23
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(found.variance, exact.var(0), rtol=1e-4 + noise)
    np.testing.assert_allclose(found.mean_norm, norms.mean(0), rtol=1e-6)
    scale = np.sqrt(6 / (norms**2).mean(0))
    np.testing.assert_allclose(found.scale, scale, rtol=1e-5)
    scaled = exact * np.asarray(found.scale)[:, None]
    np.testing.assert_allclose((scaled**2).sum(-1).mean(0), 6, rtol=1e-4)
    assert found.rows == 96


def test_statistics_do_not_depend_on_batches():
    table = ROWS.astype(np.float32)
    one, many = statistics(Given(table, 96), 96), statistics(Given(table, 8), 96)
    chex.assert_trees_all_close(one, many, rtol=1e-5, atol=1e-6)
    assert statistics(Given(table), 17).rows == 32
    of_targets = statistics(Given(table), 96, targets=True)
    chex.assert_trees_all_close(of_targets.mean, 3 * one.mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(ShapeError, match="a row at least"):
        statistics(Given(table), 0)


def gradient(x, point):
    """Of the sum of distances, in float64."""
    apart = point - x
    return (apart / np.linalg.norm(apart, axis=1, keepdims=True)).mean(0)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_geometric_median(offset):
    table = (ROWS + offset).astype(np.float32)
    found = geometric_median(jnp.asarray(table))
    assert found.shape == (2, 6)
    for site in range(2):
        slope = gradient(table[:, site].astype(float), np.asarray(found[site], float))
        assert np.abs(slope).max() < 1e-4
    chex.assert_trees_all_close(geometric_median(table[:, 0]), found[0], rtol=1e-5)


def test_geometric_median_on_a_row_and_with_outliers():
    rows = jnp.array([[0.0, 0], [0, 0], [0, 0], [1, 0], [0, 7]])
    chex.assert_trees_all_close(geometric_median(rows), jnp.zeros(2), atol=1e-5)
    # It begins on a row, the mean, which is not the median.
    rows = jnp.array([[0.0], [1], [2], [3], [4], [-10]])
    assert 1 <= float(geometric_median(rows)[0]) <= 2
    assert geometric_median(jnp.ones((3, 4))).tolist() == [1.0] * 4
    assert geometric_median(jnp.ones((1, 4))).tolist() == [1.0] * 4
    key = jax.random.key(0)
    rows = jax.random.normal(key, (101, 3)).at[:20].add(1e6)
    assert jnp.abs(geometric_median(rows)).max() < 1
    with pytest.raises(ShapeError, match="not none"):
        geometric_median(jnp.zeros((0, 3)))
