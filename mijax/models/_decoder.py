"""Parts of decoders with rotary positions and grouped queries.

A family builds its model from these by value: which norms, biases, windows and scales
it has. What a block does in another order is another block class.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int, PRNGKeyArray

from mijax.core import AbstractBlock
from mijax.io import NonNegative, Positive, Size
from mijax.models._config import ACTIVATIONS, Activation
from mijax.models._init import Normal, layer_norm, rms_norm
from mijax.models._leaves import head_sizes
from mijax.nn import (
    MLP,
    Alibi,
    Attention,
    Block,
    Embedding,
    GatedMLP,
    ParallelBlock,
    RMSNorm,
    Rotary,
    Transformer,
    Unembedding,
)
from mijax.nn.internal import AbstractMLP

FREQUENCY = "blocks.attention.rotary.frequency"
SCALE = "blocks.attention.rotary.scale"
WINDOW = "blocks.attention.window"
SLOPE = "blocks.attention.bias.slope"
# The window of a layer that reads every token before its own.
EVERY = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Sizes that decoders with rotary positions share."""

    layers: Size
    embed: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    mlp: Size
    vocab: Size
    context: Size
    rope_theta: Positive = 10000.0
    eps: NonNegative = 1e-5
    activation: Activation = "silu"
    tied: bool = True


@dataclasses.dataclass(frozen=True)
class PlainSpec:
    """Sizes of decoders with LayerNorm and as many key heads as query heads."""

    layers: Size
    embed: Size
    heads: Size
    mlp: Size
    vocab: Size
    context: Size
    eps: NonNegative = 1e-5
    activation: Activation = "gelu_new"
    tied: bool = True


def layer_norm_decoder(
    spec: Any,
    key: PRNGKeyArray,
    dtype: DTypeLike,
    *,
    kind: type[Block] | type[ParallelBlock] = Block,
    leaves: Mapping[str, np.ndarray] = MappingProxyType({}),
    positions: int | None = None,
    head_bias: bool = False,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> Transformer:
    """Draws a decoder with LayerNorm and an MLP with biases.

    Args:
        spec: the sizes.
        key: seed of the weights, of standard deviation 0.02.
        dtype: precision of the weights.
        kind: class of the blocks.
        leaves: what follows from the spec: frequencies, windows, slopes.
        positions: number of learned positions.
        head_bias: whether the unembedding has a bias.
        fields: other fields of `Attention`.

    Returns:
        The model.
    """
    normal = Normal(key, dtype)
    norms = (
        layer_norm(spec.embed, dtype, spec.eps, layers=spec.layers) for _ in range(2)
    )
    heads = attention(normal, spec, leaves, **fields)
    blocks = kind(next(norms), heads, next(norms), plain_mlp(normal, spec, dtype))
    values = {}
    if positions is not None:
        values["positions"] = Embedding(normal(positions, spec.embed))
    if head_bias:
        bias = jnp.zeros(spec.vocab, dtype)
        values["unembedding"] = Unembedding(normal(spec.vocab, spec.embed), bias)
    norm = layer_norm(spec.embed, dtype, spec.eps)
    return decoder(normal, spec, blocks, norm, **values)


def rms_decoder(
    spec: Any,
    key: PRNGKeyArray,
    dtype: DTypeLike,
    leaves: dict[str, np.ndarray],
    *,
    embed_scale: float | None = None,
    mlp: Callable[[Normal, Any], AbstractMLP] | None = None,
    **values: Any,
) -> Transformer:
    """Draws a decoder of Llama's blocks: RMSNorm before attention and a gated MLP.

    Args:
        spec: the sizes.
        key: seed of the weights, of standard deviation 0.02.
        dtype: precision of the weights.
        leaves: what follows from the spec: frequencies, windows.
        embed_scale: factor of the embedding.
        mlp: draws the MLP from draws and sizes, a gated one by default.
        **values: other fields of `Attention`.

    Returns:
        The model.
    """
    normal = Normal(key, dtype)
    norms = (
        rms_norm(spec.embed, dtype, spec.eps, layers=spec.layers) for _ in range(2)
    )
    heads = attention(normal, spec, leaves, **values)
    drawn = (mlp or gated_mlp)(normal, spec)
    blocks = Block(next(norms), heads, next(norms), drawn)
    norm = rms_norm(spec.embed, dtype, spec.eps)
    return decoder(normal, spec, blocks, norm, embed_scale=embed_scale)


def sandwich_norms(spec: Any, dtype: DTypeLike) -> list[RMSNorm]:
    """Return the four norms of a `SandwichBlock`."""
    return [rms_norm(spec.embed, dtype, spec.eps, layers=spec.layers) for _ in range(4)]


def attention(
    normal: Normal, spec: Any, leaves: Mapping[str, np.ndarray], **values: Any
) -> Attention:
    """Draws attention with rotary positions.

    Args:
        normal: draws.
        spec: the sizes.
        leaves: what follows from the spec: frequencies, windows.
        **values: other fields of `Attention`.

    Returns:
        Stacked attention.
    """
    n, embed = spec.layers, spec.embed
    heads, kv_heads, head_dim = head_sizes(spec)
    stored = {name: jnp.asarray(leaf) for name, leaf in leaves.items()}
    rotary = None
    if FREQUENCY in stored:
        rotary = Rotary(stored[FREQUENCY], stored.get(SCALE))
    return Attention(
        w_q=normal(n, embed, heads, head_dim),
        w_k=normal(n, embed, kv_heads, head_dim),
        w_v=normal(n, embed, kv_heads, head_dim),
        w_o=normal(n, heads, head_dim, embed),
        rotary=rotary,
        window=stored.get(WINDOW),
        bias=Alibi(stored[SLOPE]) if SLOPE in stored else None,
        **values,
    )


def biases(spec: Any, dtype: DTypeLike, *, out: bool = False) -> dict[str, Any]:
    """Return zero biases of queries, keys, values and, if asked for, of the output."""
    n = spec.layers
    heads, kv_heads, head_dim = head_sizes(spec)
    zeros = {
        "b_q": jnp.zeros((n, heads, head_dim), dtype),
        "b_k": jnp.zeros((n, kv_heads, head_dim), dtype),
        "b_v": jnp.zeros((n, kv_heads, head_dim), dtype),
    }
    return zeros | ({"b_o": jnp.zeros((n, spec.embed), dtype)} if out else {})


def plain_mlp(normal: Normal, spec: Any, dtype: DTypeLike) -> MLP:
    """Draws an MLP with biases."""
    return MLP(
        w_in=normal(spec.layers, spec.embed, spec.mlp),
        w_out=normal(spec.layers, spec.mlp, spec.embed),
        b_in=jnp.zeros((spec.layers, spec.mlp), dtype),
        b_out=jnp.zeros((spec.layers, spec.embed), dtype),
        activation=ACTIVATIONS[spec.activation],
    )


def gated_mlp(normal: Normal, spec: Any) -> GatedMLP:
    """Draws a gated MLP."""
    return GatedMLP(
        w_gate=normal(spec.layers, spec.embed, spec.mlp),
        w_in=normal(spec.layers, spec.embed, spec.mlp),
        w_out=normal(spec.layers, spec.mlp, spec.embed),
        activation=ACTIVATIONS[spec.activation],
    )


def decoder(
    normal: Normal,
    spec: Any,
    blocks: AbstractBlock,
    norm: Any,
    *,
    embed_scale: float | None = None,
    **values: Any,
) -> Transformer:
    """Draws the embedding and, where it is not tied, the unembedding around blocks.

    Args:
        normal: draws.
        spec: the sizes.
        blocks: stacked blocks.
        norm: the final norm.
        embed_scale: factor of the embedding.
        **values: other fields of `Transformer`.

    Returns:
        The model.
    """
    head = None if spec.tied else Unembedding(normal(spec.vocab, spec.embed))
    return Transformer(
        embedding=Embedding(normal(spec.vocab, spec.embed), embed_scale),
        blocks=blocks,
        norm=norm,
        context=spec.context,
        **{"positions": None, "unembedding": head} | values,
    )


def window_leaf(windows: Sequence[int]) -> dict[str, Int[np.ndarray, " layer"]]:
    """Return the windows of all layers as a leaf; none if every layer reads all."""
    if not any(windows):
        return {}
    return {WINDOW: np.array([window or EVERY for window in windows], np.int32)}


def alternating(layers: int, window: int, *, every: int) -> tuple[int, ...]:
    """Return windows in all layers but each `every`-th, which reads all tokens."""
    return tuple(0 if (layer + 1) % every == 0 else window for layer in range(layers))
