"""SmolLM3 (Bakouch et al. 2025): a Llama without rotation in every fourth layer."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, Index, Indices, NonNegative, Only, Positive, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import FREQUENCY, DecoderSpec, alternating, rms_decoder
from mijax.models._decoder_config import (
    FULL,
    DecoderConfig,
    DecoderFields,
    gguf_sizes,
    read_fields,
    sizes,
)
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import GGUF_NAMES, NAMES, halves, rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class SmolLM3Spec(DecoderSpec):
    """Sizes of a SmolLM3; `rotates` has 1 for each layer that rotates and 0 for others.

    Without them every layer rotates.
    """

    rope_theta: Positive = 2000000.0
    eps: NonNegative = 1e-6
    rotates: Indices = ()


def init(spec: SmolLM3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(spec, key, dtype, computed(spec))


def computed(spec: SmolLM3Spec) -> dict[str, np.ndarray]:
    """Rotary frequencies of every layer, 0 where a layer does not rotate."""
    frequency = frequencies(spec.rope_theta, spec.head_dim)
    rotates = np.array(spec.rotates or (1,) * spec.layers)
    return {FREQUENCY: (rotates[:, None] * frequency).astype(np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmolLM3Config(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "max_window_layers", "pretraining_tp"]
    )

    attention_bias: Annotated[bool, Only(False)] = False
    mlp_bias: Annotated[bool, Only(False)] = False
    tie_word_embeddings: bool = True
    layer_types: list[Annotated[str, Only(FULL)]] | None = None
    no_rope_layers: list[Index] | None = None
    no_rope_layer_interval: Size = 4


def from_config(config: Mapping[str, Any], path: str) -> SmolLM3Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(SmolLM3Config, config, path)
    regular = alternating(
        found.num_hidden_layers, 1, every=found.no_rope_layer_interval
    )
    return SmolLM3Spec(
        **sizes(found, path),
        **read_rope(found, path, {}, theta=2000000.0),
        rotates=tuple(found.no_rope_layers or regular),
    )


def table(spec: SmolLM3Spec) -> Table:
    """Names in Hugging Face files."""
    return Table(rules=rules(spec, NAMES), same=tied_head(spec, NAMES))


def from_gguf(gguf: Gguf) -> SmolLM3Spec:
    """Reads GGUF metadata; which layers rotate is not in it."""
    found = read_fields(gguf, DecoderFields, "smollm3")
    rotates = alternating(found.layers, 1, every=4)
    return SmolLM3Spec(**gguf_sizes(gguf, found, "smollm3"), rotates=rotates)


def gguf_table(spec: SmolLM3Spec) -> Table:
    """Names in GGUF files, where the rotation turns neighbors."""
    return Table(rules=rules(spec, GGUF_NAMES, order=halves))


PRESETS = {
    "smollm3-3b-base": Preset(
        SmolLM3Spec(
            layers=36,
            embed=2048,
            heads=16,
            kv_heads=4,
            head_dim=128,
            mlp=11008,
            vocab=128256,
            context=65536,
            rope_theta=5000000.0,
            rotates=alternating(36, 1, every=4),
        ),
        "HuggingFaceTB/SmolLM3-3B-Base",
    ),
}
SMOLLM3 = Family(
    name="smollm3",
    spec=SmolLM3Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="smollm3",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
