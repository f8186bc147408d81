"""Granite 3 (IBM 2024): a Llama with factors of embedding, scores, writes and logits.

The factor of what attention and MLP write is part of their output weights here, and the
divisor of the logits part of the final norm: the sites `attn_out` and `mlp_out` are
what is added to the residual stream, and `resid_final` is what the unembedding reads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, Key, NonNegative, Only, Positive
from mijax.models._config import read_hub_config
from mijax.models._decoder import FREQUENCY, DecoderSpec, rms_decoder
from mijax.models._decoder_config import (
    DecoderConfig,
    DecoderFields,
    gguf_sizes,
    read_fields,
    sizes,
)
from mijax.models._family import Family, Rule, Table, short
from mijax.models._leaves import GGUF_NAMES, NAMES, halves, rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class GraniteSpec(DecoderSpec):
    """Sizes of a Granite.

    `residual_scale` and `logit_divisor` say what loading multiplies into weights.
    """

    eps: NonNegative = 1e-5
    embed_scale: Positive = 1.0
    score_scale: Positive = 1.0
    residual_scale: Positive = 1.0
    logit_divisor: Positive = 1.0


def init(spec: GraniteSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(
        spec,
        key,
        dtype,
        computed(spec),
        embed_scale=spec.embed_scale,
        scale=spec.score_scale,
    )


def computed(spec: GraniteSpec) -> dict[str, np.ndarray]:
    """Rotary frequencies of every layer."""
    frequency = frequencies(spec.rope_theta, spec.head_dim).astype(np.float32)
    return {FREQUENCY: np.tile(frequency, (spec.layers, 1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteConfig(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(["attention_dropout"])

    attention_bias: Annotated[bool, Only(False)] = False
    mlp_bias: Annotated[bool, Only(False)] = False
    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0


def from_config(config: Mapping[str, Any], path: str) -> GraniteSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(GraniteConfig, config, path)
    return GraniteSpec(
        **sizes(found, path),
        **read_rope(found, path, {}),
        embed_scale=float(found.embedding_multiplier),
        score_scale=float(found.attention_multiplier),
        residual_scale=float(found.residual_multiplier),
        logit_divisor=float(found.logits_scaling),
    )


def table(spec: GraniteSpec) -> Table:
    """Names in Hugging Face files."""
    return Table(rules=scaled_rules(spec, NAMES), same=tied_head(spec, NAMES))


def scaled_rules(
    spec: GraniteSpec, names: Mapping[str, str], **options: Any
) -> tuple[Rule, ...]:
    """Return the rules, with the factors of writes and logits."""
    rest = {leaf: name for leaf, name in names.items() if leaf != "norm.weight"}
    gain = {"norm.weight": lambda x: x / spec.logit_divisor}
    norm = Rule(names["norm.weight"], (spec.embed,), gain)
    return (norm, *rules(spec, rest, written=spec.residual_scale, **options))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteFields(DecoderFields):
    """Keys of GGUF metadata."""

    embed_scale: Annotated[Positive, Key("embedding_scale")] = 1.0
    score_scale: Annotated[Positive, Key("attention.scale")] = 1.0
    residual_scale: Annotated[Positive, Key("residual_scale")] = 1.0
    logit_divisor: Annotated[Positive, Key("logit_scale")] = 1.0


def from_gguf(gguf: Gguf) -> GraniteSpec:
    """Reads GGUF metadata."""
    found = read_fields(gguf, GraniteFields, "granite")
    return GraniteSpec(
        **gguf_sizes(gguf, found, "granite"),
        embed_scale=short(found.embed_scale),
        score_scale=short(found.score_scale),
        residual_scale=short(found.residual_scale),
        logit_divisor=short(found.logit_divisor),
    )


def gguf_table(spec: GraniteSpec) -> Table:
    """Names in GGUF files, where the rotation turns neighbors."""
    return Table(rules=scaled_rules(spec, GGUF_NAMES, order=halves))


GRANITE = Family(
    name="granite",
    spec=GraniteSpec,
    init=init,
    presets={},
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="granite",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
