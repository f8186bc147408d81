"""Permutations of many indices that are computed, not stored.

A Feistel network on the next even power of two, applied again to results outside (Black
and Rogaway 2002, "Ciphers with arbitrary finite domains"): the work is that of the rows
asked for, where sorting would be that of all rows. grain's `index_shuffle` does not
replace it: one index a call (30 times slower for a batch of 4,096), no tracing by JAX.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, UInt

ROUNDS, ROUNDS_ON_DEVICE = 6, 8
MIX = np.uint64(0xBF58476D1CE4E5B9)


def permuted(
    index: Int[np.ndarray, " rows"], size: int, seed: int, epoch: int
) -> Int[np.ndarray, " rows"]:
    """Permutes `0 .. size - 1` with 64 bits, and computes only the given entries.

    Args:
        index: which entries of the permutation.
        size: how many it has.
        seed: of the permutation.
        epoch: another permutation of the same seed.

    Returns:
        The entries.
    """
    half = half_of(size)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)

    def mixed(x: Any) -> Any:
        x = x * MIX
        return ((x ^ (x >> 29)) * MIX) >> 32

    found = cipher(index.astype(np.uint64), half, keys, mixed)
    outside = np.flatnonzero(found >= size)
    while outside.size:
        found[outside] = cipher(found[outside], half, keys, mixed)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def permuted_on_device(
    key: PRNGKeyArray, index: Int[Array, " rows"], size: int
) -> Int[Array, " rows"]:
    """Permutes `0 .. size - 1` with 32 bits, as a JAX computation.

    Args:
        key: of the permutation.
        index: which entries of it.
        size: how many it has.

    Returns:
        The entries.
    """
    half = half_of(size)
    keys = jax.random.bits(key, (ROUNDS_ON_DEVICE,), jnp.uint32)

    def again(now: UInt[Array, " rows"]) -> UInt[Array, " rows"]:
        return jnp.where(now >= size, cipher(now, half, keys, _mixed), now)

    first = cipher(index.astype(jnp.uint32), half, keys, _mixed)
    found = jax.lax.while_loop(lambda now: (now >= size).any(), again, first)
    return found.astype(jnp.int32)


def half_of(size: int) -> int:
    """Returns half the bits of the network's numbers."""
    return max(1, (int(size - 1).bit_length() + 1) // 2)


def cipher(value: Any, half: int, keys: Iterable, mixed: Callable[[Any], Any]) -> Any:
    """Permutes the numbers of `2 * half` bits, one round for each key."""
    low = (1 << half) - 1
    left, right = value >> half, value & low
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & low)
    return (left << half) | right


def _mixed(x: UInt[Array, " rows"]) -> UInt[Array, " rows"]:
    """Mixes all bits: the end of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
