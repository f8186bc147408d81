"""Gemma 3 with images (4B, 12B, 27B; Gemma team 2025, arXiv:2503.19786).

A SigLIP tower, whose patches are averaged over squares, normalized and mapped by one
matrix. Features of one image read each other in the decoder, whatever their order; all
other attention is causal. `load(..., images=True)` reads it, `load(...)` its decoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import LoadError, ShapeError
from mijax.core import site
from mijax.io import Index, NonNegative, Only, Size, Tensors
from mijax.models._config import HubConfig, check_heads, read_hub_config
from mijax.models._family import Family, Rule, Table, same
from mijax.models._gemma3 import GEMMA3, Gemma3Spec
from mijax.models._gemma3 import from_config as from_text_config
from mijax.models._gemma3_multimodal import DEFAULTS
from mijax.models._image_input import ImageInput
from mijax.models._image_text import ImageText
from mijax.models._init import Normal, rms_norm
from mijax.models._leaves import one_plus
from mijax.models._llava import owner, read_blocks
from mijax.models._parts import Placing
from mijax.models._towers import part, read_tower, split
from mijax.models._vision_config import read_tower_config
from mijax.models._vision_language import VisionLanguage
from mijax.models._vit import ViTSpec
from mijax.models._vit import init as init_vision
from mijax.nn import RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """Sizes of the projector.

    Attributes:
        read: width of the stream that it reads.
        embed: width of the decoder.
        side: features along a side of an image.
        eps: epsilon of the norm.
    """

    read: Size
    embed: Size
    side: Size
    eps: NonNegative = 1e-6

    # Number of blocks, as rules of tensors ask for it.
    layers = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3ImagesSpec:
    """Sizes of a Gemma 3 with images.

    Attributes:
        vision: sizes of the image tower.
        text: sizes of the decoder.
        projector: sizes of the projector.
        image_token: id of the token of a feature.
    """

    vision: ViTSpec
    text: Gemma3Spec
    projector: PoolSpec
    image_token: Index = 262144

    @property
    def layers(self) -> int:
        """Number of blocks of the decoder."""
        return self.text.layers


class AveragePool(eqx.Module):
    """`norm(x) @ weight`, where `x` is the mean of the patches of a square.

    Attributes:
        norm: the norm.
        weight: the matrix.
        side: features along a side of an image.
    """

    norm: RMSNorm
    weight: Float[Array, "read embed"]
    side: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "position read"]
    ) -> Float[Array, "image_token embed"]:
        """Return the features that the decoder reads, in row-major order.

        Raises:
            ShapeError: patches that do not make a square of squares.
        """
        count, read = x.shape
        patches, side = round(count**0.5), self.side
        if patches**2 != count or patches % side:
            raise ShapeError(
                f"An image has {count} patches, but the projector makes {side} by "
                f"{side} features from a square image: use the preprocessing that "
                "comes with the model."
            )
        squares = x.reshape(side, patches // side, side, patches // side, read)
        pooled = site("pooled", squares.mean((1, 3)).reshape(-1, read), AXES)
        return self.norm(pooled) @ self.weight


AXES = "image_token read"


def init(spec: Gemma3ImagesSpec, key: PRNGKeyArray, dtype: DTypeLike) -> VisionLanguage:
    """Draw random weights."""
    keys = jax.random.split(key, 3)
    return VisionLanguage(
        vision=init_vision(spec.vision, keys[0], dtype),
        projector=init_projector(spec.projector, keys[1], dtype),
        text=GEMMA3.init(spec.text, keys[2], dtype),
        image_token=spec.image_token,
        together=True,
    )


def init_projector(spec: PoolSpec, key: PRNGKeyArray, dtype: DTypeLike) -> AveragePool:
    """Draw random weights of the projector."""
    norm = rms_norm(spec.read, dtype, spec.eps)
    return AveragePool(norm, Normal(key, dtype)(spec.read, spec.embed), spec.side)


def projector_table(spec: PoolSpec) -> Table:
    """Return names and shapes of the tensors of the projector."""
    shape = (spec.read, spec.embed)
    return Table(
        (
            Rule("mm_soft_emb_norm.weight", shape[:1], {"norm.weight": one_plus}),
            Rule("mm_input_projection_weight", shape, {"weight": same}),
        )
    )


PROJECTOR = Family(
    name="gemma3_projector",
    spec=PoolSpec,
    init=init_projector,
    presets={},
    table=projector_table,
)


def build(
    spec: Gemma3ImagesSpec,
    source: Tensors,
    dtype: DTypeLike,
    place: Placing | None = None,
) -> VisionLanguage:
    """Build a Gemma 3 with images from a file.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    # The names are those of LLaVA; a head for pooling is not read.
    towers = split(source, owner)
    vision = read_blocks(spec.vision)
    families = {"vision": vision, "projector": PROJECTOR, "text": GEMMA3}
    made = {
        name: read_tower(
            family, getattr(spec, name), part(towers, name, source), dtype, place=place
        )
        for name, family in families.items()
    }
    return VisionLanguage(**made, image_token=spec.image_token, together=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3ImagesConfig(HubConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["boi_token_index", "eoi_token_index"]
    )

    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    mm_tokens_per_image: Size = 256
    image_token_index: Index = 262144
    tie_word_embeddings: Annotated[bool, Only(True)] = True


def from_config(config: Mapping[str, Any], path: str) -> Gemma3ImagesSpec:
    """Read a Hugging Face config."""
    found = read_hub_config(Gemma3ImagesConfig, config, path)
    at = f"{path}: text_config"
    text = from_text_config(DEFAULTS | found.text_config, at)
    check_heads(text, at)
    at = f"{path}: vision_config"
    vision = read_tower_config(found.vision_config, at, default="siglip_vision_model")
    side = round(found.mm_tokens_per_image**0.5)
    if side**2 != found.mm_tokens_per_image or vision.grid % side:
        raise LoadError(
            f"{path}: {vision.grid} patches along a side do not split into a square of "
            f"'mm_tokens_per_image' {found.mm_tokens_per_image} features."
        )
    projector = PoolSpec(read=vision.embed, embed=text.embed, side=side, eps=vision.eps)
    return Gemma3ImagesSpec(
        vision=vision,
        text=text,
        projector=projector,
        image_token=found.image_token_index,
    )


def reader(spec: Gemma3ImagesSpec) -> ImageText:
    """Return the image preprocessing, without pan and scan."""
    side = spec.vision.image
    return ImageText(
        ImageInput((0.5,) * 3, (0.5,) * 3, resize=(side, side)),
        token=spec.image_token,
        count=spec.projector.side**2,
        placeholder="<start_of_image>",
        feature="<image_soft_token>",
        before="\n\n<start_of_image>",
        after="<end_of_image>\n\n",
    )


# The name of the family in folders that mijax wrote.
GEMMA3_IMAGES = Family(
    name="gemma3_images",
    spec=Gemma3ImagesSpec,
    init=init,
    presets={},
    computed=lambda spec: {
        f"text.{name}": leaf for name, leaf in GEMMA3.computed(spec.text).items()
    },
    from_config=from_config,
    build=build,
    reader=reader,
)
