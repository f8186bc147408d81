"""Idefics3 and SmolVLM: a SigLIP tower, a pixel shuffle and a Llama.

Laurençon et al. 2024, arXiv:2408.12637; Marafioti et al. 2025, arXiv:2504.05299. An
image is cut into tiles, and the whole image is one more. Squares of neighboring patches
are joined to one feature, which one matrix maps to the decoder. Attention is causal,
over image tokens too.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import LoadError, ShapeError
from mijax.core import site
from mijax.io import Index, Size, Tensors
from mijax.models._config import HubConfig, read_hub_config
from mijax.models._family import Family, Preset, Rule, Table
from mijax.models._init import Normal
from mijax.models._leaves import turned
from mijax.models._llama import LLAMA, smollm2
from mijax.models._llama_spec import LlamaSpec
from mijax.models._llava import text_spec
from mijax.models._parts import Placing
from mijax.models._siglip import vision_spec
from mijax.models._tiles import TiledImage
from mijax.models._towers import part, read_tower, split
from mijax.models._vision_config import read_tower_config
from mijax.models._vision_language import VisionLanguage
from mijax.models._vit import ViTSpec
from mijax.models._vit import init as init_vision
from mijax.models._vit_family import VIT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffleSpec:
    """Sizes of the projector.

    Attributes:
        read: width of the stream that it reads.
        embed: width of the decoder.
        factor: side of the squares of patches that become one feature.
    """

    read: Size
    embed: Size
    factor: Size

    # Number of blocks, as rules of tensors ask for it.
    layers = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idefics3Spec:
    """Sizes of an Idefics3 or a SmolVLM.

    Attributes:
        vision: sizes of the image tower.
        text: sizes of the decoder.
        projector: sizes of the projector.
        image_token: id of the placeholder.
        longest: the longer side of an image before it is cut into tiles, in pixels.
    """

    vision: ViTSpec
    text: LlamaSpec
    projector: ShuffleSpec
    image_token: Index
    longest: Size = 2048

    @property
    def layers(self) -> int:
        """Number of blocks of the decoder."""
        return self.text.layers


class PixelShuffle(eqx.Module):
    """`weight @ x`, where `x` joins the patches of a square along rows.

    Attributes:
        factor: side of a square, in patches.
    """

    weight: Float[Array, "joined embed"]
    factor: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "position read"]
    ) -> Float[Array, "image_token embed"]:
        """Return the features that the decoder reads, along rows.

        Raises:
            ShapeError: patches that do not make a square of squares.
        """
        count, read = x.shape
        side, factor = round(count**0.5), self.factor
        if side**2 != count or side % factor:
            raise ShapeError(
                f"An image has {count} patches, but the projector joins squares of "
                f"{factor} by {factor} of a square image: give tiles of the "
                "preprocessing that comes with the model."
            )
        squares = x.reshape(side // factor, factor, side // factor, factor, read)
        joined = squares.transpose(0, 2, 1, 3, 4).reshape(count // factor**2, -1)
        joined = site("shuffled", joined, "image_token joined")
        return joined @ self.weight


def init(spec: Idefics3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> VisionLanguage:
    """Draw random weights."""
    keys = jax.random.split(key, 3)
    return VisionLanguage(
        vision=init_vision(spec.vision, keys[0], dtype),
        projector=init_projector(spec.projector, keys[1], dtype),
        text=LLAMA.init(spec.text, keys[2], dtype),
        image_token=spec.image_token,
    )


def init_projector(
    spec: ShuffleSpec, key: PRNGKeyArray, dtype: DTypeLike
) -> PixelShuffle:
    """Draw random weights of the projector."""
    weight = Normal(key, dtype)(spec.read * spec.factor**2, spec.embed)
    return PixelShuffle(weight, spec.factor)


def projector_table(spec: ShuffleSpec) -> Table:
    """Return name and shape of the tensor of the projector."""
    shape = (spec.embed, spec.read * spec.factor**2)
    return Table((Rule("proj.weight", shape, {"weight": turned}),))


PROJECTOR = Family(
    name="idefics3_projector",
    spec=ShuffleSpec,
    init=init_projector,
    presets={},
    table=projector_table,
)
STARTS = (
    (re.compile(r"model\.vision_model\.(.+)"), "vision", ""),
    (re.compile(r"model\.connector\.modality_projection\.(.+)"), "projector", ""),
    (re.compile(r"model\.text_model\.(.+)"), "text", "model."),
    (re.compile(r"(lm_head\..+)"), "text", ""),
)


def owner(name: str) -> tuple[str, str] | None:
    """Return the tower of a tensor, and its name there."""
    for pattern, tower, start in STARTS:
        if found := pattern.fullmatch(name):
            return tower, start + found[1]
    return None


def build(
    spec: Idefics3Spec, source: Tensors, dtype: DTypeLike, place: Placing | None = None
) -> VisionLanguage:
    """Build an Idefics3 or a SmolVLM from a file.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    towers = split(source, owner)
    families = {"vision": VIT, "projector": PROJECTOR, "text": LLAMA}
    made = {
        name: read_tower(
            family, getattr(spec, name), part(towers, name, source), dtype, place=place
        )
        for name, family in families.items()
    }
    return VisionLanguage(**made, image_token=spec.image_token)


# What transformers takes where the config leaves a key out.
TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
}
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "patch_size": 32,
}
# Keys of the text config that belong to parts which these models do not have.
UNUSED = (
    "neftune_noise_alpha",
    "perceiver_config",
    "pixel_shuffle_factor",
    "use_resampler",
)
SIZES = ("max_image_size", "size", "tie_word_embeddings", "use_base_siglip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idefics3Config(HubConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "ignore_index",
            "image_seq_len",
            "projection_class",
            "use_reentrant_checkpointing",
            "use_reentrant_checkpoints",
            "vocab_size",
        ]
    )

    vision_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    text_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_token_id: Index = 128257
    scale_factor: Size = 2
    tie_word_embeddings: bool = False


def from_config(config: Mapping[str, Any], path: str) -> Idefics3Spec:
    """Read a Hugging Face config."""
    found = read_hub_config(Idefics3Config, config, path)
    words = dict(found.text_config)
    if words.pop("qk_layer_norms", False):
        raise LoadError(
            f"{path}: text_config: 'qk_layer_norms' is True, only False is supported."
        )
    if words.get("use_resampler", False):
        raise LoadError(
            f"{path}: text_config: 'use_resampler' is True, only False is supported."
        )
    words = {key: value for key, value in words.items() if key not in UNUSED}
    text = text_spec(TEXT_DEFAULTS | words, path)
    sees = dict(found.vision_config)
    longest = sees.get("size", {}).get("longest_edge", 4 * sees.get("image_size", 224))
    sees = {key: value for key, value in sees.items() if key not in SIZES}
    vision = read_tower_config(
        VISION_DEFAULTS | sees,
        f"{path}: vision_config",
        default="idefics3_vision",
        bucketed=True,
    )
    if vision.grid % found.scale_factor:
        raise LoadError(
            f"{path}: {vision.grid} patches along a side do not split into squares of "
            f"'scale_factor' {found.scale_factor}."
        )
    return Idefics3Spec(
        vision=vision,
        text=dataclasses.replace(text, tied=found.tie_word_embeddings),
        projector=ShuffleSpec(
            read=vision.embed, embed=text.embed, factor=found.scale_factor
        ),
        image_token=found.image_token_id,
        longest=longest,
    )


def reader(spec: Idefics3Spec) -> TiledImage:
    """Return the preprocessing of images."""
    count = (spec.vision.grid // spec.projector.factor) ** 2
    side = spec.vision.image
    return TiledImage(spec.longest, side, spec.image_token, count)


def smolvlm(text: LlamaSpec) -> Idefics3Spec:
    """Return a SmolVLM with the image tower of the small ones."""
    return Idefics3Spec(
        vision=vision_spec(12, 768, 12, 3072, patch=16, image=512, bucketed=True),
        text=dataclasses.replace(text, vocab=49280, tied=False),
        projector=ShuffleSpec(read=768, embed=text.embed, factor=4),
        image_token=49190,
    )


SMALL, MEDIUM = smollm2(30, 576, 9, 3, 1536), smollm2(32, 960, 15, 5, 2560)
IDEFICS3 = Family(
    name="idefics3",
    spec=Idefics3Spec,
    init=init,
    presets={
        "smolvlm-256m": Preset(smolvlm(SMALL), "HuggingFaceTB/SmolVLM-256M-Instruct"),
        "smolvlm-500m": Preset(smolvlm(MEDIUM), "HuggingFaceTB/SmolVLM-500M-Instruct"),
    },
    computed=lambda spec: {
        f"text.{name}": leaf for name, leaf in LLAMA.computed(spec.text).items()
    },
    from_config=from_config,
    build=build,
    reader=reader,
)
# The same computation under the name that later models have.
SMOLVLM = dataclasses.replace(
    IDEFICS3,
    name="smolvlm",
    presets={
        "smolvlm2-256m": Preset(
            smolvlm(SMALL), "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
        ),
        "smolvlm2-500m": Preset(
            smolvlm(MEDIUM), "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
        ),
    },
)
