"""Ways to search for the subspaces of variables."""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.causal._swap import Subspaces

STEPS = 4


class AbstractMethod(eqx.Module):
    """A family of subspaces with parameters: a frozen value.

    Its array leaves (sizes, temperatures) are traced: methods of one kind that differ
    only there are lanes of one program.
    """

    @abc.abstractmethod
    def start(self, key: PRNGKeyArray, width: int) -> Any:
        """Returns the parameters to begin with, for activations of a width."""

    @abc.abstractmethod
    def subspaces(self, params: Any, progress: Float[Array, ""]) -> Subspaces:
        """Returns the subspaces in training, `progress` from 0 to 1."""

    @abc.abstractmethod
    def found(self, params: Any) -> Subspaces:
        """Returns the subspaces at the end: every row is of one variable or of none."""

    def check(self, width: int) -> None:
        """Refuses activations that are too narrow; none here."""
        return None

    def penalty(self, params: Any) -> Float[Array, ""]:
        """Returns what is added to the loss; nothing here."""
        return jnp.float32(0)

    def settled(self, params: Any) -> Any:
        """Returns the parameters to go on with after an update; the same here."""
        return params


@final
class DAS(AbstractMethod):
    """Distributed alignment search: an orthogonal basis is learned, sizes are given.

    The first rows of the basis are the first variable's, the next ones the second's.

    The parameters are the basis itself. After every update they are set to the closest
    orthonormal columns (the polar factor), and the gradient is that of one step towards
    it, which projects it onto the tangents of the rotations. Both are products of
    matrices alone, batched over lanes; a QR decomposition or a Cayley transform is a
    call per lane of a linear algebra library on CPU. No rotation of the subspaces is
    out of reach, as it is for the Cayley transform, and `k` columns of `w` cost
    $O(w k^2)$.

    Geiger et al. 2023, arXiv:2303.02536.

    Args:
        sizes: dimensions of each variable; 0 where one is never swapped.
        rows: rows of the basis that are kept, at least the sum of the sizes; as many
            as the activation is wide by default.

    Examples:
        >>> method = DAS((2, 2))
        >>> params = method.start(jax.random.key(0), 8)
        >>> found = method.found(params)
        >>> found.basis.shape, found.mask.sum(1).tolist()
        ((8, 8), [2.0, 2.0])
    """

    sizes: Int[Array, " variable"]
    rows: int | None = eqx.field(static=True, default=None)

    def __init__(self, sizes: Any, *, rows: int | None = None):
        self.sizes = jnp.asarray(sizes, jnp.int32)
        self.rows = rows

    def check(self, width: int) -> None:
        """Refuses sizes that do not fit."""
        rows = width if self.rows is None else self.rows
        if int(self.sizes.min()) < 0 or int(self.sizes.max()) < 1:
            raise ConfigError(
                "Variables have 0 dimensions or more, one of them at least 1; got "
                f"{', '.join(map(str, self.sizes.tolist()))}."
            )
        if rows > width or int(self.sizes.sum()) > rows:
            raise ConfigError(
                f"Variables of {', '.join(map(str, self.sizes.tolist()))} dimensions do"
                f" not fit {rows} rows of a basis for {width} numbers."
            )

    def start(self, key: PRNGKeyArray, width: int) -> Float[Array, "width row"]:
        """Draws a random basis."""
        rows = width if self.rows is None else self.rows
        return orthonormal(jax.random.normal(key, (width, rows)))

    def subspaces(
        self, params: Float[Array, "width row"], progress: Float[Array, ""]
    ) -> Subspaces:
        """Returns the subspaces."""
        return Subspaces(nearer(params).T, self._mask(params))

    def found(self, params: Float[Array, "width row"]) -> Subspaces:
        """Returns the subspaces."""
        return Subspaces(orthonormal(params).T, self._mask(params))

    def settled(self, params: Float[Array, "width row"]) -> Float[Array, "width row"]:
        """Makes the columns orthonormal."""
        return closest(params)

    def _mask(self, params: Array) -> Float[Array, "variable row"]:
        stop = jnp.cumsum(self.sizes)[:, None]
        row = jnp.arange(params.shape[1])
        mask = (row >= stop - self.sizes[:, None]) & (row < stop)
        return mask.astype(params.dtype)


@final
class BoundlessDAS(AbstractMethod):
    r"""DAS whose sizes are learned, as boundaries between the rows of the basis.

    In training, row `j` belongs to a variable between the boundaries `a` and `b` by
    $\sigma((j - a) / T)\,\sigma((b - j) / T)$; the temperature falls, from the first to
    the second, by a constant factor. The penalty is on the sum of the sizes, as a share
    of the width.

    Wu et al. 2023, arXiv:2305.08809, with one variable and a straight fall.

    Args:
        active: for each variable, whether it has a subspace.
        temperature: at the start and at the end, in rows.
        weight: of the penalty.

    Examples:
        >>> method = BoundlessDAS((True,))
        >>> params = method.start(jax.random.key(0), 8)
        >>> method.found(params).mask.sum(1).tolist()  # half of them to begin with
        [4.0]
    """

    active: Float[Array, " variable"]
    temperature: Float[Array, " 2"]
    weight: Float[Array, ""]

    def __init__(
        self, active: Any, *, temperature: Any = (2.0, 0.1), weight: Any = 0.1
    ):
        self.active = jnp.asarray(active, jnp.float32)
        self.temperature = jnp.asarray(temperature, jnp.float32)
        self.weight = jnp.asarray(weight, jnp.float32)

    def start(self, key: PRNGKeyArray, width: int) -> dict[str, Array]:
        """Draws a random basis, half of whose rows the variables share."""
        basis = orthonormal(jax.random.normal(key, (width, width)))
        return {"basis": basis, "share": 0.5 * self.active / self.active.sum()}

    def subspaces(self, params: Any, progress: Float[Array, ""]) -> Subspaces:
        """Returns the subspaces, their boundaries soft."""
        begin, end = self._boundaries(params)
        heat = self.temperature[0] ** (1 - progress) * self.temperature[1] ** progress
        row = jnp.arange(params["basis"].shape[1]) + 0.5
        inside = jax.nn.sigmoid((row - begin) / heat)
        inside = inside * jax.nn.sigmoid((end - row) / heat)
        basis = nearer(params["basis"]).T
        return Subspaces(basis, inside * self.active[:, None])

    def found(self, params: Any) -> Subspaces:
        """Returns the subspaces between the boundaries."""
        begin, end = self._boundaries(params)
        row = jnp.arange(params["basis"].shape[1]) + 0.5
        inside = (row >= begin) & (row < end)
        basis = orthonormal(params["basis"]).T
        return Subspaces(basis, inside * self.active[:, None])

    def penalty(self, params: Any) -> Float[Array, ""]:
        """Returns the share of the rows that variables have."""
        return self.weight * (params["share"] * self.active).sum()

    def settled(self, params: Any) -> dict[str, Array]:
        """Makes the basis orthonormal, and keeps the sizes within the width."""
        share = jnp.clip(params["share"], 0, 1)
        share = share / jnp.maximum(share.sum(), 1)
        return {"basis": closest(params["basis"]), "share": share}

    def _boundaries(self, params: Any) -> tuple[Array, Array]:
        size = params["share"] * self.active * params["basis"].shape[1]
        stop = jnp.cumsum(size)
        return (stop - size)[:, None], stop[:, None]


@final
class DBM(AbstractMethod):
    r"""Desiderata-based masking: a mask on neurons is learned, without a rotation.

    A neuron belongs to one of the variables or to none by a softmax over them at a
    temperature that falls, from the first to the second, by a constant factor; with one
    variable that is a sigmoid. The penalty is on the share of neurons that are masked.

    De Cao et al. 2020, arXiv:2004.14992; Davies et al. 2023, arXiv:2307.03637.

    Args:
        active: for each variable, whether it has neurons.
        temperature: at the start and at the end.
        weight: of the penalty.

    Examples:
        >>> method = DBM((True, True))
        >>> method.found(jnp.array([[1.0, -1.0, 0.0], [0.5, 2.0, -3.0]])).mask.tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    active: Float[Array, " variable"]
    temperature: Float[Array, " 2"]
    weight: Float[Array, ""]

    def __init__(
        self, active: Any, *, temperature: Any = (1.0, 0.01), weight: Any = 0.0
    ):
        self.active = jnp.asarray(active, jnp.float32)
        self.temperature = jnp.asarray(temperature, jnp.float32)
        self.weight = jnp.asarray(weight, jnp.float32)

    def start(self, key: PRNGKeyArray, width: int) -> Float[Array, "variable width"]:
        """Draws scores near 0: no neuron is preferred by much."""
        return 0.1 * jax.random.normal(key, (len(self.active), width))

    def subspaces(
        self, params: Float[Array, "variable width"], progress: Float[Array, ""]
    ) -> Subspaces:
        """Returns soft masks."""
        heat = self.temperature[0] ** (1 - progress) * self.temperature[1] ** progress
        mask = jax.nn.softmax(self._scores(params) / heat, axis=0)[1:]
        return Subspaces(jnp.eye(params.shape[1]), mask)

    def found(self, params: Float[Array, "variable width"]) -> Subspaces:
        """Returns the mask of the largest score; 0 is that of none."""
        best = self._scores(params).argmax(0)
        mask = best == 1 + jnp.arange(len(params))[:, None]
        return Subspaces(jnp.eye(params.shape[1]), mask.astype(params.dtype))

    def penalty(self, params: Float[Array, "variable width"]) -> Float[Array, ""]:
        """Returns the share of neurons that are masked."""
        return (
            self.weight * jax.nn.softmax(self._scores(params), axis=0)[1:].mean(1).sum()
        )

    def _scores(self, params: Array) -> Array:
        scores = jnp.where(self.active[:, None] > 0, params, -jnp.inf)
        return jnp.concatenate([jnp.zeros((1, params.shape[1])), scores])


def orthonormal(columns: Float[Array, "width row"]) -> Float[Array, "width row"]:
    """Returns the Q of a QR decomposition, continuous: R has no negative diagonal."""
    q, r = jnp.linalg.qr(columns)
    return q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)


def nearer(columns: Float[Array, "width row"]) -> Float[Array, "width row"]:
    r"""Takes a Newton-Schulz step to the closest orthonormal columns.

    $M \mapsto \frac{3}{2} M - \frac{1}{2} M M^\top M$. Where columns are orthonormal it
    is the identity, and its derivative projects onto directions that keep them so.
    """
    return 1.5 * columns - 0.5 * columns @ (columns.T @ columns)


def closest(columns: Float[Array, "width row"]) -> Float[Array, "width row"]:
    """Returns the closest orthonormal columns, for columns that nearly are."""
    # Steps converge where no singular value is above the root of 3; rows of the Gram
    # matrix bound the largest one.
    bound = jnp.abs(columns.T @ columns).sum(1).max()
    columns = columns / jnp.maximum(1, jnp.sqrt(bound) / 1.5)
    for _ in range(STEPS):
        columns = nearer(columns)
    return columns
