"""The future lens: predict later tokens from the current state."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, ShapeError
from mijax.core import Site, capture
from mijax.core.internal import ModelLike, as_tokens, checked, opened, padded_lengths
from mijax.lens._lens import AbstractLens, check_fit
from mijax.lens._read import read


class AffineMap(eqx.Module):
    r"""$y = W x + b$.

    Attributes:
        weight: `[embed out, embed in]`.
        bias: `[embed out]`.

    Examples:
        >>> AffineMap(2 * jnp.eye(2), jnp.ones(2))(jnp.ones(2)).tolist()
        [3.0, 3.0]
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __call__(self, x: Float[Array, "*rows in"]) -> Float[Array, "*rows out"]:
        """Map vectors."""
        return x @ self.weight.T + self.bias


class FutureLens(AbstractLens):
    r"""The linear future lens: $\ell_{l,t} = W_U\,\mathrm{LN}(A_l h_{l,t} + b_l)$.

    The map predicts the final stream `offset` positions later, $h_{L-1,t+n}$, so it
    decodes to the model's prediction there (the linear variant in Pal et al. 2023,
    arXiv:2311.04897). `fit_future_lens` fits one.

    Attributes:
        weight: $A_l$, `[layer, embed out, embed in]`.
        bias: $b_l$, `[layer, embed]`.
        offset: $n$, number of positions ahead.

    Examples:
        >>> lens = FutureLens(jnp.eye(4)[None], jnp.ones((1, 4)), offset=1)
        >>> lens(jnp.zeros((1, 1, 2, 4))).sum().item()
        8.0
    """

    weight: Float[Array, "layer embed embed"]
    bias: Float[Array, "layer embed"]
    offset: int = eqx.field(static=True)

    @property
    def site(self) -> str:
        """Site that the lens reads: the output of every block."""
        return "resid_post"

    @property
    def rows(self) -> int:
        """Number of layers."""
        return self.weight.shape[0]

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Raise if the lens does not fit the model's size."""
        check_fit("future lens", (self.rows, self.weight.shape[-1]), layers, embed)

    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Map the stream of every layer."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        moved = jnp.einsum("plte,lfe->pltf", wide, self.weight)
        return (moved + self.bias[:, None]).astype(x.dtype)


class FutureEvaluation(eqx.Module):
    """Accuracy of a lens for the model's prediction `offset` positions later.

    Attributes:
        precision: fraction of positions where the model's most likely token is among
            the lens's top k, `[layer, k]`.
        surprisal: mean negative log probability of that token, `[layer]`, in nats.
        ks: the values of k.
    """

    precision: Float[np.ndarray, "layer k"]
    surprisal: Float[np.ndarray, " layer"]
    ks: tuple[int, ...] = eqx.field(static=True)


@checked
def fit_affine_map(x: Any, y: Any) -> AffineMap:
    """Fit an affine map by least squares, in float64.

    Args:
        x: inputs, `[*rows, in]`.
        y: outputs for the same rows, `[*rows, out]`.

    Returns:
        The map with the least squared error; ties take the minimum norm.

    Raises:
        ShapeError: the numbers of rows differ.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((9, 2))
        >>> found = fit_affine_map(x, 3 * x + 1)
        >>> np.round(np.asarray(found.bias), 3).tolist()
        [1.0, 1.0]
    """
    given, goal = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if given.shape[:-1] != goal.shape[:-1] or given.ndim < 2:
        raise ShapeError(
            f"Expected inputs and outputs with the same rows, got shapes "
            f"{given.shape} and {goal.shape}."
        )
    rows = given.reshape(-1, given.shape[-1])
    ones = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    found = np.linalg.lstsq(ones, goal.reshape(len(rows), -1), rcond=None)[0]
    weight, bias = found[:-1].T.astype(np.float32), found[-1].astype(np.float32)
    return AffineMap(jnp.asarray(weight), jnp.asarray(bias))


@checked
def fit_future_lens(model: ModelLike, tokens: Any, *, offset: int = 1) -> FutureLens:
    """Fit a linear future lens by least squares in every layer.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        tokens: token ids of a batch, `mijax.data.Prompts`, or a list of texts, with
            more tokens than the stream's width.
        offset: number of positions ahead; 0 is this position.

    Returns:
        The lens.

    Raises:
        ConfigError: a negative offset.
        ShapeError: no prompt is longer than the offset.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> fit_future_lens(model, [[5, 6, 7, 8]], offset=2).weight.shape
        (3, 32, 32)
    """
    model, given = opened(model, tokens)
    real = _real(given, offset)
    acts = np.asarray(capture(model, given, "resid_post"))
    acts = acts[None] if acts.ndim == 3 else acts
    seq = acts.shape[2]
    last = acts[:, -1, offset:][real]
    maps = [
        fit_affine_map(acts[:, i, : seq - offset][real], last)
        for i in range(acts.shape[1])
    ]
    weight, bias = (
        jnp.stack([getattr(one, name) for one in maps]) for name in ("weight", "bias")
    )
    return FutureLens(weight, bias, offset)


@checked
def evaluate_future(
    model: ModelLike,
    tokens: Any,
    lens: AbstractLens,
    *,
    offset: int,
    ks: tuple[int, ...] = (1, 5, 10),
) -> FutureEvaluation:
    """Compare a lens with the model's predictions `offset` positions later.

    The baseline is `LogitLens()`, the control `RotatedLens(lens, key)`.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        tokens: held-out token ids of a batch, `mijax.data.Prompts`, or a list of texts.
        lens: the lens.
        offset: number of positions ahead.
        ks: values of k for the precision.

    Returns:
        Precision and surprisal by layer.

    Raises:
        ConfigError: a negative offset, or a k below 1.
        ShapeError: no prompt is longer than the offset.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> logit = mijax.lens.LogitLens()
        >>> found = evaluate_future(model, [[5, 6, 7, 8]], logit, offset=0)
        >>> found.precision[-1].tolist()  # the last layer is the model
        [1.0, 1.0, 1.0]
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks must be numbers of tokens, 1 or more, got {ks}.")
    model, given = opened(model, tokens)
    real = _real(given, offset)
    logits = capture(model, given, Site("logits"))
    best = np.asarray(logits.argmax(-1))
    best = best[None] if best.ndim == 1 else best
    goal = np.full_like(best, -1)
    seq = best.shape[1]
    goal[:, : seq - offset] = np.where(real, best[:, offset:], -1)
    single = as_tokens(given).ndim == 1
    found = read(model, given, lens, targets=goal[0] if single else goal)
    ranks, log_p = (
        np.asarray(a)[None] if single else np.asarray(a)
        for a in (found.target_ranks, found.target_log_probabilities)
    )
    place = (goal >= 0)[:, None] & np.ones_like(ranks, bool)
    count = place.sum((0, 2))
    precision = [((ranks < k) & place).sum((0, 2)) / count for k in ks]
    surprisal = -np.where(place, log_p, 0).sum((0, 2)) / count
    return FutureEvaluation(np.stack(precision, axis=1), surprisal, tuple(ks))


def _real(given: Any, offset: int) -> np.ndarray:
    """Return a mask of tokens with one `offset` later, `[prompt, seq - offset]`."""
    if offset < 0:
        raise ConfigError(f"offset must be 0 or more positions ahead, got {offset}.")
    ids = np.asarray(as_tokens(given))
    ids = ids[None] if ids.ndim == 1 else ids
    lengths = padded_lengths(given, ids.shape[1])
    ends = np.full(len(ids), ids.shape[1]) if lengths is None else np.asarray(lengths)
    if ends.max() <= offset:
        raise ShapeError(f"No prompt has more than {offset} tokens: give longer ones.")
    return np.arange(ids.shape[1] - offset) + offset < ends[:, None]
