"""Decoders with gated delta networks in most layers and attention in the others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Indices, NonNegative, Only, Positive, Size
from mijax.models._decoder import FREQUENCY, DecoderSpec, attention, decoder
from mijax.models._decoder_config import FULL, DecoderConfig, sizes
from mijax.models._family import Rule, same
from mijax.models._init import Normal, rms_norm
from mijax.models._leaves import (
    HEAD_NORMS,
    LAYER,
    one_plus,
    rules,
    turned,
)
from mijax.models._mamba import conv_rules, draw_conv, one_rule
from mijax.models._rope import Rope, frequencies, read_rope
from mijax.nn import GatedDeltaNet, HybridBlock, OutputGate, Transformer
from mijax.nn.internal import AbstractMLP

LINEAR = "linear_attention"
ATTENDS = "blocks.attends"
MIXER = f"{LAYER}linear_attn."
# Features of positions of images, which are equal for texts.
SECTIONS = ("mrope_section", "mrope_interleaved")


@dataclasses.dataclass(frozen=True)
class HybridSpec(DecoderSpec):
    """Sizes of decoders of gated delta networks and attention.

    `attends` is 1 in layers with attention and 0 in the others, one number for each
    layer. A delta network has `key_heads` heads of `key_dim` features for queries and
    keys, `value_heads` heads of `value_dim` features, and a convolution of width
    `taps`. In attention the first `rotated` features of a head are rotated.
    """

    eps: NonNegative = 1e-6
    tied: bool = False
    attends: Indices = ()
    rotated: Size = 64
    key_heads: Size = 16
    key_dim: Size = 128
    value_heads: Size = 32
    value_dim: Size = 128
    taps: Size = 4

    @property
    def conv_bias(self) -> bool:
        """False: the convolution has no bias."""
        return False

    @property
    def channels(self) -> int:
        """Number of features of all value heads together."""
        return self.value_heads * self.value_dim

    @property
    def mixed(self) -> int:
        """Number of channels of the convolution."""
        return 2 * self.key_heads * self.key_dim + self.channels


def hybrid_decoder(
    spec: HybridSpec,
    key: PRNGKeyArray,
    dtype: DTypeLike,
    mlp: Any,
) -> Transformer:
    """Draws weights of standard deviation 0.02.

    Args:
        spec: the sizes.
        key: seed of the weights.
        dtype: precision of the weights.
        mlp: draws the MLP from draws and sizes.

    Returns:
        The model. A layer has the weights of both kinds.
    """
    normal, n, leaves = Normal(key, dtype), spec.layers, computed(spec)
    norms = (rms_norm(spec.embed, dtype, spec.eps, layers=n) for _ in range(2))
    norm = rms_norm(spec.head_dim, dtype, spec.eps, layers=n)
    gate = OutputGate(normal(n, spec.embed, spec.heads, spec.head_dim))
    heads = attention(normal, spec, leaves, q_norm=norm, k_norm=norm, gate=gate)
    drawn: AbstractMLP = mlp(normal, spec)
    blocks = HybridBlock(
        norm_1=next(norms),
        attention=heads,
        mixer=delta_net(normal, spec, dtype),
        norm_2=next(norms),
        mlp=drawn,
        attends=jnp.asarray(leaves[ATTENDS]),
    )
    return decoder(normal, spec, blocks, rms_norm(spec.embed, dtype, spec.eps))


def delta_net(normal: Normal, spec: HybridSpec, dtype: DTypeLike) -> GatedDeltaNet:
    """Draws the delta networks of all layers."""
    n, embed, heads = spec.layers, spec.embed, spec.value_heads
    return GatedDeltaNet(
        w_in=normal(n, embed, spec.mixed),
        w_gate=normal(n, embed, spec.channels),
        w_alpha=normal(n, embed, heads),
        w_beta=normal(n, embed, heads),
        conv=draw_conv(normal, spec, spec.mixed),
        b_alpha=jnp.ones((n, heads), dtype),
        a_log=jnp.zeros((n, heads), dtype),
        norm=rms_norm(spec.value_dim, dtype, spec.eps, layers=n),
        w_out=normal(n, spec.channels, embed),
        key_heads=spec.key_heads,
    )


def computed(spec: HybridSpec) -> dict[str, np.ndarray]:
    """Returns rotary frequencies of every layer, and its kind."""
    frequency = frequencies(spec.rope_theta, spec.rotated).astype(np.float32)
    return {
        FREQUENCY: np.tile(frequency, (spec.layers, 1)),
        ATTENDS: np.array(kinds(spec), np.int32),
    }


def kinds(spec: HybridSpec) -> tuple[int, ...]:
    """Returns 1 for each layer with attention: every fourth without a list."""
    return spec.attends or tuple(int((i + 1) % 4 == 0) for i in range(spec.layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridConfig(DecoderConfig):
    """Keys of config.json of these decoders."""

    head_dim: Size = 256
    rms_norm_eps: NonNegative = 1e-6
    attention_bias: Annotated[bool, Only(False)] = False
    layer_types: list[str] | None = None
    full_attention_interval: Size = 4
    partial_rotary_factor: Positive | None = None
    linear_conv_kernel_dim: Size
    linear_key_head_dim: Size
    linear_value_head_dim: Size
    linear_num_key_heads: Size
    linear_num_value_heads: Size


def hybrid_sizes(found: HybridConfig, path: str) -> dict[str, Any]:
    """Returns values of the fields of a `HybridSpec`.

    Raises:
        LoadError: kinds of layers that are unknown or of another number, or value heads
            that do not split into groups.
    """
    given = dict(found.rope_parameters or {})
    fraction = given.get("partial_rotary_factor") or found.partial_rotary_factor or 0.25
    text = {key: value for key, value in given.items() if key not in SECTIONS}
    rope = Rope(found.rope_theta, found.rope_scaling, text)
    if found.linear_num_value_heads % found.linear_num_key_heads:
        raise LoadError(
            f"{path}: {found.linear_num_value_heads} value heads do not split into "
            f"{found.linear_num_key_heads} equal parts, one for each key head."
        )
    return {
        **sizes(found, path),
        **read_rope(rope, path, {}, partial=True),
        "attends": layer_kinds(found, path),
        "rotated": int(found.head_dim * fraction),
        "key_heads": found.linear_num_key_heads,
        "key_dim": found.linear_key_head_dim,
        "value_heads": found.linear_num_value_heads,
        "value_dim": found.linear_value_head_dim,
        "taps": found.linear_conv_kernel_dim,
    }


def layer_kinds(found: HybridConfig, path: str) -> tuple[int, ...]:
    """Returns 1 for each layer with attention.

    Raises:
        LoadError: unknown kinds, or another number of kinds than layers.
    """
    layers, every = found.num_hidden_layers, found.full_attention_interval
    if found.layer_types is None:
        return tuple(int((i + 1) % every == 0) for i in range(layers))
    unknown = sorted(set(found.layer_types) - {FULL, LINEAR})
    if unknown or len(found.layer_types) != layers:
        raise LoadError(
            f"{path}: 'layer_types' has {len(found.layer_types)} entries for {layers} "
            f"layers{', among them ' + repr(unknown[0]) if unknown else ''}; expected "
            f"'{LINEAR}' or '{FULL}' for each layer."
        )
    return tuple(int(kind == FULL) for kind in found.layer_types)


def hybrid_rules(
    spec: HybridSpec, names: Mapping[str, str], mixer: Sequence[Rule]
) -> tuple[Rule, ...]:
    """Returns the rules of a Llama's leaves and of both kinds of layers.

    Args:
        spec: the sizes.
        names: name in the file of each leaf of a Llama.
        mixer: rules of the projections of a delta network.

    Returns:
        The rules, each with the layers that have its tensor.
    """
    heads, head_dim, embed = spec.heads, spec.head_dim, spec.embed
    query = names["blocks.attention.w_q"]
    others = {k: v for k, v in names.items() if v != query}
    joined = (heads * head_dim * 2, embed)

    def part(i: int) -> Any:
        split = (heads, 2, head_dim, embed)
        return lambda x: x.reshape(split)[:, i].transpose(2, 0, 1)

    into = {"blocks.attention.w_q": part(0), "blocks.attention.gate.weight": part(1)}
    found = [
        *rules(spec, others | HEAD_NORMS, gain=one_plus),
        Rule(query, joined, into),
    ]
    attends = [i for i, one in enumerate(kinds(spec)) if one]
    mixes = [i for i, one in enumerate(kinds(spec)) if not one]
    outer = [one for one in found if "self_attn" not in one.name]
    inner = [one for one in found if "self_attn" in one.name]
    own = [
        *mixer,
        *conv_rules(spec, spec.mixed, MIXER),
        one_rule("b_alpha", "dt_bias", (spec.value_heads,), same, MIXER),
        one_rule("a_log", "A_log", (spec.value_heads,), same, MIXER),
        one_rule("norm.weight", "norm.weight", (spec.value_dim,), same, MIXER),
        one_rule("w_out", "out_proj.weight", (embed, spec.channels), turned, MIXER),
    ]
    return (*outer, *at(inner, attends), *at(own, mixes))


def at(found: Sequence[Rule], layers: Sequence[int]) -> list[Rule]:
    """Returns rules of tensors that only some layers have."""
    return [dataclasses.replace(one, only=tuple(layers)) for one in found]
