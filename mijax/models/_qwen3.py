"""Qwen3 (Qwen team 2025, arXiv:2505.09388): a norm of every query and key head."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, Indices, Only
from mijax.models._config import read_hub_config
from mijax.models._decoder import DecoderSpec, rms_decoder
from mijax.models._decoder_config import DecoderFields, gguf_sizes, read_fields, sizes
from mijax.models._family import Family, Preset, Table
from mijax.models._init import rms_norm
from mijax.models._leaves import (
    GGUF_HEAD_NORMS,
    GGUF_NAMES,
    HEAD_NORMS,
    NAMES,
    rules,
    tied_head,
)
from mijax.models._qwen2 import Qwen2Config, computed, qwen_windows
from mijax.models._rope import read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class Qwen3Spec(DecoderSpec):
    """Sizes of a Qwen3; `windows` has a number of tokens for each layer, 0 for all.

    Without windows every layer reads all tokens.
    """

    windows: Indices = ()


def init(spec: Qwen3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    norm = rms_norm(spec.head_dim, dtype, spec.eps, layers=spec.layers)
    return rms_decoder(spec, key, dtype, computed(spec), q_norm=norm, k_norm=norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """Keys of config.json, of transformers 4 or 5."""

    attention_bias: Annotated[bool, Only(False)] = False


def from_config(config: Mapping[str, Any], path: str) -> Qwen3Spec:
    """Reads a Hugging Face config; a head has 128 features unless it says otherwise."""
    found = read_hub_config(Qwen3Config, {"head_dim": 128} | dict(config), path)
    return Qwen3Spec(
        **sizes(found, path),
        **read_rope(found, path, {}),
        windows=qwen_windows(found, path),
    )


def table(spec: Qwen3Spec) -> Table:
    """Names in Hugging Face files."""
    return Table(rules=rules(spec, NAMES | HEAD_NORMS), same=tied_head(spec, NAMES))


def from_gguf(gguf: Gguf) -> Qwen3Spec:
    """Reads GGUF metadata."""
    found = read_fields(gguf, DecoderFields, "qwen3")
    return Qwen3Spec(**gguf_sizes(gguf, found, "qwen3"))


def gguf_table(spec: Qwen3Spec) -> Table:
    """Names in GGUF files."""
    return Table(rules=rules(spec, GGUF_NAMES | GGUF_HEAD_NORMS))


def qwen3(layers: int, embed: int, heads: int, mlp: int) -> Qwen3Spec:
    """A dense Qwen3 as it was pretrained."""
    return Qwen3Spec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        mlp=mlp,
        vocab=151936,
        context=32768,
        rope_theta=1000000.0,
        eps=1e-6,
        tied=embed < 4096,
    )


PRESETS = {
    "qwen3-0.6b-base": Preset(qwen3(28, 1024, 16, 3072), "Qwen/Qwen3-0.6B-Base"),
    "qwen3-1.7b-base": Preset(qwen3(28, 2048, 16, 6144), "Qwen/Qwen3-1.7B-Base"),
    "qwen3-4b-base": Preset(qwen3(36, 2560, 32, 9728), "Qwen/Qwen3-4B-Base"),
    "qwen3-8b-base": Preset(qwen3(36, 4096, 32, 12288), "Qwen/Qwen3-8B-Base"),
}
QWEN3 = Family(
    name="qwen3",
    spec=Qwen3Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="qwen3",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
