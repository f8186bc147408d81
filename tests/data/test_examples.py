"""Every pass over examples has each of them once, in an order of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax.data import Examples
from mijax.data._permute import permuted_on_device


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000])
def test_a_permutation_has_every_entry_once(size):
    index = jnp.arange(size)
    found = permuted_on_device(jax.random.key(0), index, size)
    assert sorted(found.tolist()) == list(range(size))
    np.testing.assert_array_equal(
        permuted_on_device(jax.random.key(0), index[::-2], size), found[::-2]
    )


def test_every_permutation_is_as_likely():
    keys = jax.random.split(jax.random.key(1), 24_000)
    index = jnp.arange(4)
    found = np.asarray(jax.vmap(lambda key: permuted_on_device(key, index, 4))(keys))
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    # Chi-square with 23 degrees of freedom is below 49.7 in 99.9 %.
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7


def test_passes_over_examples():
    source = Examples(jnp.arange(14.0)[:, None], batch=4, seed=3)
    state, rows = source.start(), []
    for _ in range(9):
        state, batch = source.batch(state)
        rows.append(batch.x[:, 0].tolist())
    passes = [[*rows[i], *rows[i + 1], *rows[i + 2]] for i in (0, 3, 6)]
    assert all(len(set(one)) == 12 for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    again = source.batch(jnp.int32(5))[1]
    assert again.x[:, 0].tolist() == rows[5]
