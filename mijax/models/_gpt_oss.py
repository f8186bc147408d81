"""gpt-oss (OpenAI 2025, arXiv:2508.10925): experts with clamped gates, attention sinks.

Each head has a learned logit next to the scores, so that it may attend to nothing.
Every second layer reads a window. Biases everywhere. Experts may be stored in MXFP4.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import (
    Indices,
    Mxfp4Tensors,
    NonNegative,
    Only,
    Positive,
    Size,
    Tensors,
)
from mijax.models._config import read_hub_config
from mijax.models._decoder import (
    FREQUENCY,
    SCALE,
    DecoderSpec,
    biases,
    rms_decoder,
    window_leaf,
)
from mijax.models._decoder_config import DecoderConfig, sizes, windows
from mijax.models._experts import draw, without_mlp
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._init import Normal
from mijax.models._leaves import LAYER, NAMES, rules, tied_head, turned
from mijax.models._rope import read_rope, yarn, yarn_gain
from mijax.nn import ClampedShift, ClampedSwish, Experts, SinkSoftmax, Transformer


@dataclasses.dataclass(frozen=True)
class GptOssSpec(DecoderSpec):
    """Sizes of a gpt-oss: `experts` of `mlp` neurons in a layer, `top_k` per token.

    `windows` has a number of tokens for each layer, 0 for all. `rope_factor` above 1 is
    YaRN's: `rope_context` tokens before it, kept above `rope_fast` turns, stretched
    below `rope_slow`, whole pairs at both ends of the ramp with `rope_whole`. Gates are
    clamped at `limit` and have `slope` inside their sigmoid.
    """

    rope_theta: Positive = 150000.0
    tied: bool = False
    windows: Indices = ()
    experts: Size = 32
    top_k: Size = 4
    limit: Positive = 7.0
    slope: Positive = 1.702
    rope_factor: Positive = 32.0
    rope_context: Size = 4096
    rope_fast: Positive = 32.0
    rope_slow: Positive = 1.0
    rope_whole: bool = False


def init(spec: GptOssSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02; biases and sinks are zero."""
    sinks = SinkSoftmax(jnp.zeros((spec.layers, spec.heads), dtype))
    fields = biases(spec, dtype, out=True)
    return rms_decoder(
        spec, key, dtype, computed(spec), mlp=clamped, softmax=sinks, **fields
    )


def clamped(normal: Normal, spec: GptOssSpec) -> Experts:
    """Draws experts with biases and clamped gates."""
    n, count, embed, mlp = spec.layers, spec.experts, spec.embed, spec.mlp
    return dataclasses.replace(
        draw(normal, spec, renormalize=True),
        activation=ClampedSwish(spec.limit, spec.slope),
        up=ClampedShift(spec.limit),
        b_router=jnp.zeros((n, count), normal.dtype),
        b_gate=jnp.zeros((n, count, mlp), normal.dtype),
        b_in=jnp.zeros((n, count, mlp), normal.dtype),
        b_out=jnp.zeros((n, count, embed), normal.dtype),
    )


def computed(spec: GptOssSpec) -> dict[str, np.ndarray]:
    """Rotary frequencies, their factor and windows of every layer."""
    frequency = yarn(
        spec.rope_theta,
        spec.head_dim,
        factor=spec.rope_factor,
        context=spec.rope_context,
        fast=spec.rope_fast,
        slow=spec.rope_slow,
        truncate=spec.rope_whole,
    )
    gain = np.full(spec.layers, yarn_gain(spec.rope_factor), np.float32)
    stacked = np.tile(frequency.astype(np.float32), (spec.layers, 1))
    return {FREQUENCY: stacked, SCALE: gain} | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptOssConfig(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    # Two keys repeat others: `num_experts_per_tok` and the context before YaRN.
    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "experts_per_token",
            "initial_context_length",
            "output_router_logits",
            "router_aux_loss_coef",
        ]
    )

    rms_norm_eps: NonNegative = 1e-5
    hidden_act: Annotated[str, Only("silu")] = "silu"
    attention_bias: Annotated[bool, Only(True)] = True
    quantization_config: dict[str, Any] | None = None
    sliding_window: Size | None = 128
    layer_types: list[str] | None = None
    num_local_experts: Size
    num_experts_per_tok: Size = 4
    swiglu_alpha: Positive = 1.702
    swiglu_limit: Positive = 7.0


KINDS = {
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_context",
        "beta_fast": "rope_fast",
        "beta_slow": "rope_slow",
        "truncate": "rope_whole",
    }
}


def from_config(config: Mapping[str, Any], path: str) -> GptOssSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(GptOssConfig, config, path)
    check_quantization(found.quantization_config, path)
    local = [layer % 2 == 0 for layer in range(found.num_hidden_layers)]
    plain: dict[str, Any] = {"rope_factor": 1.0}
    return GptOssSpec(
        **sizes(found, path),
        **plain | read_rope(found, path, KINDS, theta=150000.0),
        windows=windows(found.layer_types, found.sliding_window, local, path),
        experts=found.num_local_experts,
        top_k=found.num_experts_per_tok,
        limit=float(found.swiglu_limit),
        slope=float(found.swiglu_alpha),
    )


def check_quantization(quantization: Mapping[str, Any] | None, path: str) -> None:
    """Refuse weights in another format than MXFP4.

    Raises:
        LoadError: another format.
    """
    method = (quantization or {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise LoadError(
            f"{path}: 'quantization_config' has the method {method!r}, expected "
            "'mxfp4' or none. Load weights that are not quantized."
        )


ATTENTION = f"{LAYER}self_attn."
LEAVES = {f"blocks.attention.b_{x}": f"{ATTENTION}{x}_proj.bias" for x in "qkvo"}
EXPERTS = f"{LAYER}mlp.experts."
ROUTER = f"{LAYER}mlp.router."


def table(spec: GptOssSpec) -> Table:
    """Names in Hugging Face files."""
    dense = rules(spec, without_mlp(NAMES) | LEAVES)
    sinks = {"blocks.attention.softmax.sink": same}
    own = Rule(f"{ATTENTION}sinks", (spec.heads,), sinks)
    return Table(
        rules=(*dense, own, *expert_rules(spec)),
        ignored=(r".*rotary_emb\.inv_freq",),
        same=tied_head(spec, NAMES),
    )


def expert_rules(spec: GptOssSpec) -> list[Rule]:
    """Return the rules of the router and of experts that are stacked in files.

    Columns of gate and up alternate. Files of MXFP4 hold the transposed matrices.
    """
    embed, count, mlp = spec.embed, spec.experts, spec.mlp

    def reads(start: int) -> Any:
        return lambda x: x[..., start::2].transpose(1, 0, 2)

    def bias(start: int) -> Any:
        return lambda x: x[..., start::2]

    def leaf(name: str) -> str:
        return f"blocks.mlp.{name}"

    return [
        Rule(f"{ROUTER}weight", (count, embed), {leaf("w_router"): turned}),
        Rule(f"{ROUTER}bias", (count,), {leaf("b_router"): same}),
        Rule(
            f"{EXPERTS}gate_up_proj",
            (count, embed, 2 * mlp),
            {leaf("w_gate"): reads(0), leaf("w_in"): reads(1)},
        ),
        Rule(
            f"{EXPERTS}gate_up_proj_bias",
            (count, 2 * mlp),
            {leaf("b_gate"): bias(0), leaf("b_in"): bias(1)},
        ),
        Rule(f"{EXPERTS}down_proj", (count, mlp, embed), {leaf("w_out"): same}),
        Rule(f"{EXPERTS}down_proj_bias", (count, embed), {leaf("b_out"): same}),
    ]


class GptOssTensors:
    """The tensors of a file; experts in MXFP4 appear as files without it have them.

    Args:
        tensors: the tensors of the file.

    Raises:
        LoadError: blocks without scales, or of another shape.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = Mxfp4Tensors(tensors)
        self.path, self.files = tensors.path, tensors.files
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape[:-2] + shape[:-3:-1] if name in self.tensors.packed else shape
            for name, shape in self.tensors.shapes.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        found = self.tensors.read(name)
        return found.swapaxes(-1, -2) if name in self.tensors.packed else found


def gpt_oss(layers: int, experts: int) -> GptOssSpec:
    """A gpt-oss."""
    return GptOssSpec(
        layers=layers,
        embed=2880,
        heads=64,
        kv_heads=8,
        head_dim=64,
        mlp=2880,
        vocab=201088,
        context=131072,
        windows=(128, 0) * (layers // 2),
        experts=experts,
    )


PRESETS = {
    "gpt-oss-20b": Preset(gpt_oss(24, 32), "openai/gpt-oss-20b"),
    "gpt-oss-120b": Preset(gpt_oss(36, 128), "openai/gpt-oss-120b"),
}
GPT_OSS = Family(
    name="gpt_oss",
    spec=GptOssSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    renamed=GptOssTensors,
)
