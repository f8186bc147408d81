"""Tiny random models of every kind of block.

Nothing in them is zero or one: norms, biases and positions matter, and attention is
peaked, so that a test which passes on them has seen every parameter.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.nn import (
    GELU,
    MLP,
    Attention,
    AttentionBlock,
    Block,
    Embedding,
    GatedMLP,
    LayerNorm,
    ParallelBlock,
    RMSNorm,
    Rotary,
    SandwichBlock,
    SiLU,
    SoftCap,
    Transformer,
    Unembedding,
)

LAYERS, EMBED, HEADS, HEAD_DIM, VOCAB, CONTEXT = 3, 32, 4, 8, 64, 32


def tiny_gpt2(key: PRNGKeyArray) -> Transformer:
    """Three GPT-2 blocks: LayerNorm, biases, learned positions, tied unembedding.

    Embed 32, 4 heads of 8, MLP 64, vocab 64, context 32.

    Args:
        key: seed of the weights.

    Returns:
        The model.

    Examples:
        >>> import jax
        >>> tiny_gpt2(jax.random.key(0)).n_layers
        3
    """
    normal = Draws(key)
    blocks = Block(
        norm_1=layer_norm(normal, LAYERS),
        attention=attention(normal, LAYERS, biases=True),
        norm_2=layer_norm(normal, LAYERS),
        mlp=mlp(normal, LAYERS),
    )
    return Transformer(
        embedding=Embedding(normal(VOCAB, EMBED, scale=0.7)),
        positions=Embedding(normal(CONTEXT, EMBED, scale=0.5)),
        blocks=blocks,
        norm=layer_norm(normal),
        unembedding=None,
        context=CONTEXT,
    )


def tiny_llama(key: PRNGKeyArray) -> Transformer:
    """Three Llama blocks: RMSNorm, rotary, gated MLP, 2 key/value heads for 4 heads.

    Embed 32, 4 heads of 8, MLP 48, vocab 64, an unembedding of its own.

    Args:
        key: seed of the weights.

    Returns:
        The model.

    Examples:
        >>> import jax
        >>> tiny_llama(jax.random.key(0)).blocks.attention.w_k.shape
        (3, 32, 2, 8)
    """
    normal = Draws(key)
    blocks = Block(
        norm_1=rms_norm(normal, LAYERS),
        attention=attention(normal, LAYERS, kv_heads=2, rotary=True),
        norm_2=rms_norm(normal, LAYERS),
        mlp=gated_mlp(normal, LAYERS, SiLU()),
    )
    return Transformer(
        embedding=Embedding(normal(VOCAB, EMBED, scale=0.7)),
        positions=None,
        blocks=blocks,
        norm=rms_norm(normal),
        unembedding=Unembedding(normal(VOCAB, EMBED, scale=0.3)),
        context=CONTEXT,
    )


def tiny_parallel(key: PRNGKeyArray) -> Transformer:
    """Three parallel blocks (GPT-J, NeoX): LayerNorm, rotary, no `resid_mid`.

    Embed 32, 4 heads of 8, MLP 64, vocab 64, an unembedding with a bias.

    Args:
        key: seed of the weights.

    Returns:
        The model.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> logits, acts = tiny_parallel(jax.random.key(0))(jnp.array([1, 2]))
        >>> acts.blocks.resid_mid is None
        True
    """
    normal = Draws(key)
    blocks = ParallelBlock(
        norm_1=layer_norm(normal, LAYERS),
        attention=attention(normal, LAYERS, biases=True, rotary=True),
        norm_2=layer_norm(normal, LAYERS),
        mlp=mlp(normal, LAYERS),
    )
    return Transformer(
        embedding=Embedding(normal(VOCAB, EMBED, scale=0.7)),
        positions=None,
        blocks=blocks,
        norm=layer_norm(normal),
        unembedding=Unembedding(
            normal(VOCAB, EMBED, scale=0.3), normal(VOCAB, scale=0.2)
        ),
        context=CONTEXT,
    )


def tiny_sandwich(key: PRNGKeyArray) -> Transformer:
    """Three blocks as in Gemma 2 and 3, with windows of 3 and 4 tokens in two layers.

    Norms before and after attention and MLP, norms of queries and keys, soft caps of
    scores and logits, a scaled embedding, rotary positions of 3 of 4 pairs whose
    frequencies differ by layer. Embed 32, 4 heads of 8, 2 key/value heads, MLP 48,
    vocab 64, tied.

    Args:
        key: seed of the weights.

    Returns:
        The model.

    Examples:
        >>> import jax
        >>> tiny_sandwich(jax.random.key(0)).blocks.attention.window.tolist()
        [3, 1000, 4]
    """
    normal = Draws(key)
    base = jnp.array([[100.0], [10.0], [10.0]])
    rotates = jnp.array([[1.0], [1.0], [0.0]])
    frequency = rotates * base ** (-jnp.arange(0, 6, 2) / 6)
    shared = attention(normal, LAYERS, kv_heads=2)
    head_norms = (RMSNorm(2 + normal(LAYERS, HEAD_DIM, scale=0.5)) for _ in range(2))
    blocks = SandwichBlock(
        norm_1=rms_norm(normal, LAYERS),
        attention=dataclasses.replace(
            shared,
            rotary=Rotary(frequency, jnp.array([1.0, 1.2, 1.0])),
            q_norm=next(head_norms),
            k_norm=next(head_norms),
            scale=0.3,
            cap=SoftCap(4.0),
            window=jnp.array([3, 1000, 4]),
        ),
        norm_2=rms_norm(normal, LAYERS),
        norm_3=rms_norm(normal, LAYERS),
        mlp=gated_mlp(normal, LAYERS, GELU()),
        norm_4=rms_norm(normal, LAYERS),
    )
    return Transformer(
        embedding=Embedding(normal(VOCAB, EMBED, scale=0.3), scale=2.5),
        positions=None,
        blocks=blocks,
        norm=rms_norm(normal),
        unembedding=None,
        context=CONTEXT,
        cap=SoftCap(6.0),
    )


def tiny_attention_only(key: PRNGKeyArray) -> Transformer:
    """Two attention-only blocks with learned positions (Elhage et al. 2021).

    Embed 32, 4 heads of 8, vocab 64, an unembedding of its own.

    Args:
        key: seed of the weights.

    Returns:
        The model.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> logits, acts = tiny_attention_only(jax.random.key(0))(jnp.array([1, 2]))
        >>> acts.blocks.mlp_out is None
        True
    """
    normal = Draws(key)
    blocks = AttentionBlock(
        norm_1=layer_norm(normal, 2), attention=attention(normal, 2, biases=True)
    )
    return Transformer(
        embedding=Embedding(normal(VOCAB, EMBED, scale=0.7)),
        positions=Embedding(normal(CONTEXT, EMBED, scale=0.5)),
        blocks=blocks,
        norm=layer_norm(normal),
        unembedding=Unembedding(normal(VOCAB, EMBED, scale=0.3)),
        context=CONTEXT,
    )


class Draws:
    """Normal draws of a given scale; every call splits a fresh key off."""

    def __init__(self, key: PRNGKeyArray) -> None:
        self.keys: Iterator[PRNGKeyArray] = iter(jax.random.split(key, 64))

    def __call__(self, *shape: int, scale: float) -> Float[Array, "..."]:
        """Draws one array."""
        return scale * jax.random.normal(next(self.keys), shape, jnp.float32)


def attention(
    normal: Draws,
    layers: int,
    *,
    kv_heads: int = HEADS,
    biases: bool = False,
    rotary: bool = False,
) -> Attention:
    """Draws stacked attention whose scores have a standard deviation near 2."""
    bias = lambda *shape: normal(*shape, scale=0.3) if biases else None  # noqa: E731
    frequency = 100.0 ** (-jnp.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return Attention(
        w_q=normal(layers, EMBED, HEADS, HEAD_DIM, scale=0.25),
        w_k=normal(layers, EMBED, kv_heads, HEAD_DIM, scale=0.25),
        w_v=normal(layers, EMBED, kv_heads, HEAD_DIM, scale=0.25),
        w_o=normal(layers, HEADS, HEAD_DIM, EMBED, scale=0.25),
        b_q=bias(layers, HEADS, HEAD_DIM),
        b_k=bias(layers, kv_heads, HEAD_DIM),
        b_v=bias(layers, kv_heads, HEAD_DIM),
        b_o=bias(layers, EMBED),
        rotary=Rotary(jnp.tile(frequency, (layers, 1))) if rotary else None,
    )


def mlp(normal: Draws, layers: int) -> MLP:
    """Draws a stacked MLP."""
    return MLP(
        w_in=normal(layers, EMBED, 64, scale=0.25),
        w_out=normal(layers, 64, EMBED, scale=0.25),
        b_in=normal(layers, 64, scale=0.3),
        b_out=normal(layers, EMBED, scale=0.3),
        activation=GELU(),
    )


def gated_mlp(normal: Draws, layers: int, activation: GELU | SiLU) -> GatedMLP:
    """Draws a stacked gated MLP."""
    return GatedMLP(
        w_gate=normal(layers, EMBED, 48, scale=0.25),
        w_in=normal(layers, EMBED, 48, scale=0.25),
        w_out=normal(layers, 48, EMBED, scale=0.25),
        activation=activation,
    )


def layer_norm(normal: Draws, *lead: int) -> LayerNorm:
    """Draws a LayerNorm with weights near 1."""
    return LayerNorm(
        1 + normal(*lead, EMBED, scale=0.3), normal(*lead, EMBED, scale=0.2)
    )


def rms_norm(normal: Draws, *lead: int) -> RMSNorm:
    """Draws an RMSNorm with weights near 1."""
    return RMSNorm(1 + normal(*lead, EMBED, scale=0.3))
