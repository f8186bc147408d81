"""J-space: the residual stream as a sparse nonnegative sum of token directions."""

import abc
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from mijax._errors import NotFiniteError, ShapeError
from mijax.core.internal import checked

# Smallest correlation of a selected atom, as a fraction of the norm of x.
CORRELATION = float(np.sqrt(np.finfo(np.float32).eps))
# Smallest contribution that counts, as the same fraction; also the rank tolerance.
ACTIVE = float(np.sqrt(np.finfo(np.float64).eps))
BACKTRACKS = 20


class AbstractPursuit(eqx.Module):
    """A method for finding the coefficients of the selected atoms."""

    @abc.abstractmethod
    def __call__(
        self,
        atoms: Float[np.ndarray, "embed selected"],
        x: Float[np.ndarray, " embed"],
        before: Float[np.ndarray, " selected"],
    ) -> Float[np.ndarray, " selected"]:
        """Return nonnegative coefficients.

        Args:
            atoms: the selected atoms, the newest last.
            x: the vector.
            before: previous coefficients, 0 for the newest atom.
        """


class ExactPursuit(AbstractPursuit):
    """Nonnegative least squares (Lawson and Hanson), in float64.

    The result is checked against the optimality conditions.

    Examples:
        >>> ExactPursuit()(np.eye(2), np.array([1.0, -1.0]), np.zeros(2)).tolist()
        [1.0, 0.0]
    """

    def __call__(
        self,
        atoms: Float[np.ndarray, "embed selected"],
        x: Float[np.ndarray, " embed"],
        before: Float[np.ndarray, " selected"],
    ) -> Float[np.ndarray, " selected"]:
        """Return the optimal coefficients.

        Raises:
            NotFiniteError: the solver did not reach the optimum.
        """
        from scipy.optimize import nnls  # noqa: PLC0415 - slow to import

        found, _ = nnls(atoms, x)
        dual = atoms.T @ (x - atoms @ found)
        norms = np.linalg.norm(atoms, axis=0)
        scale = np.linalg.norm(x) + np.linalg.norm(np.abs(atoms) @ found)
        allowed = 10 * ACTIVE * norms * scale
        if (dual > allowed).any() or (
            np.abs(dual[found > 0]) > allowed[found > 0]
        ).any():
            raise NotFiniteError("Nonnegative least squares did not reach the optimum.")
        return found


class GradientPursuit(AbstractPursuit):
    """One projected gradient step per new atom (Blumensath and Davies 2008).

    Examples:
        >>> GradientPursuit()(np.eye(2), np.array([1.0, -1.0]), np.zeros(2)).tolist()
        [1.0, 0.0]
    """

    def __call__(
        self,
        atoms: Float[np.ndarray, "embed selected"],
        x: Float[np.ndarray, " embed"],
        before: Float[np.ndarray, " selected"],
    ) -> Float[np.ndarray, " selected"]:
        """Return the coefficients after a step with the best size.

        The step is halved as long as its projection makes the fit worse.
        """
        rest = x - atoms @ before
        direction = atoms.T @ rest
        along = atoms @ direction
        length = along @ along
        if length <= 0:
            return before
        step = (along @ rest) / length
        for _ in range(BACKTRACKS + 1):
            new = np.maximum(before + step * direction, 0)
            error = x - atoms @ new
            if error @ error <= rest @ rest:
                return new
            step /= 2
        return before


class JSpace(eqx.Module):
    """Sparse decompositions of vectors.

    Lists have `k` entries, padded with -1, or with 0 for coordinates, if fewer atoms
    were selected.

    Attributes:
        support: atoms with a significant coordinate, `c_i |v_i| > 1.5e-8 |x|`.
        coordinates: their coefficients.
        selected: all selected atoms, in order; some may have coefficient 0.
        reconstruction: the nonnegative sum of the atoms in `support`.
        component: the orthogonal projection onto the span of `selected`.
        fraction: squared norm of `component`, as a fraction of the vector's.
        pooled: the same fraction for all vectors together.
    """

    support: Int[np.ndarray, "*rows k"]
    coordinates: Float[np.ndarray, "*rows k"]
    selected: Int[np.ndarray, "*rows k"]
    reconstruction: Float[np.ndarray, "*rows embed"]
    component: Float[np.ndarray, "*rows embed"]
    fraction: Float[np.ndarray, "*rows"]
    pooled: float

    @property
    def median(self) -> float:
        """Median over vectors of the fraction."""
        return float(np.median(self.fraction))


class Occupancy(eqx.Module):
    """Number of atoms that capture more than random atoms do.

    Attributes:
        atoms: the step with the largest gap.
        captured: fraction of the squared norm captured after each step.
        random: the same with random unit atoms, averaged over draws.
    """

    atoms: int
    captured: Float[np.ndarray, " k"]
    random: Float[np.ndarray, " k"]


@checked
def decompose(
    x: Any, atoms: Any, *, k: int = 25, pursuit: AbstractPursuit | None = None
) -> JSpace:
    r"""Decompose vectors into sparse nonnegative sums of atoms, by greedy pursuit.

    Each step selects the atom whose unit vector correlates most with the residual, then
    recomputes all coefficients. Pursuit ends early when no correlation exceeds
    $\sqrt{\epsilon_{32}} \lVert x \rVert$ (Gurnee et al. 2026). With
    `atoms = lens.vectors(model, range(vocab))[layer]`, the atoms are tokens.

    Args:
        x: vectors, `[*rows, embed]`.
        atoms: directions, `[atom, embed]`.
        k: maximum number of atoms per vector.
        pursuit: `ExactPursuit()` (the default) or `GradientPursuit()`.

    Returns:
        Both supports, coordinates, reconstruction and projection.

    Raises:
        ShapeError: shapes that do not match, k above the number of atoms, or an atom
            with norm 0.
        NotFiniteError: NaN or infinity.

    Examples:
        >>> found = decompose([3.0, 0.0, 1.0], np.eye(3), k=2)
        >>> found.support.tolist(), found.coordinates.tolist()
        ([0, 2], [3.0, 1.0])
    """
    given, table = np.asarray(x, np.float32), np.asarray(atoms, np.float32)
    norms = _checked_norms(given, table, k)
    pursuit = ExactPursuit() if pursuit is None else pursuit
    rows = given.reshape(-1, given.shape[-1])
    found = [_one(row.astype(np.float64), table, norms, k, pursuit) for row in rows]
    shape = given.shape[:-1]
    support, coordinates, selected, sums, component = (
        np.stack(part).reshape(*shape, -1) for part in zip(*found, strict=True)
    )
    captured = (component**2).sum(-1)
    whole = (given.astype(np.float64) ** 2).sum(-1)
    fraction = np.asarray(captured / np.maximum(whole, np.finfo(np.float64).tiny))
    pooled = float(captured.sum() / max(whole.sum(), np.finfo(np.float64).tiny))
    return JSpace(support, coordinates, selected, sums, component, fraction, pooled)


@checked
def occupancy(
    x: Any, atoms: Any, *, k: int = 25, draws: int = 32, seed: int = 0
) -> Occupancy:
    """Compare the variance captured by atoms with that of random unit atoms.

    Args:
        x: one vector, `[embed]`.
        atoms: directions, `[atom, embed]`.
        k: number of steps.
        draws: number of random dictionaries of the same size.
        seed: seed for the draws.

    Returns:
        Both cumulative fractions, and the step with the largest gap between them.

    Raises:
        ShapeError: shapes that do not match, or several vectors.

    Examples:
        >>> occupancy([3.0, 0.0, 1.0, 0.0], np.eye(4)[:3], k=3, draws=2).atoms <= 3
        True
    """
    given, table = np.asarray(x, np.float32), np.asarray(atoms, np.float32)
    if given.ndim != 1:
        raise ShapeError(f"occupancy takes one vector, got shape {given.shape}.")
    _checked_norms(given, table, k)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        other = random.standard_normal(table.shape).astype(np.float32)
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        drawn.append(_captured(given, other, k))
    captured, mean = _captured(given, table, k), np.mean(drawn, axis=0)
    return Occupancy(int((captured - mean).argmax()) + 1, captured, mean)


def _captured(x: np.ndarray, atoms: np.ndarray, k: int) -> Float[np.ndarray, " k"]:
    """Return the captured fraction of the squared norm after each step."""
    norms = np.linalg.norm(atoms, axis=1)
    wide = x.astype(np.float64)
    steps = _steps(wide, atoms, norms, k, ExactPursuit())
    total = max(wide @ wide, np.finfo(np.float64).tiny)
    found = [1 - rest @ rest / total for _, _, rest in steps]
    # Once selection ends, nothing more is captured.
    last = found[-1] if found else 0.0
    return np.array(found + [last] * (k - len(found)))


def _checked_norms(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """Return the norms of the atoms; raise if the inputs cannot be decomposed."""
    if atoms.ndim != 2 or x.ndim < 1 or x.shape[-1] != atoms.shape[-1]:
        raise ShapeError(
            f"Expected vectors [*rows, embed] and atoms [atom, embed] of the same "
            f"width, got shapes {x.shape} and {atoms.shape}."
        )
    if not 1 <= k <= len(atoms):
        raise ShapeError(f"k must be 1 to {len(atoms)} atoms, got {k}.")
    if not (np.isfinite(x).all() and np.isfinite(atoms).all()):
        raise NotFiniteError("Vectors and atoms must be finite, got NaN or infinity.")
    norms = np.linalg.norm(atoms, axis=1)
    if not norms.all():
        raise ShapeError(f"Atom {int(norms.argmin())} has norm 0: leave it out.")
    return norms


def _steps(
    x: np.ndarray, atoms: np.ndarray, norms: np.ndarray, k: int, pursuit: Any
) -> list[tuple[list[int], np.ndarray, np.ndarray]]:
    """Return the selected atoms, coefficients and residual after each step."""
    rest, chosen, found = x, [], np.zeros(0)
    steps = []
    for _ in range(k):
        score = (atoms @ rest.astype(np.float32)) / norms
        score[chosen] = -np.inf
        best = int(score.argmax())
        if score[best] <= CORRELATION * np.linalg.norm(x):
            break
        chosen = [*chosen, best]
        own = atoms[chosen].T.astype(np.float64)
        found = pursuit(own, x, np.append(found, 0.0))
        rest = x - own @ found
        steps.append((chosen, found, rest))
    return steps


def _one(
    x: np.ndarray, atoms: np.ndarray, norms: np.ndarray, k: int, pursuit: Any
) -> tuple[np.ndarray, ...]:
    """Decompose one vector."""
    steps = _steps(x, atoms, norms, k, pursuit)
    chosen, found, _ = steps[-1] if steps else ([], np.zeros(0), x)
    selected, own = np.asarray(chosen, int), atoms[chosen].T.astype(np.float64)
    active = found * norms[selected] > ACTIVE * np.linalg.norm(x)
    sums = own[:, active] @ found[active]
    component = np.zeros_like(x)
    if chosen:
        left, sizes, _ = np.linalg.svd(own / norms[selected], full_matrices=False)
        basis = left[:, sizes > ACTIVE * sizes.max()]
        component = basis @ (basis.T @ x)
    return (
        _filled(selected[active], k, -1),
        _filled(found[active], k, 0.0),
        _filled(selected, k, -1),
        sums,
        component,
    )


def _filled(values: np.ndarray, k: int, rest: float | int) -> np.ndarray:
    return np.append(values, np.full(k - len(values), rest, values.dtype))
