"""Gemma 2 (Gemma team 2024, arXiv:2408.00118): soft caps, windows, norms on both sides.

Every second layer reads all tokens, the others a window. Attention scores and logits
are capped. What attention and MLP write is normalized before it is added.
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
from mijax.models._leaves import GGUF_SANDWICH, SANDWICH, one_plus, rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Identity, SandwichBlock, SoftCap, Transformer

# Number of layers of the model whose scores llama.cpp scales by the width per head.
LARGEST = 46


@dataclasses.dataclass(frozen=True)
class Gemma2Spec(DecoderSpec):
    """Sizes of a Gemma 2.

    `windows` has a number of tokens for each layer, 0 for all. Scores are divided by
    the square root of `query_scale`. A cap of `None` is none.
    """

    eps: NonNegative = 1e-6
    activation: Activation = GELU
    query_scale: Positive = 256.0
    score_cap: Positive | None = 50.0
    logit_cap: Positive | None = 30.0
    windows: Indices = ()


def init(spec: Gemma2Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    normal = Normal(key, dtype)
    norm_1, norm_2, norm_3, norm_4 = sandwich_norms(spec, dtype)
    scale, cap = spec.query_scale**-0.5, capped(spec.score_cap)
    heads = attention(normal, spec, computed(spec), scale=scale, cap=cap)
    mlp = gated_mlp(normal, spec)
    return decoder(
        normal,
        spec,
        SandwichBlock(norm_1, heads, norm_2, norm_3, mlp, norm_4),
        rms_norm(spec.embed, dtype, spec.eps),
        embed_scale=spec.embed**0.5,
        cap=capped(spec.logit_cap),
    )


def capped(cap: float | None) -> Identity | SoftCap:
    """Return a cap, or nothing."""
    return Identity() if cap is None else SoftCap(cap)


def computed(spec: Gemma2Spec) -> dict[str, np.ndarray]:
    """Rotary frequencies and windows of every layer."""
    frequency = frequencies(spec.rope_theta, spec.head_dim).astype(np.float32)
    rotary = {FREQUENCY: np.tile(frequency, (spec.layers, 1))}
    return rotary | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Config(DecoderConfig):
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
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0
    sliding_window: Size | None = 4096
    layer_types: list[str] | None = None


def from_config(config: Mapping[str, Any], path: str) -> Gemma2Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Gemma2Config, {"head_dim": 256} | dict(config), path)
    local = [layer % 2 == 0 for layer in range(found.num_hidden_layers)]
    return Gemma2Spec(
        **sizes(found, path) | {"activation": GELU},
        **read_rope(found, path, {}),
        query_scale=float(found.query_pre_attn_scalar),
        score_cap=found.attn_logit_softcapping,
        logit_cap=found.final_logit_softcapping,
        windows=windows(found.layer_types, found.sliding_window, local, path),
    )


def table(spec: Gemma2Spec) -> Table:
    """Names in Hugging Face files."""
    return Table(
        rules=rules(spec, SANDWICH, gain=one_plus), same=tied_head(spec, SANDWICH)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Fields(WindowFields):
    """Keys of GGUF metadata."""

    score_cap: Annotated[Positive, Key("attn_logit_softcapping")] = 50.0
    logit_cap: Annotated[Positive, Key("final_logit_softcapping")] = 30.0


def from_gguf(gguf: Gguf) -> Gemma2Spec:
    """Reads GGUF metadata."""
    found = read_fields(gguf, Gemma2Fields, "gemma2")
    given = gguf_sizes(gguf, found, "gemma2")
    largest = found.layers == LARGEST
    width = found.embed // found.heads if largest else given["head_dim"]
    return Gemma2Spec(
        **given,
        query_scale=float(width),
        score_cap=found.score_cap,
        logit_cap=found.logit_cap,
        windows=alternating(found.layers, found.window or 4096, every=2),
    )


def gguf_table(spec: Gemma2Spec) -> Table:
    """Names in GGUF files."""
    return Table(rules=rules(spec, GGUF_SANDWICH))


def gemma2(layers: int, embed: int, heads: int, kv_heads: int, mlp: int) -> Gemma2Spec:
    """A Gemma 2."""
    largest = layers == LARGEST
    return Gemma2Spec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128 if largest else 256,
        mlp=mlp,
        vocab=256000,
        context=8192,
        query_scale=144.0 if largest else 256.0,
        windows=alternating(layers, 4096, every=2),
    )


PRESETS = {
    "gemma-2-2b": Preset(gemma2(26, 2304, 8, 4, 9216), "google/gemma-2-2b"),
    "gemma-2-9b": Preset(gemma2(42, 3584, 16, 8, 14336), "google/gemma-2-9b"),
    "gemma-2-27b": Preset(gemma2(46, 4608, 32, 16, 36864), "google/gemma-2-27b"),
}
GEMMA2 = Family(
    name="gemma2",
    spec=Gemma2Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="gemma2",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
