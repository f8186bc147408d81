"""Sizes of a Llama, and reading them from config.json and GGUF metadata."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from mijax._errors import LoadError
from mijax.io import Gguf, Key, NonNegative, Only, Positive, Size, read_record
from mijax.models._config import Activation, HubConfig, divide, read_hub_config
from mijax.models._family import short


@dataclasses.dataclass(frozen=True)
class LlamaSpec:
    """Sizes of a Llama.

    `rope_factor` above 1 is the `llama3` scaling of long wavelengths, and the other
    three `rope_` fields are its parameters.
    """

    layers: Size
    embed: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    mlp: Size
    vocab: Size
    context: Size
    rope_theta: Positive = 10000.0
    rope_factor: Positive = 1.0
    rope_low: Positive = 1.0
    rope_high: Positive = 4.0
    rope_context: Size = 8192
    eps: NonNegative = 1e-5
    activation: Activation = "silu"
    tied: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "is_llama_config", "pretraining_tp"]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    rms_norm_eps: NonNegative
    hidden_act: Activation = "silu"
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: Annotated[bool, Only(False)] = False
    mlp_bias: Annotated[bool, Only(False)] = False
    rope_interleaved: Annotated[bool, Only(False)] = False
    partial_rotary_factor: Annotated[Any, Only(1.0, None)] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Keys of `rope_scaling` or `rope_parameters`."""

    rope_theta: Positive | None = None
    rope_type: str | None = None
    type: str | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Size | None = None


# Spec field of each parameter of the llama3 scaling.
LLAMA3 = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low",
    "high_freq_factor": "rope_high",
    "original_max_position_embeddings": "rope_context",
}


def from_config(config: Mapping[str, Any], path: str) -> LlamaSpec:
    """Read a Hugging Face config, with the keys of transformers 4 or 5."""
    found = read_hub_config(LlamaConfig, config, path)
    embed, heads = found.hidden_size, found.num_attention_heads
    return LlamaSpec(
        layers=found.num_hidden_layers,
        embed=embed,
        heads=heads,
        kv_heads=found.num_key_value_heads or heads,
        head_dim=found.head_dim or divide(embed, heads, path),
        mlp=found.intermediate_size,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        eps=found.rms_norm_eps,
        activation=found.hidden_act,
        tied=found.tie_word_embeddings,
        **rope(found, path),
    )


def rope(config: LlamaConfig, path: str) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling`, or `rope_parameters`."""
    both = [
        read_record(RopeConfig, content or {}, f"{path}: {name}")
        for name, content in (
            ("rope_parameters", config.rope_parameters),
            ("rope_scaling", config.rope_scaling),
        )
    ]
    thetas = [*(one.rope_theta for one in both), config.rope_theta]
    theta = agreed(thetas, "rope_theta", path) or 10000.0
    ropes = []
    for one in both:
        # Configs of 2024 spell the kind twice.
        kind = agreed([one.rope_type, one.type], "rope_type/type", path)
        found = {field: getattr(one, name) for name, field in LLAMA3.items()}
        given = {"kind": kind} | {k: v for k, v in found.items() if v is not None}
        ropes.append(given if any(v is not None for v in given.values()) else {})
    rope = agreed(ropes, "rope_parameters and rope_scaling", path) or {}
    kind = rope.pop("kind", None)
    spec = {"rope_theta": float(theta)}
    if kind in (None, "default") and not rope:
        return spec
    if kind != "llama3":
        kind = "missing" if kind is None else kind
        raise LoadError(
            f"{path}: rope scaling of type {kind} with {rope} is not supported, only "
            "'default' and 'llama3'."
        )
    for name, field in LLAMA3.items():
        if field not in rope:
            raise LoadError(f"{path}: the rope scaling has no key '{name}'. Add it.")
    if rope["rope_low"] >= rope["rope_high"]:
        raise LoadError(
            f"{path}: low_freq_factor {rope['rope_low']} is not below high_freq_factor "
            f"{rope['rope_high']} in the rope scaling."
        )
    return spec | rope


def agreed(values: Sequence[Any], name: str, path: str) -> Any:
    """Return the value that a config gives once or more, `None` if it gives none."""
    given = [value for value in values if value]
    for value in given:
        if value != given[0]:
            raise LoadError(
                f"{path}: {name} is given twice, as {given[0]} and as {value}: leave "
                "out the wrong one."
            )
    return given[0] if given else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaFields:
    """Keys of GGUF metadata."""

    layers: Annotated[Size, Key("llama.block_count")]
    embed: Annotated[Size, Key("llama.embedding_length")]
    heads: Annotated[Size, Key("llama.attention.head_count")]
    kv_heads: Annotated[Size | None, Key("llama.attention.head_count_kv")] = None
    key_length: Annotated[Size | None, Key("llama.attention.key_length")] = None
    value_length: Annotated[Size | None, Key("llama.attention.value_length")] = None
    rotated: Annotated[Size | None, Key("llama.rope.dimension_count")] = None
    mlp: Annotated[Size, Key("llama.feed_forward_length")]
    context: Annotated[Size, Key("llama.context_length")]
    theta: Annotated[Positive, Key("llama.rope.freq_base")] = 10000.0
    eps: Annotated[NonNegative, Key("llama.attention.layer_norm_rms_epsilon")]
    vocab: Annotated[Size | None, Key("llama.vocab_size")] = None


def from_gguf(gguf: Gguf) -> LlamaSpec:
    """Read GGUF metadata."""
    path = str(gguf.path)
    found = gguf.record(LlamaFields, "llama.")
    head_dim = found.key_length or divide(found.embed, found.heads, path)
    for name, size in (
        ("rope.dimension_count", found.rotated),
        ("attention.value_length", found.value_length),
    ):
        if (size or head_dim) != head_dim:
            raise LoadError(
                f"{path}: 'llama.{name}' is {size}, only {head_dim}, the size of a "
                "head, is supported."
            )
    return LlamaSpec(
        layers=found.layers,
        embed=found.embed,
        heads=found.heads,
        kv_heads=found.kv_heads or found.heads,
        head_dim=head_dim,
        mlp=found.mlp,
        vocab=found.vocab or gguf.shapes.get("token_embd.weight", (0,))[0],
        context=found.context,
        rope_theta=float(found.theta),
        eps=short(found.eps),
        tied="output.weight" not in gguf.shapes,
    )
