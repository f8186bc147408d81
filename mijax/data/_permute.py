"""A permutation of many indices that is computed, not kept."""

import numpy as np
from jaxtyping import Int

ROUNDS = 6
MIX = np.uint64(0xBF58476D1CE4E5B9)


def permuted(
    index: Int[np.ndarray, " rows"], size: int, seed: int, epoch: int
) -> Int[np.ndarray, " rows"]:
    """Permutes `0 .. size - 1`, and computes only what is asked for.

    A Feistel network on the next even power of two, applied again to what falls
    outside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        index: which entries of the permutation.
        size: how many it has.
        seed: of the permutation.
        epoch: another permutation of the same seed.

    Returns:
        The entries.
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)

    def cipher(value: np.ndarray) -> np.ndarray:
        left, right = value >> half, value & low
        for key in keys:
            mixed = (right ^ key) * MIX
            mixed = (mixed ^ (mixed >> np.uint64(29))) * MIX
            left, right = right, left ^ ((mixed >> np.uint64(32)) & low)
        return (left << half) | right

    found = cipher(index.astype(np.uint64))
    outside = np.flatnonzero(found >= size)
    while outside.size:
        found[outside] = cipher(found[outside])
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)
