"""Mistral (Jiang et al. 2023, arXiv:2310.06825): a Llama whose queries see a window.

The first 7B has a window of 4096 tokens in every layer, later ones have none. GGUF
files call the architecture `llama`, without the window.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Indices, Only, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import (
    FREQUENCY,
    DecoderSpec,
    rms_decoder,
    window_leaf,
)
from mijax.models._decoder_config import DecoderConfig, sizes
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import NAMES, rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class MistralSpec(DecoderSpec):
    """Sizes of a Mistral; `windows` has a number of tokens for each layer, 0 for all.

    Without windows every layer reads all tokens.
    """

    windows: Indices = ()


def init(spec: MistralSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(spec, key, dtype, computed(spec))


def computed(spec: Any) -> dict[str, np.ndarray]:
    """Rotary frequencies and windows of every layer."""
    frequency = frequencies(spec.rope_theta, spec.head_dim).astype(np.float32)
    rotary = {FREQUENCY: np.tile(frequency, (spec.layers, 1))}
    return rotary | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(["attention_dropout"])

    attention_bias: Annotated[bool, Only(False)] = False
    sliding_window: Size | None = None


def from_config(config: Mapping[str, Any], path: str) -> MistralSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(MistralConfig, config, path)
    window = found.sliding_window
    return MistralSpec(
        **sizes(found, path),
        **read_rope(found, path, {}),
        windows=() if window is None else (window,) * found.num_hidden_layers,
    )


def table(spec: MistralSpec) -> Table:
    """Names in Hugging Face files."""
    return Table(
        rules=rules(spec, NAMES),
        ignored=(r".*rotary_emb\.inv_freq",),
        same=tied_head(spec, NAMES),
    )


PRESETS = {
    "mistral-7b-v0.1": Preset(
        MistralSpec(
            layers=32,
            embed=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            mlp=14336,
            vocab=32000,
            context=32768,
            tied=False,
            windows=(4096,) * 32,
        ),
        "mistralai/Mistral-7B-v0.1",
    ),
    "mistral-7b-v0.3": Preset(
        MistralSpec(
            layers=32,
            embed=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            mlp=14336,
            vocab=32768,
            context=32768,
            rope_theta=1000000.0,
            tied=False,
        ),
        "mistralai/Mistral-7B-v0.3",
    ),
}
MISTRAL = Family(
    name="mistral",
    spec=MistralSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
