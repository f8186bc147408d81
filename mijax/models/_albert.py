"""ALBERT (Lan et al. 2020, arXiv:1909.11942): one block for all layers.

Its weights are repeated for every layer when they are loaded, so that edits of weights
may change one layer only. Embeddings are smaller than the stream and mapped into it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Only, Size
from mijax.models._config import Activation, read_hub_config
from mijax.models._encoder import (
    CLASSES,
    EncoderConfig,
    EncoderNames,
    EncoderSpec,
    HeadNames,
    computed,
    encoder,
    encoder_table,
    sizes,
)
from mijax.models._family import Family, Preset, Table
from mijax.nn import Encoder


@dataclasses.dataclass(frozen=True)
class AlbertSpec(EncoderSpec):
    """Sizes of an ALBERT.

    Attributes:
        token_embed: size of the embeddings of tokens, positions and segments.
    """

    activation: Activation = "gelu_new"
    token_embed: Size = 128


def init(spec: AlbertSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Encoder:
    """Draws weights of standard deviation 0.02; layers differ."""
    return encoder(spec, key, dtype, size=spec.token_embed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlbertConfig(EncoderConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = EncoderConfig.ignored | frozenset(
        ["down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"]
    )

    embedding_size: Size = 128
    hidden_act: Activation = "gelu_new"
    inner_group_num: Annotated[int, Only(1)] = 1
    num_hidden_groups: Annotated[int, Only(1)] = 1


def from_config(config: Mapping[str, Any], path: str) -> AlbertSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(AlbertConfig, config, path)
    return AlbertSpec(**sizes(found, path), token_embed=found.embedding_size)


NAMES = EncoderNames(
    body="albert.",
    layer="encoder.albert_layer_groups.0.albert_layers.0.",
    parts={
        "q": "attention.query",
        "k": "attention.key",
        "v": "attention.value",
        "o": "attention.dense",
        "norm_1": "attention.LayerNorm",
        "in": "ffn",
        "out": "ffn_output",
        "norm_2": "full_layer_layer_norm",
    },
    masked=HeadNames(
        dense="predictions.dense",
        norm="predictions.LayerNorm",
        out="predictions.decoder",
        bias="predictions.bias",
    ),
    classes=HeadNames(dense="pooler", out="classifier"),
    project="encoder.embedding_hidden_mapping_in",
)
ORDER, POOLER = r"sop_classifier\..*", r"pooler\.(weight|bias)"


def table(spec: AlbertSpec) -> Table:
    """Names in Hugging Face files; one tensor fills all layers."""
    unused = (ORDER,) if spec.head == CLASSES else (ORDER, POOLER)
    return encoder_table(spec, NAMES, size=spec.token_embed, unused=unused)


PRESETS = {
    "albert-base-v2": Preset(
        AlbertSpec(layers=12, embed=768, heads=12, mlp=3072, vocab=30000),
        "albert/albert-base-v2",
    ),
}
ALBERT = Family(
    name="albert",
    spec=AlbertSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
