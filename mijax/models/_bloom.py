"""BLOOM (Scao et al. 2022, arXiv:2211.05100): ALiBi and a norm of the embedding."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from mijax.io import NonNegative, Only, Size
from mijax.models._config import HubConfig, read_hub_config
from mijax.models._decoder import SLOPE, PlainSpec, biases, layer_norm_decoder
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._gpt_neox import fused
from mijax.models._init import layer_norm
from mijax.models._leaves import plain_names, rules, tied_head
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class BloomSpec(PlainSpec):
    """Sizes of a BLOOM; `context` is the number of tokens that it was trained on."""

    context: Size = 2048


def init(spec: BloomSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    model = layer_norm_decoder(
        spec, key, dtype, leaves=computed(spec), fields=biases(spec, dtype, out=True)
    )
    norm = layer_norm(spec.embed, dtype, spec.eps)
    embedding = dataclasses.replace(model.embedding, norm=norm)
    return dataclasses.replace(model, embedding=embedding)


def computed(spec: BloomSpec) -> dict[str, np.ndarray]:
    """Slopes of every layer."""
    return {SLOPE: np.tile(slopes(spec.heads), (spec.layers, 1)).astype(np.float32)}


def slopes(heads: int) -> Float[np.ndarray, " heads"]:
    """Return the slope of each head, a geometric sequence.

    For a power of two the ratio is $2^{-8 / n}$. Other numbers take the sequence of
    the next smaller power, and then every second value of the next larger one.
    """
    power = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 / power * np.arange(1, power + 1))
    more = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power) + 1, 2))
    return np.concatenate([first, more])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BloomConfig(HubConfig):
    """Keys of config.json."""

    # Names of sizes that transformers 3 wrote, which repeat others.
    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "hidden_dropout",
            "masked_softmax_fusion",
            "offset_alibi",
            "pretraining_tp",
            "seq_length",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "slow_but_exact",
            "unk_token_id",
        ]
    )

    n_layer: Size
    hidden_size: Size | None = None
    n_embed: Size | None = None
    n_head: Size
    vocab_size: Size
    layer_norm_epsilon: NonNegative = 1e-5
    apply_residual_connection_post_layernorm: Annotated[bool, Only(False)] = False
    tie_word_embeddings: bool = True


def from_config(config: Mapping[str, Any], path: str) -> BloomSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(BloomConfig, config, path)
    embed = found.n_embed or found.hidden_size or 64
    return BloomSpec(
        layers=found.n_layer,
        embed=embed,
        heads=found.n_head,
        mlp=4 * embed,
        vocab=found.vocab_size,
        eps=found.layer_norm_epsilon,
        tied=found.tie_word_embeddings,
    )


LAYER = "transformer.h.{layer}."
NAMES = plain_names(
    {
        "embedding.weight": "transformer.word_embeddings.weight",
        "norm.weight": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
        "unembedding.weight": "lm_head.weight",
    },
    LAYER,
    {
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        "o": "self_attention.dense",
        "in": "mlp.dense_h_to_4h",
        "out": "mlp.dense_4h_to_h",
    },
)


def table(spec: BloomSpec) -> Table:
    """Names in Hugging Face files; a head's queries, keys and values are neighbors."""
    first = (
        Rule(
            f"transformer.word_embeddings_layernorm.{end}",
            (spec.embed,),
            {f"embedding.norm.{end}": same},
        )
        for end in ("weight", "bias")
    )
    qkv = fused(spec, f"{LAYER}self_attention.query_key_value", by_head=True)
    return Table(rules=(*rules(spec, NAMES), *first, *qkv), same=tied_head(spec, NAMES))


PRESETS = {
    "bloom-560m": Preset(
        BloomSpec(layers=24, embed=1024, heads=16, mlp=4096, vocab=250880),
        "bigscience/bloom-560m",
    ),
}
BLOOM = Family(
    name="bloom",
    spec=BloomSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
