"""Deltas: low-rank or dense matrices that an edit adds to a weight."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError
from mijax.core.internal import cut, reals, shown


def _wide(values: object) -> Array:
    """Return an array in float32; pass shapes without values through."""
    if isinstance(values, jax.ShapeDtypeStruct):
        return values  # pyright: ignore[reportReturnType]
    return reals(values, "A delta").astype(jnp.float32)


class AbstractDelta(eqx.Module):
    """A matrix to add to a weight, in full or in factors."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is added to."""

    @abc.abstractmethod
    def dense(self) -> Float[Array, "..."]:
        """Return the delta with the shape of the weight, in float32."""

    @abc.abstractmethod
    def norm(self) -> Float[Array, ""]:
        """Return the Frobenius norm."""

    @abc.abstractmethod
    def rank(self) -> int:
        """Return the numerical rank of the delta as a matrix."""

    @abc.abstractmethod
    def scaled(self, factor: float | int | Array) -> "AbstractDelta":
        """Return the delta times a number."""


class LowRank(AbstractDelta):
    r"""A low-rank delta, $\Delta W = \sum_r \ell_r \otimes \rho_r$.

    Args:
        left: factor on the input side of the weight, `[*inputs, rank]`.
        right: factor on its output side, `[rank, *outputs]`.

    Raises:
        ShapeError: factors of different rank.

    Examples:
        >>> delta = LowRank(jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 4.0]]))
        >>> delta.dense().tolist(), delta.rank(), round(float(delta.norm()), 3)
        ([[3.0, 4.0], [6.0, 8.0]], 1, 11.18)
    """

    left: Float[Array, "*inputs rank"] = eqx.field(converter=_wide)
    right: Float[Array, "rank *outputs"] = eqx.field(converter=_wide)

    def __check_init__(self) -> None:
        left, right = jnp.shape(self.left), jnp.shape(self.right)
        if len(left) < 2 or len(right) < 2 or left[-1] != right[0]:
            raise ShapeError(
                "LowRank takes left [*inputs, rank] and right [rank, *outputs] of the "
                f"same rank, got {left} and {right}."
            )

    def __repr__(self) -> str:
        return f"LowRank(rank at most {self.left.shape[-1]}, {_listed(self.shape)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is added to."""
        return (*self.left.shape[:-1], *self.right.shape[1:])

    def dense(self) -> Float[Array, "..."]:
        """Return the delta with the shape of the weight, in float32."""
        product = jnp.tensordot(self.left, self.right, 1, precision="highest")
        return product.astype(jnp.float32)

    def norm(self) -> Float[Array, ""]:
        """Return the Frobenius norm, from the factors."""
        left, right = self._factors()
        # Equals the norm of the small matrix between two orthonormal bases.
        inner = jnp.linalg.qr(left)[1] @ jnp.linalg.qr(right.T)[1].T
        return jnp.linalg.norm(inner)

    def rank(self) -> int:
        """Return the numerical rank, from the factors."""
        left, right = (np.asarray(a, np.float64) for a in self._factors())
        inner = np.linalg.qr(left)[1] @ np.linalg.qr(right.T)[1].T
        return _rank(inner, max(len(left), right.shape[1]))

    def scaled(self, factor: float | int | Array) -> "LowRank":
        """Return the delta times a number."""
        return LowRank(self.left, self.right * factor)

    def _factors(self) -> tuple[Array, Array]:
        rank = self.left.shape[-1]
        return self.left.reshape(-1, rank), self.right.reshape(rank, -1)


class Dense(AbstractDelta):
    """A delta given in full.

    Args:
        values: the delta, `[*inputs, *outputs]`, with the weight's shape. Its rank is
            the rank of the matrix with the last axis as columns.

    Examples:
        >>> Dense(jnp.eye(3)).rank()
        3
    """

    values: Float[Array, "..."] = eqx.field(converter=_wide)

    def __repr__(self) -> str:
        return cut(f"Dense({shown(self.values)}, {_listed(self.shape)})")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is added to."""
        return self.values.shape

    def dense(self) -> Float[Array, "..."]:
        """Return the delta with the shape of the weight, in float32."""
        return self.values

    def norm(self) -> Float[Array, ""]:
        """Return the Frobenius norm."""
        return jnp.linalg.norm(self.values.reshape(-1))

    def rank(self) -> int:
        """Return the numerical rank of the delta as a matrix."""
        matrix = np.asarray(self.values, np.float64)
        matrix = matrix.reshape(-1, matrix.shape[-1]) if matrix.ndim else matrix[None]
        return _rank(np.atleast_2d(matrix), max(matrix.shape))

    def scaled(self, factor: float | int | Array) -> "Dense":
        """Return the delta times a number."""
        return Dense(self.values * factor)


def _rank(matrix: np.ndarray, size: int) -> int:
    """Count singular values above float32 precision."""
    values = np.linalg.svd(matrix, compute_uv=False)
    least = size * np.finfo(np.float32).eps * values.max(initial=0.0)
    return int((values > least).sum())


def _listed(shape: tuple[int, ...]) -> str:
    return f"{' x '.join(map(str, shape))}, {math.prod(shape)} numbers"
