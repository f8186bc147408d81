"""`generate`: sampling with a key/value cache, with edits applied on the way."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from mijax._errors import PositionError, ShapeError
from mijax.core._check import check_edits
from mijax.core._edits import edit
from mijax.core._integers import integers
from mijax.core._model import AbstractModel, scan_blocks
from mijax.core._rows import Packed, Place, Sequence
from mijax.core._sites import Sites, known
from mijax.core._tokens import PromptsLike, TokensLike, as_tokens


def generate(
    model: AbstractModel,
    tokens: TokensLike,
    *,
    steps: int,
    lengths: Any = None,
    temperature: float = 0.0,
    key: PRNGKeyArray | None = None,
    edits: Any = None,
    stop: int | None = None,
) -> Int[Array, "*batch steps"]:
    """Continues prompts, greedily or by sampling.

    Keys and values of earlier tokens are kept, so a step computes one token per
    prompt. Edits apply to the prompt and to every new token; positions count from the
    start of the prompt. A prompt's continuation does not depend on the others in its
    batch, nor on padding.

    Args:
        model: any `AbstractModel`.
        tokens: token ids of one prompt, or of a batch padded on the right, or
            `mijax.data.Prompts`.
        steps: number of new tokens.
        lengths: number of tokens of each prompt; those of `Prompts`, or all, by
            default.
        temperature: 0 takes the most likely token; else logits are divided by it.
        key: a `jax.random.key`, needed to sample; each prompt draws from its own.
        edits: placed edits, a list of them, or `None`.
        stop: a token after which a prompt's continuation repeats that token.

    Returns:
        The new token ids.

    Raises:
        ShapeError: sampling without a key, or fewer than one step.
        PositionError: lengths that do not fit, or more tokens than the model's context.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> tokens = jax.numpy.array([[5, 6, 7], [8, 9, 0]])
        >>> lengths = jax.numpy.array([3, 2])
        >>> mijax.generate(model, tokens, steps=4, lengths=lengths).shape
        (2, 4)
    """
    if lengths is None and isinstance(tokens, PromptsLike):
        lengths = jnp.atleast_1d(tokens.lengths)
    tokens = as_tokens(tokens)
    batch = jnp.atleast_2d(tokens)
    # Edits may be placed at tokens that are yet to come.
    record = check_edits(model, tokens, edits, ahead=max(steps, 0))
    counts = _lengths(lengths, (batch.shape[0], batch.shape[1]))
    if steps < 1 or temperature < 0 or (temperature > 0 and key is None):
        raise ShapeError(
            "generate needs at least one step, a temperature of at least 0, and a key "
            f"to sample; got steps={steps}, temperature={temperature}, key={key}."
        )
    stops = stop is not None and np.ndim(stop) > 0
    if stops or not (key is None or isinstance(key, jax.Array)):
        raise ShapeError(
            "generate takes one token id to stop at, and a jax.random.key; got "
            f"stop={stop}, key={key}."
        )
    if not model.causal:
        raise ShapeError(
            "generate needs a causal model: in this one a token depends on later ones."
        )
    context = getattr(model, "context", None)
    if context is not None and batch.shape[1] + steps > context:
        raise PositionError(
            f"{batch.shape[1]} tokens and {steps} new ones exceed the model's context "
            f"of {context}."
        )
    key = jax.random.key(0) if key is None else key
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch.shape[0]))
    heat = jnp.asarray(temperature, jnp.float32)
    end = -1 if stop is None else integers(stop, "A token to stop at")
    end = jnp.asarray(end, jnp.int32)
    new = _generate(model, batch, counts, record, keys, heat, end, steps)
    return new[0] if tokens.ndim == 1 else new


def _lengths(lengths: Any, shape: tuple[int, int]) -> Int[Array, " batch"]:
    """Returns the number of tokens of each prompt, checked."""
    if lengths is None:
        return jnp.full(shape[:1], shape[1], jnp.int32)
    counts = integers(lengths, "A length", PositionError)
    told = known(counts)
    wrong = told is not None and (np.any(told < 1) or np.any(told > shape[1]))
    if counts.shape != shape[:1] or wrong:
        raise PositionError(
            f"lengths are one integer from 1 to {shape[1]} for each of {shape[0]} "
            f"prompts, got {lengths}."
        )
    return jnp.asarray(counts, jnp.int32)


@eqx.filter_jit
def _generate(
    model: AbstractModel,
    tokens: Array,
    lengths: Array,
    edits: Sites[Any],
    keys: Array,
    heat: Array,
    end: Array,
    steps: int,
) -> Array:
    batch, seq = tokens.shape
    total = seq + steps
    prompts = jnp.arange(batch, dtype=jnp.int32)

    def prefill(tokens: Array, prompt: Array, length: Array) -> Any:
        rows = Sequence(jnp.arange(seq, dtype=jnp.int32), prompt, prompt)
        x = edit(edits.embed, model.embed(tokens, rows.position), Place(rows))
        select = lambda kept, acts, _: (kept, (acts.k, acts.v))  # noqa: E731
        x, (_, past) = scan_blocks(model, x, edits.blocks, rows, select=select)
        longer = lambda a: jnp.pad(a, ((0, 0), (0, steps), (0, 0), (0, 0)))  # noqa: E731
        return _logits(model, x, edits, rows)[length - 1], jax.tree.map(longer, past)

    logits, past = jax.vmap(prefill, out_axes=(0, 1))(tokens, prompts, lengths)

    def step(carry: Any, i: Array) -> tuple[Any, Array]:
        logits, past, ended = carry
        token = jnp.where(ended, end, _pick(logits, keys, heat, i))
        ended = ended | (token == end)
        position = lengths + i
        rows = Packed(position, prompts, prompts, prompts, position, prompts, 1, total)
        x = edit(edits.embed, model.embed(token, position), Place(rows))
        select = lambda kept, acts, _: (kept, (acts.k, acts.v))  # noqa: E731
        x, (_, new) = scan_blocks(
            model, x, edits.blocks, rows, past=past, select=select
        )
        put = lambda a, b: a.at[:, prompts, position].set(b)  # noqa: E731
        return (
            _logits(model, x, edits, rows),
            jax.tree.map(put, past, new),
            ended,
        ), token

    ended = jnp.zeros(batch, bool)
    _, out = jax.lax.scan(step, (logits, past, ended), jnp.arange(steps))
    return out.T


def _logits(model: AbstractModel, x: Array, edits: Sites[Any], rows: Any) -> Array:
    """Finishes the forward pass at the rows."""
    place = Place(rows)
    final = edit(edits.resid_final, model.normalise(x), place)
    return edit(edits.logits, model.unembed(final), place)


def _pick(logits: Array, keys: Array, heat: Array, i: Array) -> Array:
    """Chooses each prompt's next token."""
    own = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
    drawn = jax.vmap(jax.random.categorical)(own, logits / jnp.maximum(heat, 1e-6))
    return jnp.where(heat > 0, drawn, logits.argmax(-1)).astype(jnp.int32)
