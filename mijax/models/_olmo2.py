"""OLMo 2 (OLMo team 2024, arXiv:2501.00656): norms after attention and MLP only.

Queries are normalized over all heads together, and so are keys.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, NonNegative, Only, Positive
from mijax.models._config import read_hub_config
from mijax.models._decoder import (
    FREQUENCY,
    DecoderSpec,
    attention,
    decoder,
    gated_mlp,
    sandwich_norms,
)
from mijax.models._decoder_config import (
    DecoderConfig,
    DecoderFields,
    gguf_sizes,
    read_fields,
    sizes,
)
from mijax.models._family import Family, Preset, Table
from mijax.models._init import Normal, rms_norm
from mijax.models._leaves import (
    GGUF_SANDWICH,
    LAYER,
    SANDWICH,
    rules,
    tied_head,
)
from mijax.models._rope import frequencies, read_rope
from mijax.nn import AcrossHeads, Identity, SandwichBlock, Transformer


@dataclasses.dataclass(frozen=True)
class Olmo2Spec(DecoderSpec):
    """Sizes of an OLMo 2."""

    rope_theta: Positive = 500000.0
    eps: NonNegative = 1e-6
    tied: bool = False


def init(spec: Olmo2Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return post_norm_decoder(spec, key, dtype, computed(spec))


def post_norm_decoder(
    spec: Any, key: PRNGKeyArray, dtype: DTypeLike, leaves: dict[str, np.ndarray]
) -> Transformer:
    """Draws a decoder with norms after attention and MLP, and of queries and keys."""
    normal = Normal(key, dtype)
    _, norm_2, _, norm_4 = sandwich_norms(spec, dtype)
    heads = attention(normal, spec, leaves, **whole_norms(spec, dtype))
    mlp = gated_mlp(normal, spec)
    blocks = SandwichBlock(Identity(), heads, norm_2, Identity(), mlp, norm_4)
    return decoder(normal, spec, blocks, rms_norm(spec.embed, dtype, spec.eps))


def whole_norms(spec: Any, dtype: DTypeLike) -> dict[str, Any]:
    """Return the norms of queries and of keys, over all heads together."""
    q_norm, k_norm = (
        AcrossHeads(
            rms_norm(count * spec.head_dim, dtype, spec.eps, layers=spec.layers), count
        )
        for count in (spec.heads, spec.kv_heads)
    )
    return {"q_norm": q_norm, "k_norm": k_norm}


def computed(spec: Any) -> dict[str, np.ndarray]:
    """Rotary frequencies of every layer."""
    frequency = frequencies(spec.rope_theta, spec.head_dim).astype(np.float32)
    return {FREQUENCY: np.tile(frequency, (spec.layers, 1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmo2Config(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(["attention_dropout"])

    rms_norm_eps: NonNegative = 1e-5
    attention_bias: Annotated[bool, Only(False)] = False


def from_config(config: Mapping[str, Any], path: str) -> Olmo2Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Olmo2Config, config, path)
    return Olmo2Spec(**sizes(found, path), **read_rope(found, path, {}, theta=500000.0))


READS = ("blocks.norm_1.weight", "blocks.norm_3.weight")
WHOLE_NORMS = {
    f"blocks.attention.{x}_norm.norm.weight": f"{LAYER}self_attn.{x}_norm.weight"
    for x in "qk"
}
GGUF_WHOLE_NORMS = {
    f"blocks.attention.{x}_norm.norm.weight": f"blk.{{layer}}.attn_{x}_norm.weight"
    for x in "qk"
}


def without_reads(names: Mapping[str, str]) -> dict[str, str]:
    """Leave out the norms that attention and MLP would read."""
    return {leaf: name for leaf, name in names.items() if leaf not in READS}


def table(spec: Any) -> Table:
    """Names in Hugging Face files."""
    names = without_reads(SANDWICH) | WHOLE_NORMS
    return Table(rules=rules(spec, names), same=tied_head(spec, names))


def from_gguf(gguf: Gguf) -> Olmo2Spec:
    """Reads GGUF metadata."""
    found = read_fields(gguf, DecoderFields, "olmo2")
    return Olmo2Spec(**gguf_sizes(gguf, found, "olmo2"))


def gguf_table(spec: Olmo2Spec) -> Table:
    """Names in GGUF files."""
    return Table(rules=rules(spec, without_reads(GGUF_SANDWICH) | GGUF_WHOLE_NORMS))


def olmo2(layers: int, embed: int, heads: int, mlp: int) -> Olmo2Spec:
    """An OLMo 2."""
    return Olmo2Spec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        head_dim=embed // heads,
        mlp=mlp,
        vocab=100352,
        context=4096,
    )


PRESETS = {
    "olmo-2-1b": Preset(olmo2(16, 2048, 16, 8192), "allenai/OLMo-2-0425-1B"),
    "olmo-2-7b": Preset(olmo2(32, 4096, 32, 11008), "allenai/OLMo-2-1124-7B"),
}
OLMO2 = Family(
    name="olmo2",
    spec=Olmo2Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="olmo2",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
