"""Sizes of a Llama, and reading them from config.json and GGUF metadata."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from mijax._errors import LoadError
from mijax.io import Gguf, Only, Positive, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import DecoderSpec
from mijax.models._decoder_config import (
    DecoderConfig,
    DecoderFields,
    gguf_sizes,
    read_fields,
    sizes,
)
from mijax.models._rope import read_rope


@dataclasses.dataclass(frozen=True)
class LlamaSpec(DecoderSpec):
    """Sizes of a Llama.

    `rope_factor` above 1 is the `llama3` scaling of long wavelengths, and the other
    three `rope_` fields are its parameters.
    """

    rope_factor: Positive = 1.0
    rope_low: Positive = 1.0
    rope_high: Positive = 4.0
    rope_context: Size = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "is_llama_config", "pretraining_tp"]
    )

    attention_bias: Annotated[bool, Only(False)] = False
    mlp_bias: Annotated[bool, Only(False)] = False
    rope_interleaved: Annotated[bool, Only(False)] = False
    partial_rotary_factor: Annotated[Any, Only(1.0, None)] = None


# Spec field of each parameter of the llama3 scaling.
KINDS = {
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low",
        "high_freq_factor": "rope_high",
        "original_max_position_embeddings": "rope_context",
    }
}


def from_config(config: Mapping[str, Any], path: str) -> LlamaSpec:
    """Read a Hugging Face config, with the keys of transformers 4 or 5."""
    found = read_hub_config(LlamaConfig, config, path)
    rope = read_rope(found, path, KINDS)
    if rope.get("rope_low", 1.0) >= rope.get("rope_high", 4.0):
        raise LoadError(
            f"{path}: low_freq_factor {rope['rope_low']} is not below high_freq_factor "
            f"{rope['rope_high']} in the rope scaling."
        )
    return LlamaSpec(**sizes(found, path), **rope)


def from_gguf(gguf: Gguf) -> LlamaSpec:
    """Read GGUF metadata."""
    found = read_fields(gguf, DecoderFields, "llama")
    return LlamaSpec(**gguf_sizes(gguf, found, "llama"))
