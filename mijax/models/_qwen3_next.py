"""Qwen3-Next (Qwen team 2025): gated delta networks, attention, and experts.

Three layers of four have a gated delta network (Yang et al. 2024, arXiv:2412.06464),
the fourth attention with an output gate. Experts are the MLP of every layer: 10 of 512
for each token, and a shared one with a gate. The layer that predicts further tokens
(`mtp`) is left out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Only, Size
from mijax.models._config import ACTIVATIONS, read_hub_config
from mijax.models._experts import NAMES as EXPERTS
from mijax.models._experts import draw, expert_rules, without_mlp
from mijax.models._family import Family, Preset, Rule, Table
from mijax.models._gated_delta import (
    MIXER,
    HybridConfig,
    HybridSpec,
    computed,
    hybrid_decoder,
    hybrid_rules,
    hybrid_sizes,
)
from mijax.models._init import Normal
from mijax.models._leaves import LAYER, NAMES, tied_head, turned
from mijax.nn import GatedMLP, SharedExperts, Transformer


@dataclasses.dataclass(frozen=True)
class Qwen3NextSpec(HybridSpec):
    """Sizes of a Qwen3-Next: `experts` of `mlp` neurons in a layer, `top_k` per token.

    The shared expert has `shared_mlp` neurons. With `renormalize` the weights of the
    chosen experts sum to 1.
    """

    experts: Size = 512
    top_k: Size = 10
    renormalize: bool = True
    shared_mlp: Size = 512


def init(spec: Qwen3NextSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return hybrid_decoder(spec, key, dtype, shared_experts)


def shared_experts(normal: Normal, spec: Qwen3NextSpec) -> SharedExperts:
    """Draws the experts of every layer, and the shared one."""
    n, embed, mlp = spec.layers, spec.embed, spec.shared_mlp
    return SharedExperts(
        experts=draw(normal, spec, renormalize=spec.renormalize),
        shared=GatedMLP(
            w_gate=normal(n, embed, mlp),
            w_in=normal(n, embed, mlp),
            w_out=normal(n, mlp, embed),
            activation=ACTIVATIONS[spec.activation],
        ),
        w_shared=normal(n, embed),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(HybridConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "output_router_logits", "router_aux_loss_coef"]
    )

    decoder_sparse_step: Annotated[int, Only(1)] = 1
    mlp_only_layers: Annotated[Any, Only([], None)] = None
    moe_intermediate_size: Size
    shared_expert_intermediate_size: Size
    num_experts: Size
    num_experts_per_tok: Size
    norm_topk_prob: bool = True


def from_config(config: Mapping[str, Any], path: str) -> Qwen3NextSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Qwen3NextConfig, config, path)
    sizes: dict[str, Any] = hybrid_sizes(found, path)
    sizes["mlp"] = found.moe_intermediate_size
    return Qwen3NextSpec(
        **sizes,
        experts=found.num_experts,
        top_k=found.num_experts_per_tok,
        renormalize=found.norm_topk_prob,
        shared_mlp=found.shared_expert_intermediate_size,
    )


def table(spec: Qwen3NextSpec) -> Table:
    """Names in Hugging Face files."""
    found = hybrid_rules(spec, without_mlp(NAMES), projections(spec))
    routed = [moved(rule) for rule in expert_rules(spec, EXPERTS)]
    return Table(
        rules=(*found, *routed, *shared_rules(spec)),
        ignored=(r"mtp\..*",),
        same=tied_head(spec, NAMES),
    )


def moved(rule: Rule) -> Rule:
    """Returns a rule of experts for those next to a shared one."""
    into = {
        leaf.replace("blocks.mlp.", "blocks.mlp.experts."): make
        for leaf, make in rule.into.items()
    }
    return dataclasses.replace(rule, into=into)


def shared_rules(spec: Qwen3NextSpec) -> list[Rule]:
    """Returns the rules of the shared expert and its gate."""
    embed, mlp = spec.embed, spec.shared_mlp
    shapes = {
        "gate_proj": ("w_gate", (mlp, embed)),
        "up_proj": ("w_in", (mlp, embed)),
        "down_proj": ("w_out", (embed, mlp)),
    }
    rules = [
        Rule(
            f"{LAYER}mlp.shared_expert.{name}.weight",
            shape,
            {f"blocks.mlp.shared.{leaf}": turned},
        )
        for name, (leaf, shape) in shapes.items()
    ]
    gate = {"blocks.mlp.w_shared": lambda x: x[0]}
    return [*rules, Rule(f"{LAYER}mlp.shared_expert_gate.weight", (1, embed), gate)]


def projections(spec: Qwen3NextSpec) -> list[Rule]:
    """Returns the rules of two matrices, in which key heads come one after another.

    A key head has its query, key, values and gates, or its rates and decays, of all
    value heads that share it.
    """
    heads, group = spec.key_heads, spec.value_heads // spec.key_heads
    values = group * spec.value_dim
    cuts = (spec.key_dim, 2 * spec.key_dim, 2 * spec.key_dim + values)
    width = 2 * spec.key_dim + 2 * values

    def parts(x: np.ndarray) -> list[np.ndarray]:
        by_head = np.split(x.reshape(heads, width, spec.embed), cuts, axis=1)
        return [part.reshape(-1, spec.embed) for part in by_head]

    def rates(i: int) -> Any:
        split = (heads, 2, group, spec.embed)
        return lambda x: x.reshape(split)[:, i].reshape(-1, spec.embed).T

    return [
        Rule(
            f"{MIXER}in_proj_qkvz.weight",
            (heads * width, spec.embed),
            {
                "blocks.mixer.w_in": lambda x: np.concatenate(parts(x)[:3]).T,
                "blocks.mixer.w_gate": lambda x: parts(x)[3].T,
            },
        ),
        Rule(
            f"{MIXER}in_proj_ba.weight",
            (2 * spec.value_heads, spec.embed),
            {"blocks.mixer.w_beta": rates(0), "blocks.mixer.w_alpha": rates(1)},
        ),
    ]


PRESETS = {
    "qwen3-next-80b-a3b-instruct": Preset(
        Qwen3NextSpec(
            layers=48,
            embed=2048,
            heads=16,
            kv_heads=2,
            head_dim=256,
            mlp=512,
            vocab=151936,
            context=262144,
            rope_theta=10000000.0,
            attends=(0, 0, 0, 1) * 12,
        ),
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
    ),
}
QWEN3_NEXT = Family(
    name="qwen3_next",
    spec=Qwen3NextSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
