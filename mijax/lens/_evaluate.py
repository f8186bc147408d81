"""Quality of a lens: the distance of each layer's decoding from the model's output."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.core import AbstractModel
from mijax.core.internal import ModelLike, as_tokens, checked, opened, padded_lengths
from mijax.lens._lens import AbstractLens, LogitLens, check_stream
from mijax.lens._reading import ending
from mijax.lens._tuned import TunedLens


class LensEvaluation(eqx.Module):
    """Quality of a lens by layer, averaged over all tokens, in nats.

    Attributes:
        kl: divergence of the lens from the model's output, `KL(model || lens)`.
        cross_entropy: cross-entropy of the next token under the lens.
        entropy: entropy of the lens's predictions.
        bias: divergence of the mean probabilities, `KL(mean model || mean lens)`: the
            lens's preference for some tokens regardless of the text.
        model_cross_entropy: cross-entropy of the next token under the model.
        model_entropy: entropy of the model's predictions.
        tokens: number of tokens.
    """

    kl: Float[Array, " layer"]
    cross_entropy: Float[Array, " layer"]
    entropy: Float[Array, " layer"]
    bias: Float[Array, " layer"]
    model_cross_entropy: Float[Array, ""]
    model_entropy: Float[Array, ""]
    tokens: int = eqx.field(static=True)

    def bits_per_byte(self, size: int) -> Float[Array, " layer"]:
        """Return the cross-entropy in bits per byte of the text.

        Args:
            size: number of bytes in the text.
        """
        return self.cross_entropy * self.tokens / (size * float(np.log(2.0)))


@checked
def evaluate_lens(
    model: ModelLike, tokens: Any, lens: AbstractLens | None = None
) -> LensEvaluation:
    """Compare a lens's predictions at every layer with the model's output.

    Compare lenses at the same site: the tuned lens reads `resid_pre`, so its baseline
    is `LogitLens("resid_pre")` and its control `RotatedLens(lens, key)`.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        tokens: token ids of a batch, `mijax.data.Prompts`, or a list of texts; padding
            does not count.
        lens: the lens, `LogitLens()` by default.

    Returns:
        Divergence, cross-entropy, entropy and bias by layer.

    Raises:
        SiteError: the lens does not read the residual stream.
        ShapeError: the lens does not fit the model, or no prompt has a next token.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> found = evaluate_lens(model, [[5, 6, 7], [8, 9, 1]])
        >>> found.kl.shape, bool(found.kl[-1] < 1e-5)  # the last layer is the model
        ((3,), True)
    """
    lens = LogitLens() if lens is None else lens
    model, ids, lengths = _batch(model, tokens)
    site = "resid_post" if lens.site is None else lens.site
    check_stream(site)
    lens.check(model, model.n_layers, _width(model))
    sums = _sums(model, lens, site, ids, jnp.asarray(lengths))
    count, following = int(lengths.sum()), int((lengths - 1).sum())
    if not following:
        raise ShapeError("Every prompt has one token: give prompts with 2 or more.")
    p, q = sums["p"] / count, sums["q"] / count
    log_ratio = jnp.where(p > 0, jnp.log(p) - jnp.log(q), 0.0)
    return LensEvaluation(
        kl=sums["kl"] / count,
        cross_entropy=sums["cross_entropy"] / following,
        entropy=sums["entropy"] / count,
        bias=(p * log_ratio).sum(-1),
        model_cross_entropy=sums["model_cross_entropy"] / following,
        model_entropy=sums["model_entropy"] / count,
        tokens=following,
    )


@checked
def lens_transfer(
    model: ModelLike, tokens: Any, lens: TunedLens
) -> Float[Array, "map stream"]:
    """Apply the map of each layer to the stream of each layer.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        tokens: token ids of a batch, `mijax.data.Prompts`, or a list of texts.
        lens: the lens.

    Returns:
        Mean divergence from the model's output in nats, `[map, stream]`; the diagonal
        is `evaluate_lens(...).kl`. If each map fits its own layer best, the minimum of
        each column is on the diagonal.

    Raises:
        ShapeError: the lens does not fit the model.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> lens = mijax.lens.TunedLens(jnp.zeros((3, 32, 32)))
        >>> lens_transfer(model, [[5, 6, 7]], lens).shape
        (3, 3)
    """
    model, ids, lengths = _batch(model, tokens)
    lens.check(model, model.n_layers, _width(model))
    return _transfer(model, lens, ids, jnp.asarray(lengths)) / lengths.sum()


def _batch(
    model: ModelLike, tokens: Any
) -> tuple[AbstractModel, Int[Array, "prompt seq"], Int[np.ndarray, " prompt"]]:
    """Return the model, tokens of a batch, and the length of each prompt."""
    model, given = opened(model, tokens)
    ids = as_tokens(given)
    ids = ids[None] if ids.ndim == 1 else ids
    lengths = padded_lengths(given, ids.shape[1])
    if lengths is None:
        lengths = np.full(len(ids), ids.shape[1], np.int32)
    return model, ids, np.asarray(lengths)


def _width(model: AbstractModel) -> int:
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    return eqx.filter_eval_shape(model.embed, one, one).shape[-1]


def _log_softmax(logits: Array) -> Array:
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.log_softmax(wide, axis=-1)


def _run(model: AbstractModel, tokens: Array, length: Array) -> Any:
    """Return the model's log probabilities and its activations in the blocks."""
    options = {} if model.causal else {"length": length}
    logits, acts = model(tokens, **options)
    return _log_softmax(logits), acts.blocks


@eqx.filter_jit
def _sums(
    model: AbstractModel,
    lens: AbstractLens,
    site: str,
    tokens: Int[Array, "prompt seq"],
    lengths: Int[Array, " prompt"],
) -> dict[str, Array]:
    """Sum statistics over all tokens, one prompt and layer at a time."""
    end = ending(model)

    def one(ids: Array, length: Array) -> dict[str, Array]:
        log_p, acts = _run(model, ids, length)
        stream = lens(getattr(acts, site)[None])[0]
        every = jnp.arange(len(ids))
        real, goal = every < length, jnp.roll(ids, -1)[:, None]
        follows = every < length - 1

        def of(log_q: Array) -> dict[str, Array]:
            picked = jnp.take_along_axis(log_q, goal, axis=-1)[:, 0]
            entropy = -(jnp.exp(log_q) * log_q).sum(-1)
            return {
                "cross_entropy": -jnp.where(follows, picked, 0.0).sum(),
                "entropy": jnp.where(real, entropy, 0.0).sum(),
            }

        def layer(x: Array) -> dict[str, Array]:
            log_q = _log_softmax(end(x))
            mean = jnp.where(real[:, None], jnp.exp(log_q), 0.0).sum(0)
            return {"kl": _kl(log_p, log_q, real), "q": mean, **of(log_q)}

        found = jax.lax.map(layer, stream)
        found |= {f"model_{name}": value for name, value in of(log_p).items()}
        return found | {"p": jnp.where(real[:, None], jnp.exp(log_p), 0.0).sum(0)}

    return _total(one, tokens, lengths)


@eqx.filter_jit
def _transfer(
    model: AbstractModel,
    lens: TunedLens,
    tokens: Int[Array, "prompt seq"],
    lengths: Int[Array, " prompt"],
) -> Float[Array, "map stream"]:
    """Sum the divergence of every map on every stream."""
    end = ending(model)
    maps = jax.tree.map(lambda a: a[:, None], lens)

    def one(ids: Array, length: Array) -> Array:
        log_p, acts = _run(model, ids, length)
        real = jnp.arange(len(ids)) < length

        def of_map(one: TunedLens) -> Array:
            def of_stream(x: Array) -> Array:
                mapped = one(x[None, None])[0, 0]
                return _kl(log_p, _log_softmax(end(mapped)), real)

            return jax.lax.map(of_stream, acts.resid_pre)

        return jax.lax.map(of_map, maps)

    return _total(one, tokens, lengths)


def _kl(
    log_p: Float[Array, "seq vocab"], log_q: Float[Array, "seq vocab"], real: Array
) -> Float[Array, ""]:
    """Sum `KL(p || q)` over positions that are not padding."""
    each = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return jnp.where(real, each, 0.0).sum()


def _total(one: Callable[[Array, Array], Any], *inputs: Array) -> Any:
    """Sum a function's values, one prompt at a time."""
    shapes = jax.eval_shape(one, *(a[0] for a in inputs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def step(carry: Any, inputs: Any) -> Any:
        return jax.tree.map(jnp.add, carry, one(*inputs)), None

    return jax.lax.scan(step, zeros, inputs)[0]
