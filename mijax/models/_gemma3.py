"""Gemma 3, the text model (Gemma team 2025, arXiv:2503.19786).

Every sixth layer reads all tokens, the others a window. Both kinds have a rotation of
their own. Queries and keys are normalized, and so is what attention and MLP write.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, Indices, Key, NonNegative, Only, Positive, Size
from mijax.models._config import Activation, read_hub_config
from mijax.models._decoder import (
    FREQUENCY,
    DecoderSpec,
    alternating,
    attention,
    decoder,
    gated_mlp,
    sandwich_norms,
    window_leaf,
)
from mijax.models._decoder_config import (
    DecoderConfig,
    WindowFields,
    gguf_sizes,
    read_fields,
    sizes,
    windows,
)
from mijax.models._family import Family, Preset, Table
from mijax.models._gemma import GELU
from mijax.models._init import Normal, rms_norm
from mijax.models._leaves import (
    GGUF_HEAD_NORMS,
    GGUF_SANDWICH,
    HEAD_NORMS,
    SANDWICH,
    one_plus,
    rules,
    tied_head,
)
from mijax.models._rope import by_layer_type, frequencies, read_rope
from mijax.nn import SandwichBlock, Transformer

# Number of layers of the model whose scores llama.cpp scales by the width per head.
LARGEST = 62


@dataclasses.dataclass(frozen=True)
class Gemma3Spec(DecoderSpec):
    """Sizes of a Gemma 3.

    `windows` has a number of tokens for each layer, 0 for all. Layers that read all
    tokens rotate with base `rope_theta` and positions divided by `rope_factor`, layers
    with a window with base `rope_local`. Scores are divided by the square root of
    `query_scale`.
    """

    rope_theta: Positive = 1000000.0
    eps: NonNegative = 1e-6
    activation: Activation = GELU
    rope_factor: Positive = 1.0
    rope_local: Positive = 10000.0
    query_scale: Positive = 256.0
    windows: Indices = ()


def init(spec: Gemma3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    normal = Normal(key, dtype)
    norm_1, norm_2, norm_3, norm_4 = sandwich_norms(spec, dtype)
    norm = rms_norm(spec.head_dim, dtype, spec.eps, layers=spec.layers)
    values = {"q_norm": norm, "k_norm": norm, "scale": spec.query_scale**-0.5}
    heads = attention(normal, spec, computed(spec), **values)
    mlp = gated_mlp(normal, spec)
    return decoder(
        normal,
        spec,
        SandwichBlock(norm_1, heads, norm_2, norm_3, mlp, norm_4),
        rms_norm(spec.embed, dtype, spec.eps),
        embed_scale=spec.embed**0.5,
    )


def computed(spec: Gemma3Spec) -> dict[str, np.ndarray]:
    """Rotary frequencies and windows of every layer."""
    full = frequencies(spec.rope_theta, spec.head_dim) / spec.rope_factor
    local = frequencies(spec.rope_local, spec.head_dim)
    each = [local if window else full for window in spec.windows]
    stacked = np.stack(each or [full] * spec.layers).astype(np.float32)
    return {FREQUENCY: stacked} | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "cache_implementation"]
    )

    hidden_act: Annotated[str, Only(GELU)] = GELU
    hidden_activation: Annotated[str | None, Only(GELU)] = GELU
    attention_bias: Annotated[bool, Only(False)] = False
    tie_word_embeddings: bool = True
    use_bidirectional_attention: Annotated[Any, Only(False, None)] = None
    query_pre_attn_scalar: Positive = 256.0
    rope_local_base_freq: Positive | None = None
    sliding_window: Size | None = 4096
    sliding_window_pattern: Size = 6
    layer_types: list[str] | None = None


def from_config(config: Mapping[str, Any], path: str) -> Gemma3Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Gemma3Config, {"head_dim": 256} | dict(config), path)
    local = alternating(found.num_hidden_layers, 1, every=found.sliding_window_pattern)
    full, near = by_layer_type(found, path, local=found.rope_local_base_freq)
    kinds = {"linear": {"factor": "rope_factor"}}
    return Gemma3Spec(
        **sizes(found, path) | {"activation": GELU},
        **read_rope(full, path, kinds, theta=1000000.0),
        rope_local=read_rope(near, path, {})["rope_theta"],
        query_scale=float(found.query_pre_attn_scalar),
        windows=windows(
            found.layer_types, found.sliding_window, [*map(bool, local)], path
        ),
    )


def table(spec: Gemma3Spec) -> Table:
    """Names in Hugging Face files."""
    names = SANDWICH | HEAD_NORMS
    return Table(rules=rules(spec, names, gain=one_plus), same=tied_head(spec, names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Fields(WindowFields):
    """Keys of GGUF metadata."""

    theta: Annotated[Positive, Key("rope.freq_base")] = 1000000.0
    scaling: Annotated[str, Only("linear", "none"), Key("rope.scaling.type")] = "none"
    factor: Annotated[Positive, Key("rope.scaling.factor")] = 1.0


def from_gguf(gguf: Gguf) -> Gemma3Spec:
    """Reads GGUF metadata; the base in windows and their order are not in it."""
    found = read_fields(gguf, Gemma3Fields, "gemma3")
    given = gguf_sizes(gguf, found, "gemma3")
    largest = found.layers == LARGEST
    width = found.embed // found.heads if largest else given["head_dim"]
    return Gemma3Spec(
        **given,
        rope_factor=float(found.factor),
        query_scale=float(width),
        windows=alternating(found.layers, found.window or 4096, every=6),
    )


def gguf_table(spec: Gemma3Spec) -> Table:
    """Names in GGUF files."""
    return Table(rules=rules(spec, GGUF_SANDWICH | GGUF_HEAD_NORMS))


def gemma3(layers: int, embed: int, mlp: int) -> Gemma3Spec:
    """A Gemma 3 without a vision tower."""
    return Gemma3Spec(
        layers=layers,
        embed=embed,
        heads=4,
        kv_heads=1,
        head_dim=256,
        mlp=mlp,
        vocab=262144,
        context=32768,
        windows=alternating(layers, 512, every=6),
    )


PRESETS = {
    "gemma-3-270m": Preset(gemma3(18, 640, 2048), "google/gemma-3-270m"),
    "gemma-3-1b": Preset(gemma3(26, 1152, 6912), "google/gemma-3-1b-pt"),
}
GEMMA3 = Family(
    name="gemma3_text",
    spec=Gemma3Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="gemma3",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
