"""Gemma (Gemma team 2024, arXiv:2403.08295): a scaled embedding, GELU, wide heads.

The embedding is multiplied by the square root of its width. Files hold the weight of a
norm as its distance from 1 (GGUF files hold the weight).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, NonNegative, Only
from mijax.models._config import Activation, read_hub_config
from mijax.models._decoder import FREQUENCY, DecoderSpec, rms_decoder
from mijax.models._decoder_config import (
    DecoderConfig,
    DecoderFields,
    gguf_sizes,
    read_fields,
    sizes,
)
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import GGUF_NAMES, NAMES, one_plus, rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Transformer

GELU = "gelu_pytorch_tanh"


@dataclasses.dataclass(frozen=True)
class GemmaSpec(DecoderSpec):
    """Sizes of a Gemma."""

    eps: NonNegative = 1e-6
    activation: Activation = GELU


def init(spec: GemmaSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    scale = spec.embed**0.5
    return rms_decoder(spec, key, dtype, computed(spec), embed_scale=scale)


def computed(spec: GemmaSpec) -> dict[str, np.ndarray]:
    """Rotary frequencies of every layer."""
    frequency = frequencies(spec.rope_theta, spec.head_dim).astype(np.float32)
    return {FREQUENCY: np.tile(frequency, (spec.layers, 1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaConfig(DecoderConfig):
    """Keys of config.json; the activation has two names, and both mean one."""

    ignored: ClassVar[frozenset[str]] = frozenset(["attention_dropout"])

    hidden_act: Annotated[str, Only("gelu", GELU)] = GELU
    hidden_activation: Annotated[str | None, Only(GELU, None)] = None
    attention_bias: Annotated[bool, Only(False)] = False
    tie_word_embeddings: bool = True
    use_bidirectional_attention: Annotated[Any, Only(False, None)] = None


def from_config(config: Mapping[str, Any], path: str) -> GemmaSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(GemmaConfig, config, path)
    given = sizes(found, path) | {"activation": GELU}
    return GemmaSpec(**given, **read_rope(found, path, {}))


def table(spec: GemmaSpec) -> Table:
    """Names in Hugging Face files."""
    return Table(rules=rules(spec, NAMES, gain=one_plus), same=tied_head(spec, NAMES))


def from_gguf(gguf: Gguf) -> GemmaSpec:
    """Reads GGUF metadata."""
    found = read_fields(gguf, DecoderFields, "gemma")
    return GemmaSpec(**gguf_sizes(gguf, found, "gemma"))


def gguf_table(spec: GemmaSpec) -> Table:
    """Names in GGUF files."""
    return Table(rules=rules(spec, GGUF_NAMES))


def gemma(layers: int, embed: int, heads: int, kv_heads: int, mlp: int) -> GemmaSpec:
    """A Gemma."""
    return GemmaSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=256,
        mlp=mlp,
        vocab=256000,
        context=8192,
    )


PRESETS = {
    "gemma-2b": Preset(gemma(18, 2048, 8, 1, 16384), "google/gemma-2b"),
    "gemma-7b": Preset(gemma(28, 3072, 16, 16, 24576), "google/gemma-7b"),
}
GEMMA = Family(
    name="gemma",
    spec=GemmaSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="gemma",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
