"""Image tower configs in Hugging Face configs: CLIP and SigLIP."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mijax._errors import LoadError
from mijax.io import NonNegative, Size
from mijax.models._config import Activation, HubConfig, divide, read_hub_config
from mijax.models._vit import ViTSpec

IGNORED = frozenset(
    [
        "attention_dropout",
        "dropout",
        "initializer_factor",
        "projection_dim",
        "vision_use_head",
        "vocab_size",
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig(HubConfig):
    """Keys shared by both kinds of towers."""

    ignored: ClassVar[frozenset[str]] = IGNORED

    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    num_channels: Size = 3
    image_size: Size = 224
    patch_size: Size
    hidden_act: Activation
    layer_norm_eps: NonNegative


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTowerConfig(TowerConfig):
    """Keys of a CLIP tower, with the defaults of transformers."""

    patch_size: Size = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: NonNegative = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPTowerConfig(TowerConfig):
    """Keys of a SigLIP tower, with the defaults of transformers."""

    patch_size: Size = 16
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: NonNegative = 1e-6


# Fields that differ between the towers' specs.
CLIP = {"pre_norm": True, "patch_bias": False}
SIGLIP = {"class_token": False, "positioned": 0}
KINDS: dict[str, tuple[type[TowerConfig], dict[str, Any]]] = {
    "clip_vision_model": (CLIPTowerConfig, CLIP),
    "siglip_vision_model": (SigLIPTowerConfig, SIGLIP),
    "idefics3_vision": (SigLIPTowerConfig, SIGLIP),
    "idefics3": (SigLIPTowerConfig, SIGLIP),
    "smolvlm_vision": (SigLIPTowerConfig, SIGLIP),
}


def read_tower_config(
    config: Mapping[str, Any], path: str, *, default: str, **more: Any
) -> ViTSpec:
    """Read the config of an image tower.

    Args:
        config: its part of config.json.
        path: the file, named by errors.
        default: kind of tower if the config does not specify one.
        **more: further fields of the spec.

    Returns:
        The spec.

    Raises:
        LoadError: a tower that is not supported, or a key that is unknown.
    """
    kind = config.get("model_type", default)
    if kind not in KINDS:
        raise LoadError(
            f"{path}: the image tower is {kind!r}; supported are "
            f"{', '.join(sorted(KINDS))}."
        )
    keys, fields = KINDS[kind]
    found = read_hub_config(keys, config, path)
    divide(found.hidden_size, found.num_attention_heads, path)
    divide(found.image_size, found.patch_size, path)
    given: dict[str, Any] = {
        "layers": found.num_hidden_layers,
        "embed": found.hidden_size,
        "heads": found.num_attention_heads,
        "mlp": found.intermediate_size,
        "patch": found.patch_size,
        "image": found.image_size,
        "channels": found.num_channels,
        "activation": found.hidden_act,
        "eps": found.layer_norm_eps,
    }
    return ViTSpec(**given | fields | more)
