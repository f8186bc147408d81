"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's blocks without segments."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Index, Size
from mijax.models._config import Activation, read_hub_config
from mijax.models._encoder import (
    EncoderNames,
    EncoderSpec,
    HeadConfig,
    HeadNames,
    computed,
    encoder,
    encoder_table,
    head_fields,
)
from mijax.models._family import Family, Preset, Table
from mijax.nn import Encoder, ReLU


@dataclasses.dataclass(frozen=True)
class DistilBertSpec(EncoderSpec):
    """Sizes of a DistilBERT."""

    segments: Index = 0


def init(spec: DistilBertSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Encoder:
    """Draws weights of standard deviation 0.02."""
    return encoder(spec, key, dtype, pool=ReLU())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilBertConfig(HeadConfig):
    """Keys of config.json; positions are a table, however it was drawn."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "dropout",
            "qa_dropout",
            "seq_classif_dropout",
            "sinusoidal_pos_embds",
        ]
    )

    n_layers: Size
    dim: Size
    n_heads: Size
    hidden_dim: Size
    vocab_size: Size
    max_position_embeddings: Size = 512
    activation: Activation = "gelu"


def from_config(config: Mapping[str, Any], path: str) -> DistilBertSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(DistilBertConfig, config, path)
    return DistilBertSpec(
        layers=found.n_layers,
        embed=found.dim,
        heads=found.n_heads,
        mlp=found.hidden_dim,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        activation=found.activation,
        **head_fields(found, path),
    )


NAMES = EncoderNames(
    body="distilbert.",
    layer="transformer.layer.{layer}.",
    parts={
        "q": "attention.q_lin",
        "k": "attention.k_lin",
        "v": "attention.v_lin",
        "o": "attention.out_lin",
        "norm_1": "sa_layer_norm",
        "in": "ffn.lin1",
        "out": "ffn.lin2",
        "norm_2": "output_layer_norm",
    },
    masked=HeadNames(
        dense="vocab_transform", norm="vocab_layer_norm", out="vocab_projector"
    ),
    classes=HeadNames(dense="pre_classifier", out="classifier"),
)


def table(spec: DistilBertSpec) -> Table:
    """Names in Hugging Face files."""
    return encoder_table(spec, NAMES)


PRESETS = {
    "distilbert-base-uncased": Preset(
        DistilBertSpec(layers=6, embed=768, heads=12, mlp=3072, vocab=30522),
        "distilbert/distilbert-base-uncased",
    ),
}
DISTILBERT = Family(
    name="distilbert",
    spec=DistilBertSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
