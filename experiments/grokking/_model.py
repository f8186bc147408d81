"""The one-layer transformer that adds modulo p, and a quick way through it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax.nn import (
    MLP,
    Attention,
    Block,
    Embedding,
    Identity,
    ReLU,
    Transformer,
    Unembedding,
)


def initial(
    key: PRNGKeyArray, p: int, *, embed: int, heads: int, mlp: int
) -> Transformer:
    """Draws weights as the paper's code does.

    Args:
        key: of the weights.
        p: tokens are the numbers below it, and `=`, which is `p`.
        embed: width of the residual stream.
        heads: attention heads, of `embed / heads` each.
        mlp: neurons.

    Returns:
        A model of one layer without norms, with biases in its MLP alone.
    """
    keys = iter(jax.random.split(key, 9))
    head_dim, vocab = embed // heads, p + 1

    def draw(*shape: int, width: int = embed) -> Array:
        return jax.random.normal(next(keys), shape) / width**0.5

    return Transformer(
        embedding=Embedding(draw(vocab, embed)),
        positions=Embedding(draw(3, embed)),
        blocks=Block(
            Identity(),
            Attention(
                w_q=draw(1, embed, heads, head_dim),
                w_k=draw(1, embed, heads, head_dim),
                w_v=draw(1, embed, heads, head_dim),
                w_o=draw(1, heads, head_dim, embed),
            ),
            Identity(),
            MLP(
                w_in=draw(1, embed, mlp),
                w_out=draw(1, mlp, embed),
                b_in=jnp.zeros((1, mlp)),
                b_out=jnp.zeros((1, embed)),
                activation=ReLU(),
            ),
        ),
        norm=Identity(),
        unembedding=Unembedding(draw(vocab, embed, width=vocab)),
        context=3,
    )


def neurons(
    model: Transformer, pairs: Int[Array | np.ndarray, "pair 2"]
) -> tuple[Float[Array, "pair embed"], Float[Array, "pair mlp"]]:
    """Computes what the MLP reads and its activations, after `a b =`.

    The answer is read at one position, whose query is the same for all pairs, and what
    a head reads from a number depends on that number alone: keys and values are made
    once for each number, not once for each pair.

    Args:
        model: of `initial`.
        pairs: the numbers a and b.

    Returns:
        The residual stream before the MLP, and the neurons.
    """
    block: Any = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    attention, mlp = block.attention, block.mlp
    x, where = model.embedding.weight, _positions(model)
    last = x[-1] + where[2]
    query = jnp.einsum("e,ehd->hd", last, attention.w_q)
    of_number = [x[:-1] + where[0], x[:-1] + where[1], last[None]]
    scores, values = [], []
    picks = [jax.nn.one_hot(pairs[:, i], len(x) - 1) for i in (0, 1)]
    for i, stream in enumerate(of_number):
        key = jnp.einsum("ne,ehd->nhd", stream, attention.w_k)
        score = jnp.einsum("nhd,hd->nh", key, query) / query.shape[1] ** 0.5
        value = jnp.einsum("ne,ehd->nhd", stream, attention.w_v)
        # A product with ones and zeros: its gradient is a product too.
        heads, head_dim = query.shape
        both = jnp.concatenate([score, value.reshape(len(stream), -1)], axis=1)
        rows = picks[i] @ both if i < 2 else jnp.repeat(both, len(pairs), axis=0)
        scores.append(rows[:, :heads])
        values.append(rows[:, heads:].reshape(-1, heads, head_dim))
    pattern = jax.nn.softmax(jnp.stack(scores, -1), axis=-1)
    z = sum(pattern[..., i, None] * values[i] for i in range(3))
    mid = last + jnp.einsum("bhd,hde->be", z, attention.w_o)
    return mid, jax.nn.relu(mid @ mlp.w_in + mlp.b_in)


def logits(
    model: Transformer, pairs: Int[Array | np.ndarray, "pair 2"]
) -> Float[Array, "pair vocab"]:
    """Computes the logits after `a b =`; equal to those of the model itself."""
    mid, post = neurons(model, pairs)
    return head(model, mid, post)


def head(
    model: Transformer, mid: Float[Array, "pair embed"], post: Float[Array, "pair mlp"]
) -> Float[Array, "pair vocab"]:
    """Computes logits from the stream before the MLP and the neurons."""
    block: Any = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    mlp = block.mlp
    return model.unembed(mid + post @ mlp.w_out + mlp.b_out)


def _positions(model: Transformer) -> Float[Array, "context embed"]:
    assert model.positions is not None
    return model.positions.weight


def losses(
    logits: Float[Array, "pair vocab"], answers: Int[Array | np.ndarray, " pair"]
) -> Float[Array, " pair"]:
    r"""Computes cross-entropy to the last bit of float32, also where it is tiny.

    $\log(1 + \sum_{j \ne y} e^{l_j - l_y})$ by `log1p`: with `logsumexp` nothing below
    1e-7 could be told from 0, and the gradient would end there.

    Args:
        logits: of all tokens.
        answers: the right ones.

    Returns:
        The losses, in nats.
    """
    right = jnp.take_along_axis(logits, jnp.asarray(answers)[:, None], axis=1)
    others = jnp.arange(logits.shape[1]) != jnp.asarray(answers)[:, None]
    apart = logits - right
    most = jax.lax.stop_gradient(jnp.maximum(apart.max(1), 0))
    terms = jnp.where(others, jnp.exp(apart - most[:, None]), 0).sum(1)
    return most + jnp.log1p(terms + jnp.expm1(-most))
