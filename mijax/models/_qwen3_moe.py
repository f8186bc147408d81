"""Qwen3-MoE (Qwen team 2025, arXiv:2505.09388): a Qwen3 with experts as its MLPs.

The router chooses 8 of 128 experts for each token. The config says whether their
weights are divided by their sum; they are in the published models.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Only, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import DecoderSpec, rms_decoder
from mijax.models._decoder_config import DecoderConfig, sizes
from mijax.models._experts import NAMES as EXPERTS
from mijax.models._experts import expert_rules, experts, without_mlp
from mijax.models._family import Family, Preset, Table
from mijax.models._init import rms_norm
from mijax.models._leaves import HEAD_NORMS, NAMES, rules, tied_head
from mijax.models._olmo2 import computed
from mijax.models._rope import read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class Qwen3MoeSpec(DecoderSpec):
    """Sizes of a Qwen3-MoE: `experts` of `mlp` neurons in a layer, `top_k` per token.

    With `renormalize` the weights of the chosen experts sum to 1.
    """

    tied: bool = False
    experts: Size = 128
    top_k: Size = 8
    renormalize: bool = True


def init(spec: Qwen3MoeSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    norm = rms_norm(spec.head_dim, dtype, spec.eps, layers=spec.layers)
    mlp = experts(renormalize=spec.renormalize)
    return rms_decoder(
        spec, key, dtype, computed(spec), mlp=mlp, q_norm=norm, k_norm=norm
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    # A window has no effect while `use_sliding_window` is false.
    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "max_window_layers",
            "output_router_logits",
            "router_aux_loss_coef",
        ]
    )

    attention_bias: Annotated[bool, Only(False)] = False
    sliding_window: Size | None = None
    decoder_sparse_step: Annotated[int, Only(1)] = 1
    mlp_only_layers: Annotated[Any, Only([], None)] = None
    moe_intermediate_size: Size
    num_experts: Size
    num_experts_per_tok: Size
    norm_topk_prob: bool = False


def from_config(config: Mapping[str, Any], path: str) -> Qwen3MoeSpec:
    """Reads a Hugging Face config."""
    # transformers 5 renamed the number of experts.
    given = dict(config)
    if "num_local_experts" in given and "num_experts" not in given:
        given["num_experts"] = given.pop("num_local_experts")
    found = read_hub_config(Qwen3MoeConfig, given, path)
    return Qwen3MoeSpec(
        **sizes(found, path) | {"mlp": found.moe_intermediate_size},
        **read_rope(found, path, {}),
        experts=found.num_experts,
        top_k=found.num_experts_per_tok,
        renormalize=found.norm_topk_prob,
    )


def table(spec: Qwen3MoeSpec) -> Table:
    """Names in Hugging Face files."""
    dense = rules(spec, without_mlp(NAMES) | HEAD_NORMS)
    return Table(
        rules=(*dense, *expert_rules(spec, EXPERTS)), same=tied_head(spec, NAMES)
    )


def qwen3_moe(layers: int, embed: int, heads: int, mlp: int) -> Qwen3MoeSpec:
    """A Qwen3-MoE."""
    return Qwen3MoeSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=4,
        head_dim=128,
        mlp=mlp,
        vocab=151936,
        context=40960,
        rope_theta=1000000.0,
        eps=1e-6,
    )


PRESETS = {
    "qwen3-30b-a3b": Preset(qwen3_moe(48, 2048, 32, 768), "Qwen/Qwen3-30B-A3B"),
    "qwen3-235b-a22b": Preset(qwen3_moe(94, 4096, 64, 1536), "Qwen/Qwen3-235B-A22B"),
}
QWEN3_MOE = Family(
    name="qwen3_moe",
    spec=Qwen3MoeSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
