"""Scores of heads: where they attend on repeated tokens, and what they write."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mijax.nn import AttentionBlock, Transformer

from ._repeats import Repeats


@jax.jit
def attention_scores(
    pattern: Float[Array, "prompt layer seq heads key_seq"], prompts: Repeats
) -> Mapping[str, Float[Array, "prompt layer heads"]]:
    """Mean attention of every head to two keys (Olsson et al. 2022, arXiv:2209.11895).

    Args:
        pattern: attention probabilities.
        prompts: the prompts that they are of.

    Returns:
        `prefix_matching`: from tokens of the second copy to the token that followed
        them in the first. `previous_token`: from every token to the one before.
    """
    seq = prompts.tokens.shape[-1]
    back = jnp.broadcast_to(jnp.maximum(jnp.arange(seq) - 1, 0), prompts.tokens.shape)
    after_bos = jnp.broadcast_to(jnp.arange(seq) > 0, prompts.tokens.shape)

    def mean(keys: Array, queries: Array) -> Array:
        index = keys[:, None, :, None, None]
        found = jnp.take_along_axis(pattern, index, axis=-1)[..., 0]
        weight = queries[:, None, :, None]
        return (found * weight).sum(2) / weight.sum(2)

    return {
        "prefix_matching": mean(prompts.target, prompts.inside),
        "previous_token": mean(back, after_bos),
    }


@jax.jit
def token_losses(
    logits: Float[Array, "prompt seq vocab"], prompts: Repeats
) -> Float[Array, "prompt copied"]:
    """Loss of every query on the token that follows it, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], prompts.tokens[:, 1:]
    )


@jax.jit
def split_losses(
    losses: Float[Array, "prompt copied"], prompts: Repeats
) -> tuple[Array, Array]:
    """Mean loss on tokens that can be copied, and on all others, `[prompt]` each."""
    inside = prompts.inside[:, :-1]
    mean = lambda where: (losses * where).sum(1) / where.sum(1)  # noqa: E731
    return mean(inside), mean(~inside)


@jax.jit
def copying(
    model: Transformer, prompts: Repeats, acts: Mapping[str, Array]
) -> Float[Array, "prompt layer heads"]:
    """How much each head itself raises the logit of the token that comes next.

    The head's output at the queries of the second copy, through the final norm (with
    the scale that the norm has there) and the unembedding: logit of the right token
    minus the mean logit.

    Args:
        model: an attention-only transformer.
        prompts: the prompts.
        acts: their `z` and `resid_post`, whole sites.

    Returns:
        Mean over the queries, in logits.
    """
    last = centre(acts["resid_post"][:, -1])
    scale = jax.lax.rsqrt((last**2).mean(-1) + 1e-5)
    rows = readout(model)
    rows = rows - rows.mean(0)
    right = rows[jnp.roll(prompts.tokens, -1, axis=1)]
    block = blocks(model)
    written = jnp.einsum("plqhd,lhde,pqe->plqh", acts["z"], block.attention.w_o, right)
    weight = prompts.inside[:, None, :, None] * scale[:, None, :, None]
    return (written * weight).sum(2) / prompts.inside.sum(1)[:, None, None]


def blocks(model: Transformer) -> AttentionBlock:
    """The model's blocks, which have to be attention alone."""
    assert isinstance(model.blocks, AttentionBlock)
    return model.blocks


def readout(model: Transformer) -> Float[Array, "vocab embed"]:
    """The unembedding with the final norm's weight and centring in it."""
    table = model.unembedding or model.embedding
    return centre(table.weight * gain(model.norm))


def gain(norm: Any) -> Array | float:
    """The weight of a norm; 1 where there is none."""
    weight = getattr(norm, "weight", None)
    return 1.0 if weight is None else weight


def centre(x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
    """Subtracts the mean over the last axis, which LayerNorm does not let through."""
    return x - x.mean(-1, keepdims=True)
