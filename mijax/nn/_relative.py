"""Relative positions in buckets (T5)."""

import bisect

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class RelativePositions(eqx.Module):
    r"""Add a learned bias per head to every score, by the distance between tokens.

    $s_{qk} + b_h[\mathrm{bucket}(q - k)]$ (Raffel et al. 2020, arXiv:1910.10683). Half
    of the buckets are for one distance each. The others are for ranges that grow
    geometrically up to `max_distance`, and the last one for all that is farther. In
    attention that is not causal, the second half of all buckets is for later keys.

    Attributes:
        weight: $b_h$, one row for each bucket.
        max_distance: distance from which all keys share a bucket.
        causal: True if no query reads later keys.

    Examples:
        >>> relative = RelativePositions(jnp.ones((8, 2)), max_distance=16, causal=True)
        >>> relative.bucket(jnp.array([0, 1, 3, 6, 8, 12, 99])).tolist()
        [0, 1, 3, 5, 6, 7, 7]
    """

    weight: Float[Array, "*layer buckets heads"]
    max_distance: int = eqx.field(static=True)
    causal: bool = eqx.field(static=True)

    def __call__(
        self,
        scores: Float[Array, "*lane heads seq key_seq"],
        query: Int[Array, "*lane seq 1"],
        key: Int[Array, "... key_seq"],
    ) -> Float[Array, "*lane heads seq key_seq"]:
        """Adds the bias to scores of queries and keys at these positions."""
        bias = self.weight[self.bucket(query - key)]
        return scores + jnp.moveaxis(bias, -1, -3).astype(scores.dtype)

    def bucket(self, distance: Int[Array, "..."]) -> Int[Array, "..."]:
        """Return the bucket of each distance, the query's position minus the key's."""
        start, buckets = 0, self.weight.shape[-2]
        if self.causal:
            distance = jnp.maximum(distance, 0)
        else:
            buckets //= 2
            start = buckets * (distance < 0)
            distance = jnp.abs(distance)
        exact = buckets // 2
        # Integers, since a logarithm in float32 may round to either side of a border.
        borders = jnp.array(_borders(buckets, self.max_distance), distance.dtype)
        far = exact + (distance[..., None] >= borders).sum(-1)
        return start + jnp.where(distance < exact, distance, far)


def _borders(buckets: int, max_distance: int) -> list[int]:
    r"""Return the first distance of each bucket of a range but the first such bucket.

    With $e$ buckets of one distance and $n$ of a range, bucket $e + j$ begins at the
    smallest integer $d$ with $n \log(d / e) / \log(m / e) \ge j$, which is
    $d^n \ge m^j e^{n - j}$.
    """
    exact = buckets // 2
    wide = buckets - exact
    found = []
    for j in range(1, wide):
        least = max_distance**j * exact ** (wide - j)
        found.append(
            bisect.bisect_left(range(max_distance), least, key=lambda d: d**wide)
        )
    return found
