"""Result of a lens, and the function that computes it a few rows at a time."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.core import AbstractModel
from mijax.nn import Readout

# Number of logits in memory at once, at least a few rows, unless all are returned.
MOST_LOGITS, LEAST_ROWS = 2**20, 16


class LensReading(eqx.Module):
    """The next-token distribution that each layer's stream decodes to, in nats.

    The axis `seq` is present if every position was read, the axis `batch` for a batch
    of prompts. Values at padding are NaN, and ranks there are -1.

    Attributes:
        logits: logits of the requested tokens, `[*batch, layer, *seq, k]`.
        tokens: ids of the tokens, with the same shape.
        total: log-sum-exp of all logits, `[*batch, layer, *seq]`.
        entropy: entropy of the whole distribution in nats, `[*batch, layer, *seq]`.
        ranks: rank of each of `tokens`, the number of tokens with strictly larger
            logits; 0 is the best. `None` if the whole vocabulary was read.
        target_ranks: rank of the target, `[*batch, layer, *seq]`, -1 without one;
            `None` if no targets were given.
        target_log_probabilities: log probability of the target, NaN without one.
        batched: True if the first axis is the prompt.
    """

    logits: Float[Array, "*read k"]
    tokens: Int[Array, "*read k"]
    total: Float[Array, "*read"]
    entropy: Float[Array, "*read"]
    ranks: Int[Array, "*read k"] | None = None
    target_ranks: Int[Array, "*read"] | None = None
    target_log_probabilities: Float[Array, "*read"] | None = None
    batched: bool = eqx.field(static=True, default=True)

    def log_probabilities(self) -> Float[Array, "*read k"]:
        """Return the log probability of each token in `tokens`."""
        return self.logits - self.total[..., None]

    def entropy_profile(self) -> Float[Array, "*batch layer"]:
        r"""Return the mean entropy of each layer over positions: the entropy lens.

        $H_l = -\sum_v p_{l,v} \log p_{l,v}$, whose profile $(H_0, \dots, H_{L-1})$
        distinguishes model families and tasks (Ali et al. 2025, arXiv:2502.16570).
        """
        found = self.entropy
        return jnp.nanmean(found, -1) if found.ndim > 1 + self.batched else found

    def prediction_depth(self) -> Int[Array, "*place"]:
        """Return the first layer from which the best token never changes.

        Raises:
            ShapeError: a reading without `top`.
        """
        if self.ranks is None or not self.tokens.shape[-1]:
            raise ShapeError("prediction_depth needs the best tokens: read top=1.")
        axis = int(self.batched)
        best = self.tokens[..., 0]
        last = jnp.take(best, jnp.array([-1]), axis=axis)
        same = jnp.flip(jnp.cumprod(jnp.flip(best == last, axis), axis), axis)
        return jnp.asarray(best.shape[axis] - same.sum(axis), jnp.int32)


def known_ids(ids: Any, batch: tuple[int, ...], vocab: int) -> Int[Array, "*batch k"]:
    """Return the tokens to read for each prompt.

    Raises:
        ShapeError: ids that do not fit the prompts or the vocabulary.
    """
    given = np.asarray(ids)
    if given.dtype.kind not in "iu" or given.ndim not in {1, 1 + len(batch)}:
        raise ShapeError(
            "Expected token ids [k], or [batch, k] for a batch of prompts, got "
            f"{given.dtype} of shape {given.shape}."
        )
    if given.ndim == 2 and given.shape[:1] != batch:
        raise ShapeError(f"Got {len(given)} rows of ids for {batch[0]} prompts.")
    _check_range(given, vocab)
    return jnp.broadcast_to(jnp.asarray(given, jnp.int32), (*batch, given.shape[-1]))


def known_targets(
    targets: Any, batch: tuple[int, ...], seq: tuple[int, ...], vocab: int
) -> Int[Array, "*place"]:
    """Return the target of each prompt and position, -1 without one.

    Raises:
        ShapeError: targets that do not fit the prompts or the vocabulary.
    """
    given = np.asarray(targets)
    whole = (*batch, *seq)
    if given.dtype.kind not in "iu" or given.shape not in ((), batch, whole):
        raise ShapeError(
            f"Expected one target id, one per prompt {list(batch)}, or one per prompt "
            f"and position {list(whole)}, got {given.dtype} of shape {given.shape}."
        )
    _check_range(given[given != -1], vocab)
    if given.shape == batch and given.shape != whole:
        given = given.reshape(*batch, *(1,) * len(seq))
    found = jnp.broadcast_to(jnp.asarray(given, jnp.int32), whole)
    return jnp.expand_dims(found, len(batch))


def _check_range(given: np.ndarray, vocab: int) -> None:
    if given.size and not 0 <= given.min() <= given.max() < vocab:
        worst = given.min() if given.min() < 0 else given.max()
        raise ShapeError(f"Token ids must be from 0 to {vocab - 1}, got {worst}.")


def check_top(top: int | None, vocab: int) -> None:
    """Raise if the number of tokens exceeds the vocabulary."""
    if top is not None and not 1 <= top <= vocab:
        raise ShapeError(f"top must be between 1 and {vocab} tokens, got {top}.")


def ending(model: AbstractModel | Readout) -> Callable[[Array], Array]:
    """Return the map from the stream after the last block to the logits."""
    if isinstance(model, Readout):
        return model
    return lambda x: model.unembed(model.normalise(x))


@eqx.filter_jit
def read_rows(
    model: AbstractModel | Readout,
    lens: Callable[[Array], Array],
    stream: Float[Array, "prompt layer position embed"],
    ids: Int[Array, "prompt k"] | None,
    targets: Int[Array, "prompt position"] | None,
    top: int | None,
) -> dict[str, Array]:
    """Decode a few rows at a time, to keep few logits in memory.

    Args:
        model: the model, or its readout.
        lens: map of the stream.
        stream: the residual stream of every layer.
        ids: tokens to return for each prompt.
        targets: one token for each prompt and position, -1 for none.
        top: number of top tokens to return.

    Returns:
        Arrays `[prompt, layer, position, ...]` by their name in `LensReading`.
    """
    end = ending(model)
    places = stream.shape[:-1]
    stream = lens(stream)
    vocab = jax.eval_shape(end, stream).shape[-1]

    def per_row(a: Array | None, shape: tuple[int, ...]) -> Array | None:
        """Repeat a prompt's values for each of its layers and positions."""
        if a is None:
            return None
        a = jnp.broadcast_to(jnp.expand_dims(a, 1), (*places, *shape))
        return a.reshape(-1, *shape)

    wanted = None if ids is None else per_row(ids[:, None], ids.shape[-1:])

    def read(inputs: Any) -> dict[str, Array]:
        x, own, target = inputs
        logits = end(x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        total = jax.nn.logsumexp(logits, axis=-1)
        found = {"total": total, "entropy": _entropy(logits, total)}
        if top is not None:
            found["logits"], found["tokens"] = jax.lax.top_k(logits, top)
            # Any logit larger than a top logit is itself among the top.
            found["ranks"] = _ranks(found["logits"], found["logits"])
        elif own is not None:
            found["tokens"] = own
            found["logits"] = jnp.take_along_axis(logits, own, axis=-1)
            found["ranks"] = _ranks(logits, found["logits"])
        elif target is None:
            found["logits"] = logits
        if target is not None:
            picked = jnp.take_along_axis(logits, target[:, None], axis=-1)
            none, rank = target < 0, _ranks(logits, picked)[:, 0]
            found["target_ranks"] = jnp.where(none, -1, rank)
            found["target_log_probabilities"] = jnp.where(
                none, jnp.nan, picked[:, 0] - total
            )
        return found

    rows = stream.reshape(-1, stream.shape[-1])
    inputs = (rows, wanted, per_row(targets, ()))
    found = over_rows(read, inputs, max(LEAST_ROWS, MOST_LOGITS // vocab))
    return {name: a.reshape(*places, *a.shape[1:]) for name, a in found.items()}


def _entropy(logits: Float[Array, "rows vocab"], total: Array) -> Float[Array, " rows"]:
    log_p = logits - total[:, None]
    # A logit of minus infinity has probability 0 and adds nothing.
    return -jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * log_p, 0.0).sum(-1)


def _ranks(
    logits: Float[Array, "rows vocab"], own: Float[Array, "rows k"]
) -> Int[Array, "rows k"]:
    """Count strictly larger logits; the comparison is fused into the sum."""
    return (logits[:, None] > own[..., None]).sum(-1, dtype=jnp.int32)


def over_rows(read: Callable[[Any], Any], inputs: Any, size: int) -> Any:
    """Apply a function to `size` rows at a time."""
    n = inputs[0].shape[0]
    if n <= size:
        return read(inputs)
    chunks = -(-n // size)
    # Chunks have equal size; the last is padded with rows that are then cut off.
    size = -(-n // chunks)
    fill = chunks * size - n

    def split(a: Array) -> Array:
        a = jnp.pad(a, ((0, fill), *((0, 0),) * (a.ndim - 1)))
        return a.reshape(chunks, size, *a.shape[1:])

    found = jax.lax.map(read, jax.tree.map(split, inputs))
    return jax.tree.map(lambda a: a.reshape(chunks * size, *a.shape[2:])[:n], found)
