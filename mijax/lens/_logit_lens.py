"""The logit lens."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError, nearest
from mijax.core import AbstractModel, Site, capture
from mijax.core._tokens import as_tokens

# Where a whole residual stream stands, as the final norm expects it.
STREAM = ("resid_pre", "resid_mid", "resid_post")


class Lens(eqx.Module):
    """What each layer would say if it were the last, in nats.

    The axis `seq` is there where every position was read, the axis `batch` where there
    were several prompts.

    Attributes:
        logits: of the tokens that were asked for, `[*batch, layer, *seq, k]`.
        tokens: their ids, of the same shape.
        total: log of the summed exponentials of all logits, `[*batch, layer, *seq]`.
    """

    logits: Float[Array, "*read k"]
    tokens: Int[Array, "*read k"]
    total: Float[Array, "*read"]

    def log_probabilities(self) -> Float[Array, "*read k"]:
        """Returns the log probability of each of these tokens."""
        return self.logits - self.total[..., None]


def logit_lens(
    model: AbstractModel,
    tokens: Any,
    *,
    position: Any = None,
    ids: Any = None,
    top: int | None = None,
    site: str = "resid_post",
) -> Lens:
    r"""Reads the residual stream of every layer with the final norm and unembedding.

    $\ell_i = W_U\,\mathrm{LN}(r_i)$ with the residual stream $r_i$ of layer $i$
    (nostalgebraist 2020, "interpreting GPT: the logit lens"). After the last layer it
    is what the model says. A layer's logits are made, read and dropped before those of
    the next, so `[layer, seq, vocab]` is never there unless everything is asked for.

    Args:
        model: any `AbstractModel`.
        tokens: token ids of one prompt, or of a batch (padded on the right), or
            `mijax.data.Prompts`.
        position: what to read: a position, or one per prompt (`prompts.last`); every
            position by default.
        ids: tokens to read, `[k]`, or `[batch, k]` for each prompt its own.
        top: read the so many tokens of the largest logits at each place instead, best
            first. Neither reads the whole vocabulary.
        site: `"resid_post"`, `"resid_pre"` or `"resid_mid"`.

    Returns:
        Logits, ids and normalisers.

    Raises:
        SiteError: a site that is not the residual stream.
        ShapeError: both `ids` and `top`, `top` beyond the vocabulary, or ids that do
            not fit the prompts or the vocabulary.
        PositionError: a position beyond the prompt.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jnp.array([[5, 6, 7], [8, 9, 10]])
        >>> best = mijax.lens.logit_lens(model, tokens, position=2, top=1)
        >>> best.tokens.shape  # prompt, layer, one token
        (2, 3, 1)
        >>> last = mijax.run(model, tokens)[:, 2]
        >>> bool((best.tokens[:, -1, 0] == last.argmax(-1)).all())
        True
    """
    if site not in STREAM:
        raise SiteError(
            f"The lens reads the residual stream, not {site!r}.{nearest(site, STREAM)}"
        )
    if ids is not None and top is not None:
        raise ShapeError("Give the tokens to read as `ids`, or how many as `top`.")
    stream = capture(model, tokens, Site(site, position=position))
    batch = as_tokens(tokens).shape[:-1]
    logits = eqx.filter_eval_shape(
        lambda m, x: m.unembed(m.normalise(x)), model, stream
    )
    vocab = logits.shape[-1]
    if top is not None and not 1 <= top <= vocab:
        raise ShapeError(f"top is between 1 and {vocab} tokens, got {top}.")
    wanted = None if ids is None else known_ids(ids, batch, vocab)
    return _read(model, stream, wanted, top, bool(batch))


def known_ids(ids: Any, batch: tuple[int, ...], vocab: int) -> Int[Array, "*batch k"]:
    """Returns for each prompt the tokens to read; refuses those that are not there."""
    given = np.asarray(ids)
    if given.dtype.kind not in "iu" or given.ndim not in {1, 1 + len(batch)}:
        raise ShapeError(
            "Tokens to read are ids [k], or [batch, k] with a batch of prompts; got "
            f"{given.dtype} of shape {given.shape}."
        )
    if given.ndim == 2 and given.shape[:1] != batch:
        raise ShapeError(f"{len(given)} rows of ids for {batch[0]} prompts.")
    if given.size and not 0 <= given.min() <= given.max() < vocab:
        worst = given.min() if given.min() < 0 else given.max()
        raise ShapeError(f"Token ids are from 0 to {vocab - 1}, got {worst}.")
    return jnp.broadcast_to(jnp.asarray(given, jnp.int32), (*batch, given.shape[-1]))


@eqx.filter_jit
def _read(
    model: AbstractModel,
    stream: Float[Array, "*read embed"],
    ids: Int[Array, "*batch k"] | None,
    top: int | None,
    batched: bool,
) -> Lens:
    """Reads one layer after the other."""
    layers = jnp.moveaxis(stream, 1, 0) if batched else stream

    def of_layer(x: Array) -> tuple[Array, Array, Array]:
        logits = model.unembed(model.normalise(x))
        total = jax.nn.logsumexp(logits, axis=-1)
        if top is not None:
            return (*jax.lax.top_k(logits, top), total)
        if ids is None:
            every = jnp.arange(logits.shape[-1], dtype=jnp.int32)
            return logits, jnp.broadcast_to(every, logits.shape), total
        extra = (1,) * (logits.ndim - ids.ndim)
        own = ids.reshape(*ids.shape[:-1], *extra, ids.shape[-1])
        own = jnp.broadcast_to(own, (*logits.shape[:-1], ids.shape[-1]))
        return jnp.take_along_axis(logits, own, axis=-1), own, total

    found = jax.lax.map(of_layer, layers)
    if batched:
        found = jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), found)
    logits, tokens, total = found
    return Lens(logits, tokens.astype(jnp.int32), total)
