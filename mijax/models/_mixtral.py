"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): a Mistral with experts as its MLPs.

The router chooses two of eight experts for each token; their weights sum to 1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Indices, NonNegative, Only, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import DecoderSpec, rms_decoder
from mijax.models._decoder_config import DecoderConfig, sizes
from mijax.models._experts import expert_rules, experts, without_mlp
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import LAYER, NAMES, rules, tied_head
from mijax.models._mistral import computed
from mijax.models._rope import read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class MixtralSpec(DecoderSpec):
    """Sizes of a Mixtral: `experts` of `mlp` neurons in a layer, `top_k` per token.

    `windows` has a number of tokens for each layer, 0 for all. Without windows every
    layer reads all tokens.
    """

    tied: bool = False
    windows: Indices = ()
    experts: Size = 8
    top_k: Size = 2


def init(spec: MixtralSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(spec, key, dtype, computed(spec), mlp=experts(renormalize=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtralConfig(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "output_router_logits",
            "router_aux_loss_coef",
            "router_jitter_noise",
        ]
    )

    rms_norm_eps: NonNegative = 1e-5
    attention_bias: Annotated[bool, Only(False)] = False
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2


def from_config(config: Mapping[str, Any], path: str) -> MixtralSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(MixtralConfig, config, path)
    window = found.sliding_window
    return MixtralSpec(
        **sizes(found, path),
        **read_rope(found, path, {}, theta=1000000.0),
        windows=() if window is None else (window,) * found.num_hidden_layers,
        experts=found.num_local_experts,
        top_k=found.num_experts_per_tok,
    )


EXPERT = f"{LAYER}block_sparse_moe.experts.{{expert}}."
EXPERTS = {
    "blocks.mlp.w_router": f"{LAYER}block_sparse_moe.gate.weight",
    "blocks.mlp.w_gate": f"{EXPERT}w1.weight",
    "blocks.mlp.w_in": f"{EXPERT}w3.weight",
    "blocks.mlp.w_out": f"{EXPERT}w2.weight",
}


def table(spec: MixtralSpec) -> Table:
    """Names in Hugging Face files."""
    return Table(
        rules=(*rules(spec, without_mlp(NAMES)), *expert_rules(spec, EXPERTS)),
        ignored=(r".*rotary_emb\.inv_freq",),
        same=tied_head(spec, NAMES),
    )


PRESETS = {
    "mixtral-8x7b-v0.1": Preset(
        MixtralSpec(
            layers=32,
            embed=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            mlp=14336,
            vocab=32000,
            context=32768,
            rope_theta=1000000.0,
        ),
        "mistralai/Mixtral-8x7B-v0.1",
    ),
    "mixtral-8x22b-v0.1": Preset(
        MixtralSpec(
            layers=56,
            embed=6144,
            heads=48,
            kv_heads=8,
            head_dim=128,
            mlp=16384,
            vocab=32000,
            context=65536,
            rope_theta=1000000.0,
        ),
        "mistralai/Mixtral-8x22B-v0.1",
    ),
}
MIXTRAL = Family(
    name="mixtral",
    spec=MixtralSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
