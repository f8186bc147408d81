"""Weights of attention in one frame: per query head, norms folded into the readers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mijax._errors import SiteError
from mijax.core import AbstractModel
from mijax.core.internal import check_linear_writes
from mijax.nn import Identity, LayerNorm, RMSNorm
from mijax.nn.internal import readout_of

Norm = LayerNorm | RMSNorm | Identity


class Heads(NamedTuple):
    """What every head reads and writes, biases and the scales of norms left out.

    Attributes:
        q: reads the residual stream for the queries.
        k: for the keys; heads that share a key hold the same.
        v: for the values, likewise.
        o: writes to the residual stream.
    """

    q: Float[np.ndarray, "layer heads embed head_dim"]
    k: Float[np.ndarray, "layer heads embed head_dim"]
    v: Float[np.ndarray, "layer heads embed head_dim"]
    o: Float[np.ndarray, "layer heads head_dim embed"]


def heads_of(model: AbstractModel, *, dtype: type = np.float32) -> Heads:
    """Returns the weights of every query head, as they act on the residual stream.

    Args:
        model: the model.
        dtype: of the result.

    Returns:
        The weights; a norm's weight and the centring of LayerNorm are in the readers.

    Raises:
        SiteError: its blocks have no attention with a norm before it.
    """
    blocks: Any = model.blocks
    attention: Any = getattr(blocks, "attention", None)
    norm: Any = getattr(blocks, "norm_1", None)
    if not hasattr(attention, "w_q") or norm is None:
        raise SiteError(
            f"{type(blocks).__name__} has no `attention` whose heads read the stream "
            "through a `norm_1`, so the weights of its heads are not known."
        )

    check_linear_writes(model, "Weights of heads")

    def reader(weight: jax.Array) -> np.ndarray:
        shared = attention.w_q.shape[2] // weight.shape[2]
        wide = np.repeat(np.asarray(weight, dtype), shared, axis=2)
        return np.moveaxis(through(norm, wide, axis=1), 2, 1)

    q, k, v = (reader(w) for w in (attention.w_q, attention.w_k, attention.w_v))
    return Heads(q, k, v, np.asarray(attention.w_o, dtype))


def tables_of(
    model: AbstractModel, *, dtype: type = np.float32
) -> tuple[Float[np.ndarray, "vocab embed"], Float[np.ndarray, "vocab embed"]]:
    """Returns the embedding, and the unembedding with the final norm in it."""
    readout = readout_of(model, "Weights of tokens", linear=False)
    vocab = getattr(model, "vocab", readout.outputs)
    tokens = jnp.arange(vocab, dtype=jnp.int32)
    terms = model.embeddings(tokens, jnp.zeros_like(tokens))
    embedding = np.asarray(terms["token" if "token" in terms else "input"], dtype)
    table = np.asarray(readout.head.weight, dtype)
    return embedding, through(readout.norm, table, axis=1)


def through(norm: Norm, weight: np.ndarray, *, axis: int) -> np.ndarray:
    """Folds a norm but for its scale and bias into weights that read it.

    Args:
        norm: the norm; where it is stacked, its layer axis is the weights' first one.
        weight: the weights.
        axis: the axis that reads the normalised stream.

    Returns:
        The weights that read the stream before the norm.
    """
    if isinstance(norm, Identity):
        return weight
    if norm.weight is not None:
        gain = np.asarray(norm.weight, weight.dtype)
        shape = [1] * weight.ndim
        shape[axis] = -1
        if gain.ndim == 2:
            shape[0] = len(gain)
        weight = weight * gain.reshape(shape)
    if isinstance(norm, LayerNorm):
        weight = weight - weight.mean(axis, keepdims=True)
    return weight
