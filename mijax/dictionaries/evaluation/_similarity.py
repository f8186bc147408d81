"""How alike the directions of dictionaries are."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.dictionaries._dictionary import Dictionary

ROWS = 1024


class Similarity(eqx.Module):
    """The best match of each direction among others.

    Attributes:
        best: cosine of each direction with the one most like it, `[direction]`.
        match: which that is, `[direction]`.
        others: how many there are to choose from.
    """

    best: Float[Array, " direction"]
    match: Int[Array, " direction"]
    others: int = eqx.field(static=True)

    @property
    def mean(self) -> float:
        """Mean of the best cosines: MMCS (Sharkey et al. 2022)."""
        return float(self.best.mean())

    @property
    def unique(self) -> float:
        """Share of directions whose best match is theirs alone."""
        counts = jnp.zeros(self.others, jnp.int32).at[self.match].add(1)
        return float((counts[self.match] == 1).mean())


def similarity(
    one: Dictionary | Float[Array, "direction out"],
    other: Dictionary | Float[Array, "other out"] | None = None,
) -> Similarity:
    """Compares the decoder of a dictionary with others, direction by direction.

    Args:
        one: a dictionary, or directions: of true features, `similarity(features, sae)`
            tells how well each of them was found, and `.mean` is the mean max cosine
            similarity (MMCS).
        other: what it is compared with; `None` is the other directions of `one`.

    Returns:
        The best match of each direction of `one`. Cosines are signed; a direction of
        length 0 has cosine 0 with all.

    Raises:
        ShapeError: directions of different size, or nothing to compare with.

    Examples:
        >>> similarity(jnp.eye(3), jnp.eye(3)[:2]).best.tolist()
        [1.0, 1.0, 0.0]
    """
    a = directions(one)
    b = a if other is None else directions(other)
    if a.shape[1] != b.shape[1] or b.shape[0] < 1 + (other is None):
        raise ShapeError(
            f"Directions of shapes {a.shape} and {b.shape} cannot be compared: give "
            "dictionaries that write the same activations."
        )
    best, match = _best(a, b, other is None)
    return Similarity(best, match, b.shape[0])


def directions(of: Dictionary | Array) -> Float[Array, "direction out"]:
    """Returns rows of length 1."""
    rows = of.wiring.rows(of.weights) if isinstance(of, Dictionary) else jnp.asarray(of)
    if rows.ndim != 2:
        raise ShapeError(f"Directions are [direction, out], got shape {rows.shape}.")
    rows = rows.astype(jnp.float32)
    norm = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norm > 0, norm, 1)


@eqx.filter_jit
def _best(
    a: Float[Array, "direction out"], b: Float[Array, "other out"], own: bool
) -> tuple[Array, Array]:
    """Finds the best cosines, some rows at a time."""

    def one(given: tuple[Array, Array]) -> tuple[Array, Array]:
        row, index = given
        cosines = b @ row
        if own:
            cosines = jnp.where(jnp.arange(b.shape[0]) == index, -jnp.inf, cosines)
        match = jnp.argmax(cosines)
        return cosines[match], match

    index = jnp.arange(a.shape[0])
    return jax.lax.map(one, (a, index), batch_size=min(ROWS, a.shape[0]))
