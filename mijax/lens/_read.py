"""`read`: one verb for all lenses."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import FrameError, ShapeError
from mijax.core import AbstractModel, FunctionModel, Site, capture, run
from mijax.core.internal import (
    ModelLike,
    as_tokens,
    checked,
    examples,
    opened,
    padded_lengths,
)
from mijax.lens._function import values_of
from mijax.lens._lens import AbstractLens, LogitLens, check_stream
from mijax.lens._reading import (
    LensReading,
    check_top,
    ending,
    known_ids,
    known_targets,
    read_rows,
)
from mijax.nn import Readout
from mijax.nn.internal import readout_of

# Largest error of the last layer, in units of the spread of a position's logits.
TOLERANCE = 0.1
# Tokens of the first prompt used to compare the last layer with the logits.
FEW = 8


class _Stream(NamedTuple):
    """Input of a lens.

    Attributes:
        end: the model, or the readout of a function.
        values: the residual stream, `[*batch, layer, *seq, embed]`.
        batch: `()` for one prompt.
        real: true at positions that are not padding, `[batch, seq]`; `None` for all.
    """

    end: AbstractModel | Readout
    values: Float[Array, "*read embed"]
    batch: tuple[int, ...]
    real: Bool[Array, "batch seq"] | None = None


@checked
def read(
    model: ModelLike,
    tokens: Any,
    lens: AbstractLens | None = None,
    *,
    position: Any = None,
    ids: Any = None,
    top: int | None = None,
    targets: Any = None,
) -> LensReading:
    r"""Decode the residual stream of every layer into the vocabulary.

    $W_U\,\mathrm{LN}(\mathrm{lens}_i(r_i))$ with the model's final norm, unembedding
    and cap. Logits are computed and discarded a few rows at a time, so
    `[prompt, layer, seq, vocab]` is in memory only if you ask for all logits.

    The unmapped stream after the last layer must reproduce the model's logits;
    otherwise `read` raises an error.

    Args:
        model: any `AbstractModel`, a language model (`mijax.models.load(...)`), or, for
            `LogitLens`, a function that states its `readout` (`mijax.model`).
        tokens: token ids of one prompt, or of a batch, or `mijax.data.Prompts`; with a
            language model also a text or a list of texts.
        lens: `LogitLens()` (the default), a `TunedLens`, a `JacobianLens`, or
            `RotatedLens(...)` around one as its control.
        position: position to decode, or one per prompt (`prompts.last`); every position
            by default.
        ids: tokens to return, `[k]`, or `[batch, k]` with different tokens per prompt.
        top: instead of `ids`, number of top tokens to return at each position, best
            first.
        targets: target tokens whose rank and log probability to return: one id, one per
            prompt, or one per prompt and position (`next_tokens(tokens)`), -1 for none.
            Without `ids`, `top` and `targets`, the whole vocabulary is returned.

    Returns:
        Logits, ids, normalizers, entropies and ranks.

    Raises:
        SiteError: a site that is not the residual stream.
        FrameError: the last layer does not reproduce the model's logits, a function has
            no readout, or a lens was fitted with different weight processing.
        ShapeError: both `ids` and `top`, `top` beyond the vocabulary, ids that do not
            fit the prompts or the vocabulary, or a lens that does not fit the model.
        PositionError: a position beyond the prompt.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = [[5, 6, 7], [8, 9, 10]]
        >>> found = read(model, tokens, top=2, targets=next_tokens(tokens))
        >>> found.tokens.shape, found.entropy.shape  # prompt, layer, position, token
        ((2, 3, 3, 2), (2, 3, 3))
        >>> found.target_ranks[0, 0, 2].item()  # nothing follows the last token
        -1
    """
    if ids is not None and top is not None:
        raise ShapeError("Give the tokens as `ids` or their number as `top`, not both.")
    lens = LogitLens() if lens is None else lens
    if isinstance(model, FunctionModel):
        stream = _of_function(model, tokens, lens, position)
    else:
        stream = _of_decoder(model, tokens, lens, position)
    values, batched = stream.values, bool(stream.batch)
    vocab = eqx.filter_eval_shape(lambda m, x: ending(m)(x), stream.end, values)
    vocab = vocab.shape[-1]
    check_top(top, vocab)
    x = values if batched else values[None]
    seq = values.shape[1 + batched : -1]
    wanted = None if ids is None else known_ids(ids, stream.batch, vocab)
    goal = None
    if targets is not None:
        goal = known_targets(targets, stream.batch, seq, vocab)
        goal = goal.reshape(len(x), -1)
    if wanted is not None:
        wanted = wanted.reshape(len(x), -1)
    flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
    arrays = read_rows(stream.end, lens, flat, wanted, goal, top)
    shape = values.shape[:-1]
    arrays = {
        name: a.reshape(*shape, *a.shape[3:])
        for name, a in _masked(arrays, stream.real).items()
    }
    return _reading(arrays, vocab, batched=batched)


def next_tokens(tokens: Any) -> Int[np.ndarray, "*batch seq"]:
    """Return the token after each position, or -1 if none follows.

    Args:
        tokens: token ids of one prompt, of a batch, or `mijax.data.Prompts`.

    Returns:
        Targets for `read`; the last token of each prompt and padding have none.

    Examples:
        >>> next_tokens([5, 6, 7]).tolist()
        [6, 7, -1]
    """
    ids = np.asarray(as_tokens(tokens))
    found = np.full_like(ids, -1)
    found[..., :-1] = ids[..., 1:]
    lengths = padded_lengths(tokens, ids.shape[-1])
    if lengths is not None:
        last = np.asarray(lengths).reshape(*ids.shape[:-1], 1) - 1
        found[np.arange(ids.shape[-1]) >= last] = -1
    return found


def _of_decoder(
    model: ModelLike, tokens: Any, lens: AbstractLens, position: Any
) -> _Stream:
    """Capture the stream of a decoder and check its last layer."""
    site = "resid_post" if lens.site is None else lens.site
    check_stream(site)
    model, given = opened(model, tokens)
    values = capture(model, given, Site(site, position=position))
    ids = as_tokens(given)
    batch, seq = ids.shape[:-1], ids.shape[-1]
    lens.check(model, values.shape[len(batch)], values.shape[-1])
    lengths = padded_lengths(given, seq)
    if not any(isinstance(a, Tracer) for a in jax.tree.leaves((model, ids))):
        few = ids.reshape(-1, seq)[0, :FEW]
        at = jnp.int32(len(few) if lengths is None else min(len(few), lengths[0])) - 1
        prompt = jnp.int32(0) if batch else None
        refuse_other_end(*last_layer_error(model, few, at, prompt))
    real = None
    if lengths is not None and (position is None or isinstance(position, slice)):
        every = np.arange(seq)[slice(None) if position is None else position]
        real = jnp.asarray(every < np.asarray(lengths)[:, None])
    return _Stream(model, values, batch, real)


def _of_function(
    model: FunctionModel, inputs: Any, lens: AbstractLens, position: Any
) -> _Stream:
    """Capture the stream of a function and check its last layer."""
    if lens.rows is not None:
        raise FrameError(
            f"{type(lens).__name__} works only on decoders: read a function with "
            "LogitLens."
        )
    readout = readout_of(model, "read", linear=False)
    at = Site(readout.stream if lens.site is None else lens.site, position=position)
    found = values_of(model, inputs, "read", lens=at)
    stacked, size, _ = examples(model, inputs)
    one = stacked if size is None else jax.tree.map(lambda a: a[0], stacked)
    last = values_of(model, one, "read", lens=Site(readout.stream))
    x = last.values[readout.stream][0]
    x = x[-1] if last.sites[readout.stream].layers is not None else x
    error = _error(readout, x, run(model, one))
    # Inside the caller's `jit`, values are not available to compare.
    if not isinstance(error[0], Tracer):
        refuse_other_end(*error)
    values = found.values[at.name] if found.batch else found.values[at.name][0]
    if found.sites[at.name].layers is None:
        values = jnp.expand_dims(values, len(found.batch))
    return _Stream(readout, values, found.batch)


@eqx.filter_jit
def last_layer_error(
    model: AbstractModel,
    tokens: Int[Array, " seq"],
    at: Int[Array, ""],
    prompt: Int[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the error of the decoded last layer in the logits, and their spread.

    Args:
        model: the model.
        tokens: one prompt.
        at: the position to compare.
        prompt: index of the prompt, for edits kept in the model.

    Returns:
        Largest absolute error, and largest distance of a logit from the mean.
    """
    options = {} if model.causal else {"length": at + 1}
    logits, acts = model(tokens, prompt=prompt, **options)
    return _error(model, acts.blocks.resid_post[-1, at], logits[at])


@eqx.filter_jit
def _error(
    model: AbstractModel | Readout, x: Array, logits: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    found = ending(model)(x)
    if getattr(logits, "shape", None) != found.shape:
        raise FrameError(
            f"The model's readout has outputs of shape {found.shape}, and the model "
            f"{getattr(logits, 'shape', type(logits).__name__)}: state the readout "
            "that produces its outputs."
        )
    logits = logits.astype(found.dtype)
    spread = jnp.abs(logits - logits.mean(-1, keepdims=True)).max()
    return jnp.abs(found - logits).max(), spread


def refuse_other_end(error: Array, spread: Array) -> None:
    """Raise if the last residual stream does not reproduce the model's logits.

    Raises:
        FrameError: the error is more than a tenth of the spread.
    """
    if not float(error) <= TOLERANCE * float(spread):
        raise FrameError(
            "The final norm and unembedding of the last residual stream differ from "
            f"the model's logits by {float(error):.3g} (spread {float(spread):.3g}), "
            "so no lens can read it: the model changes the stream before its logits."
        )


def _masked(arrays: dict[str, Array], real: Any) -> dict[str, Array]:
    """Mark padding with NaN, and with -1 in ranks and tokens."""
    if real is None:
        return arrays
    real = real[:, None]

    def mark(a: Array) -> Array:
        here = real.reshape(*real.shape, *(1,) * (a.ndim - 3))
        return jnp.where(here, a, jnp.nan if a.dtype.kind == "f" else -1)

    return {name: mark(a) for name, a in arrays.items()}


def _reading(arrays: dict[str, Array], vocab: int, *, batched: bool) -> LensReading:
    """Fill in implied tokens: the whole vocabulary, or none."""
    shape = arrays["total"].shape
    if "logits" not in arrays:
        arrays["logits"] = jnp.zeros((*shape, 0), arrays["total"].dtype)
    if "tokens" not in arrays:
        every = jnp.arange(vocab, dtype=jnp.int32)[: arrays["logits"].shape[-1]]
        arrays["tokens"] = jnp.broadcast_to(every, arrays["logits"].shape)
    arrays["tokens"] = arrays["tokens"].astype(jnp.int32)
    return LensReading(**arrays, batched=batched)
