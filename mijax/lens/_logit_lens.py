"""The logit lens."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError, nearest
from mijax.core import AbstractModel, FunctionModel, Site, capture
from mijax.core.internal import ModelLike, as_tokens, checked, opened
from mijax.lens._function import values_of
from mijax.nn import Readout
from mijax.nn.internal import readout_of

# Where a whole residual stream stands, as the final norm expects it.
STREAM = ("resid_pre", "resid_mid", "resid_post")
# Logits in memory at once, unless all of them are returned; of some rows at least.
MOST_LOGITS, LEAST_ROWS = 2**20, 16


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


@checked
def logit_lens(
    model: ModelLike,
    tokens: Any,
    *,
    position: Any = None,
    ids: Any = None,
    top: int | None = None,
    site: str | None = None,
) -> Lens:
    r"""Reads the residual stream of every layer with the final norm and unembedding.

    $\ell_i = W_U\,\mathrm{LN}(r_i)$ with the residual stream $r_i$ of layer $i$
    (nostalgebraist 2020, "interpreting GPT: the logit lens"). After the last layer it
    is what the model says. Logits are computed, read and dropped for a few positions at
    a time, so `[layer, seq, vocab]` is only in memory where everything is asked for.

    Args:
        model: any `AbstractModel`, a language model (`mijax.models.load(...)`), or a
            function that states its `readout` (`mijax.model`).
        tokens: token ids of one prompt, or of a batch (padded on the right), or
            `mijax.data.Prompts`; with a language model also a text or a list of texts.
        position: what to read: a position, or one per prompt (`prompts.last`); every
            position by default.
        ids: tokens to read, `[k]`, or `[batch, k]` for each prompt its own.
        top: read the so many tokens of the largest logits at each place instead, best
            first. Neither reads the whole vocabulary.
        site: `"resid_post"` (the default), `"resid_pre"` or `"resid_mid"`; of a
            function any site as wide as the residual stream, by default the one of its
            readout.

    Returns:
        Logits, ids and normalisers.

    Raises:
        SiteError: a site that is not the residual stream.
        FrameError: a function that states no readout.
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
    if ids is not None and top is not None:
        raise ShapeError("Give the tokens to read as `ids`, or how many as `top`.")
    if isinstance(model, FunctionModel):
        readout = readout_of(model, "logit_lens", linear=False)
        at = Site(readout.stream if site is None else site, position=position)
        found = values_of(model, tokens, "logit_lens", lens=at)
        stream = found.values[at.name] if found.batch else found.values[at.name][0]
        wanted = None if ids is None else known_ids(ids, found.batch, readout.outputs)
        _check_top(top, readout.outputs)
        return _read(readout, stream, wanted, top, bool(found.batch))
    site = "resid_post" if site is None else site
    if site not in STREAM:
        raise SiteError(
            f"The lens reads the residual stream, not {site!r}.{nearest(site, STREAM)}"
        )
    model, tokens = opened(model, tokens)
    stream = capture(model, tokens, Site(site, position=position))
    batch = as_tokens(tokens).shape[:-1]
    logits = eqx.filter_eval_shape(
        lambda m, x: m.unembed(m.normalise(x)), model, stream
    )
    vocab = logits.shape[-1]
    _check_top(top, vocab)
    wanted = None if ids is None else known_ids(ids, batch, vocab)
    return _read(model, stream, wanted, top, bool(batch))


def _check_top(top: int | None, vocab: int) -> None:
    """Refuse a number of tokens beyond the vocabulary."""
    if top is not None and not 1 <= top <= vocab:
        raise ShapeError(f"top is between 1 and {vocab} tokens, got {top}.")


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
    model: AbstractModel | Readout,
    stream: Float[Array, "*read embed"],
    ids: Int[Array, "*batch k"] | None,
    top: int | None,
    batched: bool,
) -> Lens:
    """Read some positions after others, so that few logits are in memory at once."""

    def end(x: Array) -> Array:
        if isinstance(model, Readout):
            return model(x)
        return model.unembed(model.normalise(x))

    vocab = jax.eval_shape(end, stream).shape[-1]
    if ids is not None and batched:
        # Each prompt's own ids, at every layer and position.
        extra = (1,) * (stream.ndim - 2)
        ids = ids.reshape(len(ids), *extra, -1)
    wanted = None
    if ids is not None:
        wanted = jnp.broadcast_to(ids, (*stream.shape[:-1], ids.shape[-1]))
        wanted = wanted.reshape(-1, ids.shape[-1])

    def read(inputs: Any) -> tuple[Array, ...]:
        x, own = inputs
        logits = end(x)
        total = jax.nn.logsumexp(logits, axis=-1)
        if top is not None:
            return (*jax.lax.top_k(logits, top), total)
        if own is None:
            return logits, total
        return jnp.take_along_axis(logits, own, axis=-1), own, total

    rows = stream.reshape(-1, stream.shape[-1])
    size = max(LEAST_ROWS, MOST_LOGITS // vocab)
    *found, total = _over_rows(read, (rows, wanted), size)
    if len(found) == 1:
        every = jnp.arange(vocab, dtype=jnp.int32)
        found.append(jnp.broadcast_to(every, found[0].shape))
    logits, tokens = (a.reshape(*stream.shape[:-1], -1) for a in found)
    return Lens(logits, tokens.astype(jnp.int32), total.reshape(stream.shape[:-1]))


def _over_rows(read: Any, inputs: Any, size: int) -> Any:
    """Apply a function to `size` rows at a time."""
    n = inputs[0].shape[0]
    if n <= size:
        return read(inputs)
    chunks = -(-n // size)
    # Chunks of equal size; the last one is filled up with rows that are cut off.
    size = -(-n // chunks)
    fill = chunks * size - n

    def split(a: Array) -> Array:
        a = jnp.pad(a, ((0, fill), (0, 0)))
        return a.reshape(chunks, size, -1)

    found = jax.lax.map(read, jax.tree.map(split, inputs))
    return jax.tree.map(lambda a: a.reshape(chunks * size, *a.shape[2:])[:n], found)
