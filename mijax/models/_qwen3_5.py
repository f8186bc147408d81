"""Qwen3.5 (Qwen team 2026), the text model: gated delta networks, attention, MLPs.

Three layers of four have a gated delta network (Yang et al. 2024, arXiv:2412.06464),
the fourth attention with an output gate, as in Qwen3-Next. MLPs are dense. Positions of
a text are equal along all axes of its rotation, so that is an ordinary one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.models._config import read_hub_config
from mijax.models._decoder import gated_mlp
from mijax.models._family import Family, Rule, Table
from mijax.models._gated_delta import (
    MIXER,
    HybridConfig,
    HybridSpec,
    computed,
    hybrid_decoder,
    hybrid_rules,
    hybrid_sizes,
)
from mijax.models._leaves import NAMES, tied_head, turned
from mijax.models._mamba import one_rule
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class Qwen35Spec(HybridSpec):
    """Sizes of a Qwen3.5 text model."""


def init(spec: Qwen35Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return hybrid_decoder(spec, key, dtype, gated_mlp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen35Config(HybridConfig):
    """Keys of config.json."""

    # How many layers predict further tokens, which no file of a text model has.
    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"]
    )


def from_config(config: Mapping[str, Any], path: str) -> Qwen35Spec:
    """Reads a Hugging Face config."""
    return Qwen35Spec(**hybrid_sizes(read_hub_config(Qwen35Config, config, path), path))


def table(spec: Qwen35Spec) -> Table:
    """Names in Hugging Face files."""
    return Table(
        rules=hybrid_rules(spec, NAMES, projections(spec)),
        ignored=(r"mtp\..*",),
        same=tied_head(spec, NAMES),
    )


def projections(spec: Qwen35Spec) -> list[Rule]:
    """Returns the rules of the projections of a delta network."""
    heads = spec.value_heads
    layout = {
        "w_in": ("in_proj_qkv", spec.mixed),
        "w_gate": ("in_proj_z", spec.channels),
        "w_beta": ("in_proj_b", heads),
        "w_alpha": ("in_proj_a", heads),
    }
    return [
        one_rule(leaf, f"{name}.weight", (count, spec.embed), turned, MIXER)
        for leaf, (name, count) in layout.items()
    ]


QWEN3_5 = Family(
    name="qwen3_5_text",
    spec=Qwen35Spec,
    init=init,
    presets={},
    computed=computed,
    from_config=from_config,
    table=table,
)
