"""Phi-1.5 and Phi-2 (Li et al. 2023, arXiv:2309.05463).

Attention and MLP read one norm of the same stream, side by side: the model has a copy
of the norm for each. A part of the features of a head is rotated. Biases everywhere, in
the unembedding too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import NonNegative, Only, Positive, Size
from mijax.models._config import Activation, HubConfig, divide, read_hub_config
from mijax.models._decoder import FREQUENCY, PlainSpec, biases, layer_norm_decoder
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import plain_names, rules, shared_norm
from mijax.models._rope import frequencies, read_rope
from mijax.nn import ParallelBlock, Transformer


@dataclasses.dataclass(frozen=True)
class PhiSpec(PlainSpec):
    """Sizes of a Phi; the first `rotated` features of a head are rotated."""

    rotated: Size = 32
    rope_theta: Positive = 10000.0
    tied: bool = False


def init(spec: PhiSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return layer_norm_decoder(
        spec,
        key,
        dtype,
        kind=ParallelBlock,
        leaves=computed(spec),
        head_bias=True,
        fields=biases(spec, dtype, out=True),
    )


def computed(spec: Any) -> dict[str, np.ndarray]:
    """Rotary frequencies of every layer."""
    frequency = frequencies(spec.rope_theta, spec.rotated).astype(np.float32)
    return {FREQUENCY: np.tile(frequency, (spec.layers, 1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhiConfig(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "embd_pdrop", "resid_pdrop"]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    layer_norm_eps: NonNegative = 1e-5
    hidden_act: Activation = "gelu_new"
    rope_theta: Positive | None = None
    partial_rotary_factor: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    qk_layernorm: Annotated[bool, Only(False)] = False
    tie_word_embeddings: Annotated[bool, Only(False)] = False


def from_config(config: Mapping[str, Any], path: str) -> PhiSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(PhiConfig, config, path)
    heads = found.num_attention_heads
    if (found.num_key_value_heads or heads) != heads:
        raise LoadError(
            f"{path}: 'num_key_value_heads' is {found.num_key_value_heads}, only "
            f"{heads}, one for each query head, is supported."
        )
    given = (found.rope_parameters or {}).get("partial_rotary_factor")
    fraction = given or found.partial_rotary_factor or 0.5
    return PhiSpec(
        layers=found.num_hidden_layers,
        embed=found.hidden_size,
        heads=heads,
        mlp=found.intermediate_size,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        rotated=int(divide(found.hidden_size, heads, path) * fraction),
        **read_rope(found, path, {}, partial=True),
        eps=found.layer_norm_eps,
        activation=found.hidden_act,
    )


NAMES = plain_names(
    {
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.final_layernorm.weight",
        "norm.bias": "model.final_layernorm.bias",
        "unembedding.weight": "lm_head.weight",
        "unembedding.bias": "lm_head.bias",
    },
    "model.layers.{layer}.",
    {
        "norm_1": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.dense",
        "in": "mlp.fc1",
        "out": "mlp.fc2",
    },
)


def table(spec: PhiSpec) -> Table:
    """Names in Hugging Face files."""
    return Table(rules=shared_norm(rules(spec, NAMES)))


PRESETS = {
    "phi-1.5": Preset(
        PhiSpec(
            layers=24,
            embed=2048,
            heads=32,
            mlp=8192,
            vocab=51200,
            context=2048,
            rotated=32,
        ),
        "microsoft/phi-1_5",
    ),
    "phi-2": Preset(
        PhiSpec(
            layers=32,
            embed=2560,
            heads=32,
            mlp=10240,
            vocab=51200,
            context=2048,
            rotated=32,
        ),
        "microsoft/phi-2",
    ),
}
PHI = Family(
    name="phi",
    spec=PhiSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
