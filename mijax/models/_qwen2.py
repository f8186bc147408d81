"""Qwen2 and Qwen2.5 (Qwen team 2024, arXiv:2412.15115).

Queries, keys and values have biases, the output of attention has none. Texts begin
without a special token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, Index, Indices, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import (
    FREQUENCY,
    DecoderSpec,
    biases,
    rms_decoder,
    window_leaf,
)
from mijax.models._decoder_config import (
    DecoderConfig,
    DecoderFields,
    gguf_sizes,
    read_fields,
    sizes,
    windows,
)
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import GGUF_NAMES, LAYER, NAMES, rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class Qwen2Spec(DecoderSpec):
    """Sizes of a Qwen2; `windows` has a number of tokens for each layer, 0 for all.

    Without windows every layer reads all tokens.
    """

    windows: Indices = ()


def init(spec: Qwen2Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(spec, key, dtype, computed(spec), **biases(spec, dtype))


def computed(spec: Any) -> dict[str, np.ndarray]:
    """Rotary frequencies and windows of every layer."""
    frequency = frequencies(spec.rope_theta, spec.head_dim).astype(np.float32)
    rotary = {FREQUENCY: np.tile(frequency, (spec.layers, 1))}
    return rotary | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(["attention_dropout", "use_mrope"])

    sliding_window: Size | None = None
    use_sliding_window: bool = False
    max_window_layers: Index = 28
    layer_types: list[str] | None = None


def qwen_windows(found: Any, path: str) -> tuple[int, ...]:
    """Return the windows of the layers from `max_window_layers` on."""
    window = found.sliding_window if found.use_sliding_window else None
    late = [
        layer >= found.max_window_layers for layer in range(found.num_hidden_layers)
    ]
    default = late if window is not None else [False] * len(late)
    return windows(found.layer_types, window, default, path)


def from_config(config: Mapping[str, Any], path: str) -> Qwen2Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Qwen2Config, config, path)
    return Qwen2Spec(
        **sizes(found, path),
        **read_rope(found, path, {}),
        windows=qwen_windows(found, path),
    )


BIASES = {f"blocks.attention.b_{x}": f"{LAYER}self_attn.{x}_proj.bias" for x in "qkv"}
GGUF_BIASES = {f"blocks.attention.b_{x}": f"blk.{{layer}}.attn_{x}.bias" for x in "qkv"}


def table(spec: Qwen2Spec) -> Table:
    """Names in Hugging Face files."""
    return Table(rules=rules(spec, NAMES | BIASES), same=tied_head(spec, NAMES))


def from_gguf(gguf: Gguf) -> Qwen2Spec:
    """Reads GGUF metadata."""
    found = read_fields(gguf, DecoderFields, "qwen2")
    return Qwen2Spec(**gguf_sizes(gguf, found, "qwen2"))


def gguf_table(spec: Qwen2Spec) -> Table:
    """Names in GGUF files."""
    return Table(rules=rules(spec, GGUF_NAMES | GGUF_BIASES))


def qwen2(layers: int, embed: int, heads: int, kv_heads: int, mlp: int) -> Qwen2Spec:
    """A Qwen2.5; the largest have another vocabulary and do not tie embeddings."""
    large = embed >= 3584
    return Qwen2Spec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=embed // heads,
        mlp=mlp,
        vocab=152064 if large else 151936,
        context=131072 if large else 32768,
        rope_theta=1000000.0,
        eps=1e-6,
        tied=not large,
    )


PRESETS = {
    "qwen2.5-0.5b": Preset(qwen2(24, 896, 14, 2, 4864), "Qwen/Qwen2.5-0.5B"),
    "qwen2.5-1.5b": Preset(qwen2(28, 1536, 12, 2, 8960), "Qwen/Qwen2.5-1.5B"),
    "qwen2.5-3b": Preset(qwen2(36, 2048, 16, 2, 11008), "Qwen/Qwen2.5-3B"),
    "qwen2.5-7b": Preset(qwen2(28, 3584, 28, 4, 18944), "Qwen/Qwen2.5-7B"),
}
QWEN2 = Family(
    name="qwen2",
    spec=Qwen2Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="qwen2",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
