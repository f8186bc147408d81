"""OPT (Zhang et al. 2022, arXiv:2205.01068): LayerNorm, learned positions, ReLU.

The table of positions begins with two rows that no position reads; they are left out.
The 350M, whose norms come after attention and MLP, is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Only, Size
from mijax.models._config import Activation, HubConfig, read_hub_config
from mijax.models._decoder import PlainSpec, biases, layer_norm_decoder
from mijax.models._family import Family, Preset, Rule, Table
from mijax.models._leaves import plain_names, rules, tied_head
from mijax.nn import Transformer

# Rows of the table of positions before that of the first token.
UNUSED = 2


@dataclasses.dataclass(frozen=True)
class OPTSpec(PlainSpec):
    """Sizes of an OPT."""

    activation: Activation = "relu"


def init(spec: OPTSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return layer_norm_decoder(
        spec,
        key,
        dtype,
        positions=spec.context,
        fields=biases(spec, dtype, out=True),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OPTConfig(HubConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "activation_dropout",
            "attention_dropout",
            "dropout",
            "init_std",
            "layerdrop",
        ]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    ffn_dim: Size
    vocab_size: Size
    max_position_embeddings: Size
    word_embed_proj_dim: Size | None = None
    activation_function: Activation = "relu"
    do_layer_norm_before: Annotated[bool, Only(True)] = True
    enable_bias: Annotated[bool, Only(True)] = True
    layer_norm_elementwise_affine: Annotated[bool, Only(True)] = True
    tie_word_embeddings: bool = True


def from_config(config: Mapping[str, Any], path: str) -> OPTSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(OPTConfig, config, path)
    if (found.word_embed_proj_dim or found.hidden_size) != found.hidden_size:
        raise LoadError(
            f"{path}: 'word_embed_proj_dim' is {found.word_embed_proj_dim}, only "
            f"{found.hidden_size}, the hidden size, is supported."
        )
    return OPTSpec(
        layers=found.num_hidden_layers,
        embed=found.hidden_size,
        heads=found.num_attention_heads,
        mlp=found.ffn_dim,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        activation=found.activation_function,
        tied=found.tie_word_embeddings,
    )


NAMES = plain_names(
    {
        "embedding.weight": "model.decoder.embed_tokens.weight",
        "norm.weight": "model.decoder.final_layer_norm.weight",
        "norm.bias": "model.decoder.final_layer_norm.bias",
        "unembedding.weight": "lm_head.weight",
    },
    "model.decoder.layers.{layer}.",
    {
        "norm_1": "self_attn_layer_norm",
        "norm_2": "final_layer_norm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "in": "fc1",
        "out": "fc2",
    },
)


def table(spec: OPTSpec) -> Table:
    """Names in Hugging Face files."""
    positions = Rule(
        "model.decoder.embed_positions.weight",
        (spec.context + UNUSED, spec.embed),
        {"positions.weight": lambda x: x[UNUSED:]},
    )
    return Table(rules=(*rules(spec, NAMES), positions), same=tied_head(spec, NAMES))


def opt(layers: int, embed: int, heads: int) -> OPTSpec:
    """An OPT."""
    return OPTSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        mlp=4 * embed,
        vocab=50272,
        context=2048,
    )


PRESETS = {
    "opt-125m": Preset(opt(12, 768, 12), "facebook/opt-125m"),
    "opt-1.3b": Preset(opt(24, 2048, 32), "facebook/opt-1.3b"),
    "opt-6.7b": Preset(opt(32, 4096, 32), "facebook/opt-6.7b"),
}
OPT = Family(
    name="opt",
    spec=OPTSpec,
    init=init,
    presets=PRESETS,
    from_config=from_config,
    table=table,
)
