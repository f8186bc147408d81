"""`generate`: sampling with the blocks' cache, with edits applied on the way."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from mijax._errors import PositionError, ShapeError
from mijax.core._arguments import checked
from mijax.core._buckets import bucket
from mijax.core._cached import Fixed
from mijax.core._check import check_edits
from mijax.core._check_stated import check_cache, check_kept_keys
from mijax.core._edits import edit
from mijax.core._ends import finish
from mijax.core._integers import integers
from mijax.core._keeping import keeping
from mijax.core._model import AbstractModel, scan_blocks
from mijax.core._packed import Packed
from mijax.core._place import Place
from mijax.core._rows import Sequence
from mijax.core._rowwise import check_generated
from mijax.core._sampling import Sampling, pick, refuse_nothing
from mijax.core._shapes import site_shapes
from mijax.core._sites import Sites, known
from mijax.core._text import ModelLike, SourceModel, TextLike, opened_target
from mijax.core._tokens import PromptsLike, as_tokens

# Fewest tokens of a prompt, and of a prompt with its continuation, to compile for.
LEAST_PROMPT = 16
LEAST_CACHE = 64
# Stop tokens are filled up to a multiple of this.
STOPS = 4


@checked
def generate(  # noqa: PLR0913 - each limit has the name that users know
    model: ModelLike | SourceModel,
    tokens: TextLike | Any,
    *,
    steps: int,
    lengths: Any = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    key: PRNGKeyArray | None = None,
    edits: Any = None,
    stop: Any = None,
) -> Int[Array, "*batch steps"]:
    """Continue prompts, greedily or by sampling.

    What the blocks cache of earlier tokens (keys and values, the state of a recurrence)
    is kept, so a step computes one token per prompt. Edits apply to the prompt and to
    every new token; positions count from the start of the prompt. A prompt's
    continuation does not depend on the others in its batch, nor on padding.

    Logits are divided by the temperature, then limited to the `top_k` most likely
    tokens, then to the most likely ones that reach probability `top_p` together, then
    to those of at least `min_p` times the largest probability, as in Hugging Face
    transformers.

    One program serves all numbers of steps, stop tokens and limits up to a size:
    prompts are padded to a few lengths and the cache to a few sizes, and only the
    steps that are asked for are run, fewer when every prompt has stopped.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`), or
            an encoder-decoder (`nn.AbstractEncoderDecoder`).
        tokens: token ids of one prompt, or of a batch padded on the right, or
            `mijax.data.Prompts`; with a language model also a text or a list of texts.
            An encoder-decoder takes its source, of which it writes the target.
        steps: number of new tokens.
        lengths: number of tokens of each prompt; those of `Prompts`, or all, by
            default.
        temperature: 0 takes the most likely token; else logits are divided by it.
        top_k: sample from this many most likely tokens; ties with the last are kept.
        top_p: sample from the fewest most likely tokens that reach this probability.
        min_p: sample from tokens of at least this fraction of the largest probability.
        key: a `jax.random.key`, needed to sample; each prompt draws from its own.
        edits: placed edits, a list of them, or `None`.
        stop: a token, or several, after which a prompt's continuation repeats the one
            it stopped at.

    Returns:
        The new token ids, also for a text: `lm.tokenizer.decode` spells them.

    Raises:
        ShapeError: sampling without a key, limits out of range, or fewer than one step.
        PositionError: lengths that do not fit, or more tokens than the model's context.
        SiteError: blocks that do not state their cache.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> tokens = jax.numpy.array([[5, 6, 7], [8, 9, 0]])
        >>> lengths = jax.numpy.array([3, 2])
        >>> mijax.generate(model, tokens, steps=4, lengths=lengths).shape
        (2, 4)
        >>> sampled = {"temperature": 0.8, "top_p": 0.9, "key": jax.random.key(1)}
        >>> mijax.generate(model, tokens, steps=4, stop=[1, 2], **sampled).shape
        (2, 4)
    """
    model, tokens = opened_target(model, tokens)
    if lengths is None and isinstance(tokens, PromptsLike):
        lengths = jnp.atleast_1d(tokens.lengths)
    tokens = as_tokens(tokens)
    shape = (1 if tokens.ndim == 1 else tokens.shape[0], tokens.shape[-1])
    # Edits may be placed at tokens that are yet to come.
    record = check_edits(model, tokens, edits, ahead=_steps(steps))
    counts = _lengths(lengths, shape)
    sampling = Sampling.of(temperature, top_k, top_p, min_p)
    _check_key(temperature, key)
    if not model.generates:
        raise ShapeError(
            "generate needs a causal model: in this one a token depends on later ones."
        )
    shapes = site_shapes(model, shape[1])
    check_cache(model, "generate")
    check_generated(record, shapes)
    check_kept_keys(record, "generate")
    context = getattr(model, "context", None)
    if context is not None and shape[1] + steps > context:
        raise PositionError(
            f"{shape[1]} tokens and {steps} new ones exceed the model's context "
            f"of {context}."
        )
    key = jax.random.key(0) if key is None else key
    seq = bucket(shape[1], least=LEAST_PROMPT)
    if isinstance(context, int):
        seq = min(seq, context)
    total = bucket(seq + steps, least=LEAST_CACHE)
    padded, many = _padded(tokens, seq), jnp.asarray(steps, jnp.int32)
    job = (model, padded, counts, record, key, sampling, _stops(stop), many)
    new = _generate(*job, total)
    if isinstance(new, Tracer):
        new = new[:, :steps]
    else:
        # Cut by NumPy: JAX compiles a slice, and `asarray`, for every shape.
        tokens_on_host = np.asarray(new)[:, :steps]
        refuse_nothing(tokens_on_host)
        new = jax.device_put(tokens_on_host)
    return new[0] if tokens.ndim == 1 else new


def _steps(steps: Any) -> int:
    """Return a number of steps, checked."""
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if not whole or not 1 <= steps < 2**31:
        raise ShapeError(f"generate needs at least one step, got steps={steps!r:.60}.")
    return int(steps)


def _check_key(temperature: Any, key: Any) -> None:
    """Refuse to sample without a key."""
    greedy = not isinstance(temperature, Tracer) and not temperature > 0
    if key is None and greedy:
        return
    if not isinstance(key, jax.Array):
        raise ShapeError(
            "generate needs a key to sample, such as jax.random.key(0), got "
            f"{key!r:.60}."
        )


def _stops(stop: Any) -> Int[Array, " stops"]:
    """Return the stop tokens, padded with -1, which matches no token."""
    found = np.zeros(0, int) if stop is None else integers(stop, "A token to stop at")
    if found.ndim > 1 or np.any(found < 0):
        raise ShapeError(
            f"stop is a token id, or a list of them, starting at 0, got {stop!r:.60}."
        )
    size = STOPS * max(1, -(-found.size // STOPS))
    stops = np.full(size, -1, np.int32)
    stops[: found.size] = found
    return jnp.asarray(stops)


def _padded(tokens: Array, seq: int) -> Int[Array, "batch seq"]:
    """Return a batch of prompts padded to a length; on the host, without a program."""
    numpy = jnp if isinstance(tokens, Tracer) else np
    batch = numpy.atleast_2d(numpy.asarray(tokens))
    missing = seq - batch.shape[1]
    return jax.device_put(numpy.pad(batch, ((0, 0), (0, missing))))


def _lengths(lengths: Any, shape: tuple[int, int]) -> Int[Array, " batch"]:
    """Returns the number of tokens of each prompt, checked."""
    if lengths is None:
        return jnp.asarray(np.full(shape[:1], shape[1], np.int32))
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
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    edits: Sites[Any],
    key: PRNGKeyArray,
    sampling: Sampling,
    stops: Int[Array, " stops"],
    steps: Int[Array, ""],
    total: int,
) -> Int[Array, "batch new"]:
    """Return the new tokens; those after the first `steps` mean nothing."""
    batch, seq = tokens.shape
    prompts = jnp.arange(batch, dtype=jnp.int32)
    keys = jax.vmap(lambda prompt: jax.random.fold_in(key, prompt))(prompts)
    kinds = check_cache(model, "generate")
    again = {n: kind for n, kind in kinds.items() if not isinstance(kind, Fixed)}

    def prefill(tokens: Array, prompt: Array, length: Array) -> Any:
        rows = Sequence(jnp.arange(seq, dtype=jnp.int32), prompt, prompt)
        x = edit(edits.embed, model.embed(tokens, rows.position), Place(rows))
        last = length - 1
        read = keeping(kinds, rows, lambda kind, value: kind.of_prompt(value, last))
        x, (_, past) = scan_blocks(model, x, edits.blocks, rows, **read)
        last = last[None]
        rows = Sequence(last, prompt, prompt)
        logits = finish(model, x[last], edits, rows)[1][0]
        return logits, past

    def step(state: Any) -> Any:
        i, token, ended, past, out = state
        position = lengths + i
        rows = Packed(position, prompts, prompts, prompts, position, prompts, 1, total)
        x = edit(edits.embed, model.embed(token, position), Place(rows))
        read = keeping(again, rows)
        x, (_, new) = scan_blocks(model, x, edits.blocks, rows, past=past, **read)
        logits = finish(model, x, edits, rows)[1]
        token = jnp.where(ended, token, pick(logits, keys, sampling, i + 1))
        ended = ended | _is_stop(token, stops)
        past = {
            n: kind.append(past[n], new.get(n), position) for n, kind in kinds.items()
        }
        return i + 1, token, ended, past, out.at[:, i + 1].set(token)

    def more(state: Any) -> Array:
        i, _, ended, _, _ = state
        return (i + 1 < steps) & ~ended.all()

    logits, past = jax.vmap(prefill, out_axes=(0, 1))(tokens, prompts, lengths)
    past = {n: kind.extend(past[n], total) for n, kind in kinds.items()}
    first = jnp.zeros((), jnp.int32)
    token = pick(logits, keys, sampling, first)
    out = jnp.zeros((batch, total - seq), jnp.int32).at[:, 0].set(token)
    state = (first, token, _is_stop(token, stops), past, out)
    i, token, _, _, out = jax.lax.while_loop(more, step, state)
    done = jnp.arange(out.shape[1]) <= i
    return jnp.where(done, out, token[:, None])


def _is_stop(
    token: Int[Array, " prompt"], stops: Int[Array, " stops"]
) -> Bool[Array, " prompt"]:
    return (token[:, None] == stops).any(1)
