"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's blocks, other rows of positions.

The table of positions begins after the row of the padding token, so that the first
token is in row `pad + 1`. Those before it are left out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Index, NonNegative
from mijax.models._bert import PARTS
from mijax.models._config import read_hub_config
from mijax.models._encoder import (
    EncoderConfig,
    EncoderNames,
    EncoderSpec,
    HeadNames,
    PlainNorms,
    computed,
    encoder,
    encoder_table,
    sizes,
)
from mijax.models._family import Family, Preset, Table
from mijax.nn import Encoder


@dataclasses.dataclass(frozen=True)
class RobertaSpec(EncoderSpec):
    """Sizes of a RoBERTa.

    Attributes:
        pad: id of the padding token; a file has `context + pad + 1` rows of positions.
    """

    segments: Index = 1
    eps: NonNegative = 1e-5
    pad: Index = 1


def init(spec: RobertaSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Encoder:
    """Draws weights of standard deviation 0.02."""
    return encoder(spec, key, dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobertaConfig(EncoderConfig):
    """Keys of config.json."""

    pad_token_id: Index = 1


def from_config(config: Mapping[str, Any], path: str) -> RobertaSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(RobertaConfig, config, path)
    pad = found.pad_token_id
    context = found.max_position_embeddings - pad - 1
    if context < 1:
        raise LoadError(
            f"{path}: 'max_position_embeddings' is {found.max_position_embeddings}, "
            f"expected more than {pad + 1}, the rows before the first token."
        )
    spec = RobertaSpec(**sizes(found, path))
    return dataclasses.replace(spec, context=context, pad=pad)


NAMES = EncoderNames(
    body="roberta.",
    layer="encoder.layer.{layer}.",
    parts=PARTS,
    masked=HeadNames(
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        out="lm_head.decoder",
        bias="lm_head.bias",
    ),
    classes=HeadNames(dense="classifier.dense", out="classifier.out_proj"),
)


def table(spec: RobertaSpec) -> Table:
    """Names in Hugging Face files."""
    unused = (r"pooler\.dense\..*",)
    return encoder_table(spec, NAMES, before=spec.pad + 1, unused=unused)


def roberta(layers: int, embed: int, heads: int) -> RobertaSpec:
    """A RoBERTa."""
    return RobertaSpec(layers, embed, heads, mlp=4 * embed, vocab=50265)


PRESETS = {
    "roberta-base": Preset(roberta(12, 768, 12), "FacebookAI/roberta-base"),
    "roberta-large": Preset(roberta(24, 1024, 16), "FacebookAI/roberta-large"),
}
ROBERTA = Family(
    name="roberta",
    spec=RobertaSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    renamed=PlainNorms,
)
