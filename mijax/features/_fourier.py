"""Fourier analysis on the numbers modulo p: of weights, activations and logits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError


def fourier_basis(p: int) -> Float[np.ndarray, "p p"]:
    r"""Returns the real Fourier basis of functions on the numbers modulo p.

    Rows are of length 1: the constant, then $\cos(2 \pi k n / p)$ and
    $\sin(2 \pi k n / p)$ for $k = 1, \dots, (p - 1) / 2$ (Nanda et al. 2023,
    arXiv:2301.05217).

    Args:
        p: an odd number.

    Returns:
        The basis.

    Raises:
        ShapeError: p is even.

    Examples:
        >>> basis = fourier_basis(7)
        >>> bool(np.allclose(basis @ basis.T, np.eye(7)))
        True
    """
    if p < 3 or p % 2 == 0:
        raise ShapeError(f"p={p}: take an odd number from 3 on, such as a prime.")
    angle = 2 * np.pi * np.outer(np.arange(1, (p + 1) // 2), np.arange(p)) / p
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1).reshape(p - 1, p)
    return np.concatenate([np.ones((1, p)) / p**0.5, waves * (2 / p) ** 0.5])


def fourier_power(
    x: Float[Array | np.ndarray, "p *rest"],
) -> Float[Array, " frequency"]:
    """Splits the square norm of numbers by frequency along their first axis.

    Args:
        x: for instance rows of an embedding, or columns of logits.

    Returns:
        Square norms of frequencies 0, 1, ..., (p - 1) / 2; they add up to that of `x`.

    Raises:
        ShapeError: an even number of rows.

    Examples:
        >>> power = fourier_power(fourier_basis(7)[[3]].T)  # cosine of frequency 2
        >>> [round(float(value), 6) for value in power]
        [0.0, 0.0, 1.0, 0.0]
    """
    p = x.shape[0]
    flat = _product(jnp.float32(fourier_basis(p)), jnp.asarray(x).reshape(p, -1))
    each = (flat**2).sum(1)
    return jnp.concatenate([each[:1], each[1:].reshape(-1, 2).sum(1)])


def best_frequency(
    x: Float[Array | np.ndarray, "p p neuron"],
) -> tuple[Int[Array, " neuron"], Float[Array, " neuron"]]:
    r"""Finds the frequency that explains most of how a neuron varies over two inputs.

    A frequency is all products of $1, \cos(w_k a), \sin(w_k a)$ with
    $1, \cos(w_k b), \sin(w_k b)$ but the constant: eight directions.

    Args:
        x: activations for every pair of inputs.

    Returns:
        The best frequency of each neuron, and the share of its variance that it
        explains; 0 for a neuron that does not vary.

    Raises:
        ShapeError: inputs that are not two numbers modulo the same odd p.

    Examples:
        >>> wave = fourier_basis(7)[5]  # cosine of frequency 3
        >>> found = best_frequency(np.outer(wave, wave)[..., None])
        >>> int(found[0][0]), round(float(found[1][0]), 4)
        (3, 1.0)
    """
    if x.ndim != 3 or x.shape[0] != x.shape[1]:
        raise ShapeError(
            f"Give activations of all pairs, [p, p, neuron]; got {list(x.shape)}."
        )
    p, _, neurons = x.shape
    basis = jnp.float32(fourier_basis(p))
    # Means go first, for their digits; and what does not vary is 0 exactly.
    x = jnp.asarray(x - x[:1, :1])
    x = x - x.mean((0, 1))
    rows = _product(basis, x.reshape(p, -1)).reshape(p, p, neurons)
    both = jnp.einsum("fb,abn->afn", basis, rows, precision="highest") ** 2
    both = both.at[0, 0].set(0)
    half = (p - 1) // 2
    waves = both[1:].reshape(half, 2, p, neurons).sum(1)
    with_none = waves[:, 0] + both[0, 1:].reshape(half, 2, neurons).sum(1)
    paired = waves[:, 1:].reshape(half, half, 2, neurons).sum(2)
    each = with_none + paired[jnp.arange(half), jnp.arange(half)]
    total = both.sum((0, 1))
    best = each.argmax(0)
    share = each.max(0) / jnp.where(total > 0, total, 1.0)
    return best + 1, jnp.where(total > 0, share, 0.0)


def keep_sums(
    x: Float[Array | np.ndarray, "p p *rest"], frequencies: Sequence[int]
) -> Float[Array, "p p *rest"]:
    r"""Projects functions of two inputs on waves of their sum.

    Of a function $f(a, b)$ only what lies along $\cos(w_k (a + b))$ and
    $\sin(w_k (a + b))$ stays, $w_k = 2 \pi k / p$. Restricted logits are this plus the
    mean over pairs, excluded logits what it leaves (Nanda et al. 2023).

    Args:
        x: numbers for every pair of inputs.
        frequencies: which $k$; one that comes twice counts once.

    Returns:
        The projection, of the same shape.

    Raises:
        ShapeError: inputs that are not two numbers modulo the same odd p, or a
            frequency that is not from 1 to (p - 1) / 2.

    Examples:
        >>> a = np.arange(7)
        >>> wave = np.cos(2 * np.pi * 3 * (a[:, None] + a) / 7)
        >>> bool(jnp.allclose(keep_sums(wave + 1, [3]), wave, atol=1e-5))
        True
    """
    if x.ndim < 2 or x.shape[0] != x.shape[1]:
        raise ShapeError(
            f"Give numbers of all pairs, [p, p, ...]; got shape {list(x.shape)}."
        )
    p = x.shape[0]
    known = range(1, (p - 1) // 2 + 1)
    kept = [int(k) for k in frequencies]
    if not set(kept) <= set(known):
        raise ShapeError(
            f"Frequencies modulo {p} are 1 to {known[-1]}, got {list(frequencies)}."
        )
    each = [i for k in sorted(set(kept)) for i in (2 * k - 1, 2 * k)]
    waves = fourier_basis(p)[np.array(each, int)]
    total = (np.arange(p)[:, None] + np.arange(p)) % p
    # Every sum comes p times.
    rows = jnp.float32(waves[:, total.reshape(-1)] / p**0.5)
    flat = jnp.asarray(x, jnp.float32).reshape(p * p, -1)
    return _product(rows.T, _product(rows, flat)).reshape(x.shape)


def wave_logits(
    logits: Float[Array | np.ndarray, "p p p"], frequencies: Sequence[int]
) -> Float[Array, " frequency"]:
    r"""Measures how much of the logits is $\sum_k \alpha_k \cos(w_k (a + b - c))$.

    Logits are centred over answers $c$ first, which no probability notices.

    Args:
        logits: of every answer for every pair of inputs.
        frequencies: which $k$, each once.

    Returns:
        The share of the square norm of centred logits along each wave. The waves are
        orthogonal, so shares add up to that of the best sum.

    Raises:
        ShapeError: not all pairs and answers modulo the same odd p, or a frequency
            that there is not, or that comes twice.

    Examples:
        >>> a = np.arange(7)
        >>> apart = a[:, None, None] + a[:, None] - a
        >>> share = wave_logits(np.cos(2 * np.pi * 2 * apart / 7), [2, 3])
        >>> [round(float(value), 4) for value in share]
        [1.0, 0.0]
    """
    if logits.ndim != 3 or len(set(logits.shape)) > 1:
        raise ShapeError(
            f"Give logits of all pairs and answers, [p, p, p]; got "
            f"{list(logits.shape)}."
        )
    if len({int(k) for k in frequencies}) < len(frequencies):
        raise ShapeError(f"Give each frequency once, got {list(frequencies)}.")
    p = logits.shape[0]
    centred = jnp.asarray(logits, jnp.float32)
    centred = centred - centred.mean(-1, keepdims=True)
    out = []
    for k in frequencies:
        kept = keep_sums(centred, [k])
        angle = 2 * np.pi * k * np.arange(p) / p
        total = angle[:, None] + angle
        wave = jnp.float32(np.cos(total[..., None] - angle))
        out.append((kept * wave).sum() ** 2 / (wave**2).sum())
    return jnp.array(out) / (centred**2).sum()


def _product(a: Array, b: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return a @ b
