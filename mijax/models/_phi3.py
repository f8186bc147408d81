"""Phi-3 (Abdin et al. 2024, arXiv:2404.14219): a Llama whose files join matrices.

Queries, keys and values are one tensor, gate and up projection another. A part of the
features of a head may be rotated; the long variants stretch it by tables (`longrope`),
which are refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Indices, Positive, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import FREQUENCY, DecoderSpec, rms_decoder, window_leaf
from mijax.models._decoder_config import DecoderConfig, sizes
from mijax.models._family import Family, Preset, Rule, Table
from mijax.models._leaves import LAYER, NAMES, rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class Phi3Spec(DecoderSpec):
    """Sizes of a Phi-3; the first `rotated` features of a head are rotated.

    `windows` has a number of tokens for each layer, 0 for all.
    """

    rotated: Size = 96
    tied: bool = False
    windows: Indices = ()


def init(spec: Phi3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(spec, key, dtype, computed(spec))


def computed(spec: Phi3Spec) -> dict[str, np.ndarray]:
    """Rotary frequencies and windows of every layer."""
    frequency = frequencies(spec.rope_theta, spec.rotated).astype(np.float32)
    rotary = {FREQUENCY: np.tile(frequency, (spec.layers, 1))}
    return rotary | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "embd_pdrop",
            "resid_pdrop",
            "original_max_position_embeddings",
            "auto_map",
        ]
    )

    sliding_window: Size | None = None
    partial_rotary_factor: Positive | None = None


def from_config(config: Mapping[str, Any], path: str) -> Phi3Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Phi3Config, config, path)
    given, window = sizes(found, path), found.sliding_window
    inside = (found.rope_parameters or {}).get("partial_rotary_factor")
    fraction = inside or found.partial_rotary_factor or 1.0
    return Phi3Spec(
        **given,
        **read_rope(found, path, {}, partial=True),
        rotated=int(given["head_dim"] * fraction),
        windows=() if window is None else (window,) * found.num_hidden_layers,
    )


JOINED = tuple(f"blocks.attention.w_{x}" for x in "qkv")
GATES = ("blocks.mlp.w_gate", "blocks.mlp.w_in")


def table(spec: Phi3Spec) -> Table:
    """Names in Hugging Face files."""
    names = {k: v for k, v in NAMES.items() if k not in (*JOINED, *GATES)}
    return Table(
        rules=(*rules(spec, names), queries_keys_values(spec), gate_up(spec)),
        same=tied_head(spec, NAMES),
    )


def queries_keys_values(spec: Phi3Spec) -> Rule:
    """Return the rule of the tensor with all queries, then keys, then values."""
    counts = (spec.heads, spec.kv_heads, spec.kv_heads)
    ends = np.cumsum((0, *counts)) * spec.head_dim

    def part(i: int) -> Any:
        def make(x: np.ndarray) -> np.ndarray:
            own = x[ends[i] : ends[i + 1]]
            return own.reshape(counts[i], spec.head_dim, -1).transpose(2, 0, 1)

        return make

    into = {leaf: part(i) for i, leaf in enumerate(JOINED)}
    name = f"{LAYER}self_attn.qkv_proj.weight"
    return Rule(name, (int(ends[-1]), spec.embed), into)


def gate_up(spec: Phi3Spec) -> Rule:
    """Return the rule of the tensor with the gate, then the up projection."""

    def part(i: int) -> Any:
        return lambda x: x[i * spec.mlp : (i + 1) * spec.mlp].T

    into = {leaf: part(i) for i, leaf in enumerate(GATES)}
    name = f"{LAYER}mlp.gate_up_proj.weight"
    return Rule(name, (2 * spec.mlp, spec.embed), into)


PRESETS = {
    "phi-3-mini-4k-instruct": Preset(
        Phi3Spec(
            layers=32,
            embed=3072,
            heads=32,
            kv_heads=32,
            head_dim=96,
            mlp=8192,
            vocab=32064,
            context=4096,
            windows=(2047,) * 32,
        ),
        "microsoft/Phi-3-mini-4k-instruct",
    ),
}
PHI3 = Family(
    name="phi3",
    spec=Phi3Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
