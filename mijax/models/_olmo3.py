"""OLMo 3 (OLMo team 2025, arXiv:2512.13961): an OLMo 2 with windows and YaRN.

Every fourth layer reads all tokens, the others a window. Layers that read all tokens
stretch their rotation (YaRN).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Indices, NonNegative, Positive, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import (
    FREQUENCY,
    SCALE,
    DecoderSpec,
    alternating,
    window_leaf,
)
from mijax.models._decoder_config import sizes, windows
from mijax.models._family import Family, Preset
from mijax.models._olmo2 import Olmo2Config, post_norm_decoder, table
from mijax.models._rope import by_layer_type, frequencies, read_rope, yarn
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class Olmo3Spec(DecoderSpec):
    """Sizes of an OLMo 3.

    `windows` has a number of tokens for each layer, 0 for all. `rope_factor` above 1
    is the YaRN scaling of layers that read all tokens: `rope_context` tokens before it,
    kept above `rope_fast` turns, stretched below `rope_slow`, and `rope_gain` is the
    factor of rotated queries and keys.
    """

    rope_theta: Positive = 500000.0
    eps: NonNegative = 1e-6
    tied: bool = False
    windows: Indices = ()
    rope_factor: Positive = 1.0
    rope_context: Size = 8192
    rope_fast: Positive = 32.0
    rope_slow: Positive = 1.0
    rope_gain: Positive = 1.0


def init(spec: Olmo3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return post_norm_decoder(spec, key, dtype, computed(spec))


def computed(spec: Olmo3Spec) -> dict[str, np.ndarray]:
    """Rotary frequencies, factors and windows of every layer."""
    local = frequencies(spec.rope_theta, spec.head_dim)
    full = yarn(
        spec.rope_theta,
        spec.head_dim,
        factor=spec.rope_factor,
        context=spec.rope_context,
        fast=spec.rope_fast,
        slow=spec.rope_slow,
    )
    seen = np.array(spec.windows or (0,) * spec.layers)[:, None]
    frequency = np.where(seen > 0, local, full).astype(np.float32)
    gain = np.where(seen[:, 0] > 0, 1.0, spec.rope_gain).astype(np.float32)
    return {FREQUENCY: frequency, SCALE: gain} | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmo3Config(Olmo2Config):
    """Keys of config.json, of transformers 4 or 5."""

    sliding_window: Size | None = 4096
    layer_types: list[str] | None = None


KINDS = {
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_context",
        "beta_fast": "rope_fast",
        "beta_slow": "rope_slow",
        "attention_factor": "rope_gain",
    }
}


def from_config(config: Mapping[str, Any], path: str) -> Olmo3Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Olmo3Config, config, path)
    local = alternating(found.num_hidden_layers, 1, every=4)
    full, near = by_layer_type(found, path, local=found.rope_theta)
    rope = read_rope(full, path, KINDS, theta=500000.0)
    theta = read_rope(near, path, {}, theta=500000.0)["rope_theta"]
    if theta != rope["rope_theta"]:
        raise LoadError(
            f"{path}: layers with a window have rope_theta {theta}, the others "
            f"{rope['rope_theta']}; only one for all is supported."
        )
    return Olmo3Spec(
        **sizes(found, path),
        **rope,
        windows=windows(
            found.layer_types, found.sliding_window, [*map(bool, local)], path
        ),
    )


PRESETS = {
    "olmo-3-7b": Preset(
        Olmo3Spec(
            layers=32,
            embed=4096,
            heads=32,
            kv_heads=32,
            head_dim=128,
            mlp=11008,
            vocab=100278,
            context=65536,
            windows=alternating(32, 4096, every=4),
            rope_factor=8.0,
            rope_gain=1.2079441541679836,
        ),
        "allenai/Olmo-3-1025-7B",
    ),
}
OLMO3 = Family(
    name="olmo3",
    spec=Olmo3Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
