"""Activations of sentences, at a token or averaged."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import mijax
from mijax.nn import Transformer
from mijax.probes import Sequences

from ._sentences import Sentences

POSITIONS = ("last token", "mean of tokens", "middle token")
# Sentences that the model runs on at once; their lengths are rounded up.
ROWS, ROUND = 32, 8
STREAM = {"embed": mijax.Site("embed"), "post": mijax.Site("resid_post")}


def read(
    model: Transformer, sentences: Sentences, edits: Any = None
) -> Float[np.ndarray, "layer position sentence embed"]:
    """Reads the embedding and every layer's output at `POSITIONS`.

    Args:
        model: the model.
        sentences: of any lengths.
        edits: placed edits, or `None`.

    Returns:
        Activations; the first token, on which attention rests, is not in means.
    """
    out = None
    for at, tokens, lengths in _batches(sentences):
        acts = mijax.capture(model, tokens, STREAM, edits)
        rows = np.asarray(_pooled(acts["embed"], acts["post"], lengths))
        if out is None:
            out = np.zeros((*rows.shape[:2], len(sentences.labels), rows.shape[-1]))
            out = out.astype(np.float32)
        out[:, :, at] = rows[:, :, : len(at)]
    assert out is not None
    return out


def sequences(model: Transformer, sentences: Sentences, layer: int) -> Sequences:
    """Reads one layer's output at every token, without the first one.

    Args:
        model: the model.
        sentences: of any lengths.
        layer: which.

    Returns:
        Activations `[sentence, seq, embed]` and which tokens are real.
    """
    site = mijax.Site("resid_post", layer=layer)
    count, longest = sentences.tokens.shape
    out = None
    for at, tokens, _ in _batches(sentences):
        acts = np.asarray(mijax.capture(model, tokens, site))
        if out is None:
            out = np.zeros((count, longest, acts.shape[-1]), np.float32)
        out[at, : acts.shape[1]] = acts[: len(at), :longest]
    assert out is not None
    mask = np.arange(longest) < sentences.lengths[:, None]
    return Sequences(jnp.asarray(out[:, 1:]), jnp.asarray(mask[:, 1:]))


def _batches(sentences: Sentences) -> Any:
    """Yields sentences of like length, padded, with their indices."""
    order = np.argsort(sentences.lengths, kind="stable")
    for start in range(0, len(order), ROWS):
        at = order[start : start + ROWS]
        longest = -(-int(sentences.lengths[at].max()) // ROUND) * ROUND
        tokens = np.zeros((ROWS, longest), np.int32)
        width = min(longest, sentences.tokens.shape[1])
        tokens[: len(at), :width] = sentences.tokens[at, :width]
        lengths = np.full(ROWS, 2)
        lengths[: len(at)] = sentences.lengths[at]
        yield at, jnp.asarray(tokens), jnp.asarray(lengths)


@jax.jit
def _pooled(
    embed: Float[Array, "row seq embed"],
    post: Float[Array, "row layer seq embed"],
    lengths: Array,
) -> Float[Array, "layers position row embed"]:
    stream = jnp.concatenate([embed[:, None], post], axis=1)
    at = jnp.arange(embed.shape[1])
    inside = (at > 0) & (at < lengths[:, None])
    weights = jnp.stack(
        [
            at == lengths[:, None] - 1,
            inside / inside.sum(1, keepdims=True),
            at == lengths[:, None] // 2,
        ]
    )
    # Padding may hold any number; none of it is infinite.
    return jnp.einsum("prs,rlse->lpre", weights.astype(jnp.float32), stream)
