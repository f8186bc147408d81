"""The permutation of `_permute`, as a JAX computation with 32 bits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt

ROUNDS = 8


def permuted(
    key: PRNGKeyArray, index: Int[Array, " rows"], size: int
) -> Int[Array, " rows"]:
    """Permutes `0 .. size - 1`, and computes only what is asked for.

    A Feistel network on the next even power of two, applied again to what falls
    outside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): the work
    is that of the rows, where sorting would be that of all examples.

    Args:
        key: of the permutation.
        index: which entries of it.
        size: how many it has.

    Returns:
        The entries.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = jnp.uint32((1 << half) - 1)
    keys = jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def cipher(value: UInt[Array, " rows"]) -> UInt[Array, " rows"]:
        left, right = value >> half, value & low
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & low)
        return (left << half) | right

    found = jax.lax.while_loop(
        lambda now: (now >= size).any(),
        lambda now: jnp.where(now >= size, cipher(now), now),
        cipher(index.astype(jnp.uint32)),
    )
    return found.astype(jnp.int32)


def _mixed(x: UInt[Array, " rows"]) -> UInt[Array, " rows"]:
    """Mixes all bits: the end of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
