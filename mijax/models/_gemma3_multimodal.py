"""The text model of a Gemma 3 that also reads images (4B, 12B, 27B).

Its vision tower and the projection of images are left out: prompts are texts, which
every token reads as in a text model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from mijax.io import Only
from mijax.models._config import HubConfig, read_hub_config
from mijax.models._decoder import alternating
from mijax.models._family import Family, Preset, Table
from mijax.models._gemma3 import LARGEST, Gemma3Spec, computed, init
from mijax.models._gemma3 import from_config as from_text_config
from mijax.models._gemma3 import table as text_table

# What transformers takes where the config of the text model leaves a key out.
DEFAULTS = {
    "head_dim": 256,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262208,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultimodalConfig(HubConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "boi_token_index",
            "eoi_token_index",
            "image_token_index",
            "mm_tokens_per_image",
            "vision_config",
        ]
    )

    text_config: dict[str, Any]
    tie_word_embeddings: Annotated[bool, Only(True)] = True


def from_config(config: Mapping[str, Any], path: str) -> Gemma3Spec:
    """Reads the part of a Hugging Face config that describes the text model."""
    found = read_hub_config(MultimodalConfig, config, path)
    return from_text_config(DEFAULTS | found.text_config, f"{path}: text_config")


def table(spec: Gemma3Spec) -> Table:
    """Names in Hugging Face files."""
    return dataclasses.replace(
        text_table(spec),
        ignored=(r"vision_tower\..*", r"multi_modal_projector\..*"),
        prefix="language_model.",
    )


def multimodal(
    layers: int, embed: int, heads: int, kv_heads: int, mlp: int
) -> Gemma3Spec:
    """The text model of a Gemma 3."""
    largest = layers == LARGEST
    return Gemma3Spec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128 if largest else 256,
        mlp=mlp,
        vocab=262208,
        context=131072,
        rope_factor=8.0,
        query_scale=168.0 if largest else 256.0,
        windows=alternating(layers, 1024, every=6),
    )


PRESETS = {
    "gemma-3-4b": Preset(multimodal(34, 2560, 8, 4, 10240), "google/gemma-3-4b-pt"),
    "gemma-3-12b": Preset(multimodal(48, 3840, 16, 8, 15360), "google/gemma-3-12b-pt"),
    "gemma-3-27b": Preset(multimodal(62, 5376, 32, 16, 21504), "google/gemma-3-27b-pt"),
}
# Models are saved as those of the text family, whose spec it is.
GEMMA3_MULTIMODAL = Family(
    name="gemma3",
    spec=Gemma3Spec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
