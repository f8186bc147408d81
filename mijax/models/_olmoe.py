"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): a Llama with experts as its MLPs.

Queries are normalized over all heads together, and so are keys. The router chooses 8 of
64 experts for each token; their weights are not divided by their sum.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import NonNegative, Only, Size
from mijax.models._config import read_hub_config
from mijax.models._decoder import DecoderSpec, rms_decoder
from mijax.models._decoder_config import DecoderConfig, sizes
from mijax.models._experts import NAMES as EXPERTS
from mijax.models._experts import expert_rules, experts, without_mlp
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import NAMES, rules, tied_head
from mijax.models._olmo2 import WHOLE_NORMS, computed, whole_norms
from mijax.models._rope import read_rope
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class OlmoeSpec(DecoderSpec):
    """Sizes of an OLMoE: `experts` of `mlp` neurons in a layer, `top_k` per token.

    With `renormalize` the weights of the chosen experts sum to 1.
    """

    tied: bool = False
    experts: Size = 64
    top_k: Size = 8
    renormalize: bool = False


def init(spec: OlmoeSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(
        spec,
        key,
        dtype,
        computed(spec),
        mlp=experts(renormalize=spec.renormalize),
        **whole_norms(spec, dtype),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OlmoeConfig(DecoderConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "output_router_logits", "router_aux_loss_coef"]
    )

    rms_norm_eps: NonNegative = 1e-5
    attention_bias: Annotated[bool, Only(False)] = False
    clip_qkv: Annotated[Any, Only(None)] = None
    num_experts: Size = 64
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False


def from_config(config: Mapping[str, Any], path: str) -> OlmoeSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(OlmoeConfig, config, path)
    return OlmoeSpec(
        **sizes(found, path),
        **read_rope(found, path, {}),
        experts=found.num_experts,
        top_k=found.num_experts_per_tok,
        renormalize=found.norm_topk_prob,
    )


def table(spec: OlmoeSpec) -> Table:
    """Names in Hugging Face files."""
    dense = rules(spec, without_mlp(NAMES) | WHOLE_NORMS)
    return Table(
        rules=(*dense, *expert_rules(spec, EXPERTS)), same=tied_head(spec, NAMES)
    )


PRESETS = {
    "olmoe-1b-7b-0924": Preset(
        OlmoeSpec(
            layers=16,
            embed=2048,
            heads=16,
            kv_heads=16,
            head_dim=128,
            mlp=1024,
            vocab=50304,
            context=4096,
        ),
        "allenai/OLMoE-1B-7B-0924",
    ),
}
OLMOE = Family(
    name="olmoe",
    spec=OlmoeSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
