"""Attention-only transformers (Elhage et al. 2021, "A Mathematical Framework").

Learned positions, no MLPs, no biases in attention, a norm or none.
"""

import dataclasses

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import NonNegative, Size
from mijax.models._family import Family, Preset
from mijax.models._init import Normal, layer_norm
from mijax.nn import (
    Attention,
    AttentionBlock,
    Embedding,
    Identity,
    Transformer,
    Unembedding,
)


@dataclasses.dataclass(frozen=True)
class AttentionOnlySpec:
    """Sizes of an attention-only transformer; `norm` is LayerNorm or nothing."""

    layers: Size = 2
    embed: Size = 512
    heads: Size = 8
    head_dim: Size = 64
    vocab: Size = 50257
    context: Size = 1024
    norm: bool = True
    eps: NonNegative = 1e-5


def init(spec: AttentionOnlySpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights that keep the size of what they read."""
    normal = Normal(key, dtype)
    n, embed, heads, head_dim = spec.layers, spec.embed, spec.heads, spec.head_dim
    reads, writes = embed**-0.5, (2 * n * heads * head_dim) ** -0.5
    attention = Attention(
        w_q=normal(n, embed, heads, head_dim, scale=reads),
        w_k=normal(n, embed, heads, head_dim, scale=reads),
        w_v=normal(n, embed, heads, head_dim, scale=reads),
        w_o=normal(n, heads, head_dim, embed, scale=writes),
    )
    fresh = lambda layers: (  # noqa: E731
        layer_norm(embed, dtype, spec.eps, layers=layers) if spec.norm else Identity()
    )
    return Transformer(
        embedding=Embedding(normal(spec.vocab, embed, scale=reads)),
        positions=Embedding(normal(spec.context, embed, scale=reads)),
        blocks=AttentionBlock(fresh(n), attention),
        norm=fresh(None),
        unembedding=Unembedding(normal(spec.vocab, embed, scale=reads)),
        context=spec.context,
    )


ATTENTION_ONLY = Family(
    name="attention_only",
    spec=AttentionOnlySpec,
    init=init,
    presets={
        f"attn-only-{n}l": Preset(AttentionOnlySpec(layers=n)) for n in (1, 2, 3, 4)
    },
)
