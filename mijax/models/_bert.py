"""BERT (Devlin et al. 2019, arXiv:1810.04805): an encoder with norms after each write.

The pooler is the first half of a head of classes; without one it is left out, as is the
head for the next sentence.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.models._config import read_hub_config
from mijax.models._encoder import (
    CLASSES,
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
class BertSpec(EncoderSpec):
    """Sizes of a BERT."""


def init(spec: BertSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Encoder:
    """Draws weights of standard deviation 0.02."""
    return encoder(spec, key, dtype)


def from_config(config: Mapping[str, Any], path: str) -> BertSpec:
    """Reads a Hugging Face config."""
    return BertSpec(**sizes(read_hub_config(EncoderConfig, config, path), path))


PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "norm_1": "attention.output.LayerNorm",
    "in": "intermediate.dense",
    "out": "output.dense",
    "norm_2": "output.LayerNorm",
}
NAMES = EncoderNames(
    body="bert.",
    layer="encoder.layer.{layer}.",
    parts=PARTS,
    masked=HeadNames(
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        out="cls.predictions.decoder",
        bias="cls.predictions.bias",
    ),
    classes=HeadNames(dense="pooler.dense", out="classifier"),
)
NEXT, POOLER = r"cls\.seq_relationship\..*", r"pooler\.dense\..*"


def table(spec: BertSpec) -> Table:
    """Names in Hugging Face files."""
    unused = (NEXT,) if spec.head == CLASSES else (NEXT, POOLER)
    return encoder_table(spec, NAMES, unused=unused)


PRESETS = {
    "bert-base-uncased": Preset(
        BertSpec(layers=12, embed=768, heads=12, mlp=3072, vocab=30522),
        "google-bert/bert-base-uncased",
    ),
    "bert-large-uncased": Preset(
        BertSpec(layers=24, embed=1024, heads=16, mlp=4096, vocab=30522),
        "google-bert/bert-large-uncased",
    ),
}
BERT = Family(
    name="bert",
    spec=BertSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    renamed=PlainNorms,
)
