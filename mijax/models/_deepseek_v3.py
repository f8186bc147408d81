"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv:2412.19437).

Keys and values of all heads are made of one latent of each token, queries of another.
Experts are chosen in groups, next to an MLP that every token passes. The first layers
have an MLP only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Index, NonNegative, Only, Positive, Size
from mijax.models._config import ACTIVATIONS, Activation, HubConfig, read_hub_config
from mijax.models._decoder import FREQUENCY, SCALE, decoder
from mijax.models._deepseek_v3_table import MainTensors, table
from mijax.models._family import Family, Preset
from mijax.models._init import Normal, rms_norm
from mijax.models._rope import frequencies, read_rope, yarn, yarn_gain
from mijax.nn import (
    Block,
    Experts,
    GatedMLP,
    GroupedTopExperts,
    LatentAttention,
    Rotary,
    SharedExperts,
    Transformer,
)

ROUTED = "blocks.mlp.experts.routing.scale"
# The norms of latents do not have the other norms' number.
LATENT_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class DeepseekV3Spec:
    """Sizes of a DeepSeek-V3.

    Attributes:
        q_latent: size of the latent of queries, 0 where they are made of the stream.
        kv_latent: size of the latent of keys and values.
        rotated: features of queries and keys that are rotated, and come first.
        key_dim: features of queries and keys that are not.
        value_dim: features of values.
        mlp: neurons of the MLP in layers without experts.
        expert_mlp: neurons of an expert.
        dense: number of layers without experts, which come first.
        shared: size of the MLP next to the experts, in experts.
        groups: number of groups of experts.
        kept_groups: number of groups that a token's `top_k` experts are chosen from.
        router_scale: factor of the experts' weights.
        interleaved: whether neighbors are rotated in the published weights.
        rope_factor: YaRN's factor; `rope_context` tokens before it, pairs kept above
            `rope_fast` turns and stretched below `rope_slow`; `rope_gain` and
            `rope_gain_all` weigh the factors of rotated features and of scores.
    """

    layers: Size
    embed: Size
    heads: Size
    kv_latent: Size
    rotated: Size
    key_dim: Size
    value_dim: Size
    mlp: Size
    expert_mlp: Size
    vocab: Size
    context: Size
    q_latent: Index = 0
    dense: Index = 0
    experts: Size = 256
    top_k: Size = 8
    shared: Size = 1
    groups: Size = 8
    kept_groups: Size = 4
    renormalize: bool = True
    router_scale: Positive = 2.5
    rope_theta: Positive = 10000.0
    rope_factor: Positive = 1.0
    rope_context: Size = 4096
    rope_fast: Positive = 32.0
    rope_slow: Positive = 1.0
    rope_gain: Positive = 1.0
    rope_gain_all: Positive = 1.0
    interleaved: bool = True
    eps: NonNegative = 1e-6
    activation: Activation = "silu"
    tied: bool = False

    @property
    def head_dim(self) -> int:
        """Features of a query or key."""
        return self.rotated + self.key_dim

    @property
    def width(self) -> int:
        """Neurons of the MLP of every layer; some are 0 in layers with experts."""
        return max(self.mlp if self.dense else 1, self.shared * self.expert_mlp)


def init(spec: DeepseekV3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02; every layer has experts' weights."""
    normal = Normal(key, dtype)
    norms = (
        rms_norm(spec.embed, dtype, spec.eps, layers=spec.layers) for _ in range(2)
    )
    heads, mlp = attention(normal, spec), shared_experts(normal, spec)
    blocks = Block(next(norms), heads, next(norms), mlp)
    return decoder(normal, spec, blocks, rms_norm(spec.embed, dtype, spec.eps))


def attention(normal: Normal, spec: DeepseekV3Spec) -> LatentAttention:
    """Draws latent attention."""
    n, embed, heads = spec.layers, spec.embed, spec.heads
    leaves = computed(spec)
    values: dict[str, Any] = {}
    if spec.q_latent:
        values["w_q_latent"] = normal(n, embed, spec.q_latent)
        norm = rms_norm(spec.q_latent, normal.dtype, LATENT_EPS, layers=n)
        values["q_latent_norm"] = norm
    gain = yarn_gain(spec.rope_factor, spec.rope_gain_all)
    return LatentAttention(
        w_q_up=normal(n, spec.q_latent or embed, heads, spec.head_dim),
        w_kv_latent=normal(n, embed, spec.kv_latent),
        w_k_rotated=normal(n, embed, spec.rotated),
        w_k_up=normal(n, spec.kv_latent, heads, spec.key_dim),
        w_v_up=normal(n, spec.kv_latent, heads, spec.value_dim),
        w_o=normal(n, heads, spec.value_dim, embed),
        kv_latent_norm=rms_norm(spec.kv_latent, normal.dtype, LATENT_EPS, layers=n),
        rotary=Rotary(jnp.asarray(leaves[FREQUENCY]), jnp.asarray(leaves[SCALE])),
        scale=spec.head_dim**-0.5 * gain**2,
        **values,
    )


def shared_experts(normal: Normal, spec: DeepseekV3Spec) -> SharedExperts:
    """Draws an MLP and experts."""
    n, embed, count, mlp = spec.layers, spec.embed, spec.experts, spec.expert_mlp
    activation = ACTIVATIONS[spec.activation]
    routing = GroupedTopExperts(
        correction=jnp.zeros((n, count), normal.dtype),
        scale=jnp.asarray(computed(spec)[ROUTED]),
        count=spec.top_k,
        groups=spec.groups,
        kept=spec.kept_groups,
        renormalize=spec.renormalize,
    )
    return SharedExperts(
        shared=GatedMLP(
            w_gate=normal(n, embed, spec.width),
            w_in=normal(n, embed, spec.width),
            w_out=normal(n, spec.width, embed),
            activation=activation,
        ),
        experts=Experts(
            w_router=normal(n, embed, count),
            w_gate=normal(n, embed, count, mlp),
            w_in=normal(n, embed, count, mlp),
            w_out=normal(n, count, mlp, embed),
            activation=activation,
            routing=routing,
        ),
    )


def computed(spec: DeepseekV3Spec) -> dict[str, np.ndarray]:
    """Rotary frequencies and their factor, and the factor of the experts' weights."""
    frequency = frequencies(spec.rope_theta, spec.rotated)
    if spec.rope_factor > 1:
        frequency = yarn(
            spec.rope_theta,
            spec.rotated,
            factor=spec.rope_factor,
            context=spec.rope_context,
            fast=spec.rope_fast,
            slow=spec.rope_slow,
        )
    gains = (spec.rope_gain, spec.rope_gain_all)
    first, second = (yarn_gain(spec.rope_factor, gain) for gain in gains)
    routed = np.where(np.arange(spec.layers) < spec.dense, 0, spec.router_scale)
    return {
        FREQUENCY: np.tile(frequency.astype(np.float32), (spec.layers, 1)),
        SCALE: np.full(spec.layers, first / second, np.float32),
        ROUTED: routed.astype(np.float32),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    # The layer that predicts the token after the next is left out; sizes of heads
    # repeat others.
    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "auto_map",
            "aux_loss_alpha",
            "ep_size",
            "head_dim",
            "num_key_value_heads",
            "num_mtp_layers",
            "num_nextn_predict_layers",
            "output_router_logits",
            "pretraining_tp",
            "qk_head_dim",
            "seq_aux",
        ]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    intermediate_size: Size
    moe_intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    q_lora_rank: Size | None = 1536
    kv_lora_rank: Size = 512
    qk_rope_head_dim: Size = 64
    qk_nope_head_dim: Size = 128
    v_head_dim: Size = 128
    n_routed_experts: Size = 256
    n_shared_experts: Size = 1
    num_experts_per_tok: Size = 8
    n_group: Size = 8
    topk_group: Size = 4
    first_k_dense_replace: Index = 3
    moe_layer_freq: Annotated[int, Only(1)] = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 2.5
    scoring_func: Annotated[str, Only("sigmoid")] = "sigmoid"
    topk_method: Annotated[str, Only("noaux_tc")] = "noaux_tc"
    rope_interleave: bool = True
    rms_norm_eps: NonNegative = 1e-6
    hidden_act: Activation = "silu"
    attention_bias: Annotated[bool, Only(False)] = False
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False


KINDS = {
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_context",
        "beta_fast": "rope_fast",
        "beta_slow": "rope_slow",
        "mscale": "rope_gain",
        "mscale_all_dim": "rope_gain_all",
    }
}


def from_config(config: Mapping[str, Any], path: str) -> DeepseekV3Spec:
    """Reads a Hugging Face config."""
    # transformers 5 calls the number of experts after other families.
    given = dict(config)
    if "num_local_experts" in given:
        given.setdefault("n_routed_experts", given.pop("num_local_experts"))
    found = read_hub_config(DeepseekV3Config, given, path)
    check_groups(found, path)
    return DeepseekV3Spec(
        layers=found.num_hidden_layers,
        embed=found.hidden_size,
        heads=found.num_attention_heads,
        q_latent=found.q_lora_rank or 0,
        kv_latent=found.kv_lora_rank,
        rotated=found.qk_rope_head_dim,
        key_dim=found.qk_nope_head_dim,
        value_dim=found.v_head_dim,
        mlp=found.intermediate_size,
        expert_mlp=found.moe_intermediate_size,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        dense=min(found.first_k_dense_replace, found.num_hidden_layers),
        experts=found.n_routed_experts,
        top_k=found.num_experts_per_tok,
        shared=found.n_shared_experts,
        groups=found.n_group,
        kept_groups=found.topk_group,
        renormalize=found.norm_topk_prob,
        router_scale=float(found.routed_scaling_factor),
        **read_rope(found, path, KINDS),
        interleaved=found.rope_interleave,
        eps=found.rms_norm_eps,
        activation=found.hidden_act,
        tied=found.tie_word_embeddings,
    )


def check_groups(found: DeepseekV3Config, path: str) -> None:
    """Refuse groups that do not fit the experts.

    Raises:
        LoadError: groups of unequal size, of one expert, more kept than there are, or
            too few experts in those that are kept.
    """
    count, groups, kept = found.n_routed_experts, found.n_group, found.topk_group
    size = count // groups
    right = count == size * groups and size > 1 and kept <= groups
    if not right or found.num_experts_per_tok > kept * size:
        raise LoadError(
            f"{path}: {found.num_experts_per_tok} of {count} experts from {kept} of "
            f"{groups} groups cannot be chosen: groups are equal and of 2 or more."
        )


PRESETS = {
    "deepseek-v3": Preset(
        DeepseekV3Spec(
            layers=61,
            embed=7168,
            heads=128,
            q_latent=1536,
            kv_latent=512,
            rotated=64,
            key_dim=128,
            value_dim=128,
            mlp=18432,
            expert_mlp=2048,
            vocab=129280,
            context=163840,
            dense=3,
            rope_factor=40.0,
        ),
        "deepseek-ai/DeepSeek-V3",
    ),
}
DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    spec=DeepseekV3Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    renamed=MainTensors,
)
