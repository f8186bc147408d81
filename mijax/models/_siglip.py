"""SigLIP and SigLIP 2: an image and a text tower trained with a sigmoid pair loss.

Zhai et al. 2023, arXiv:2303.15343; Tschannen et al. 2025, arXiv:2502.14786. The image
tower has no class token and pools by attention. The text tower reads in both directions
and pools the last position. Weight files have the names of Hugging Face.
"""

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ShapeError
from mijax.io import Only, Size, Tensors
from mijax.models._clip import POSITION_IDS, init_text, text_rules
from mijax.models._config import ACTIVATIONS
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._image_input import ImageInput
from mijax.models._parts import Placing
from mijax.models._towers import ZeroShot, read_pair, unit, zero_shot
from mijax.models._vit import VisionTransformer, ViTSpec
from mijax.models._vit import init as init_vision
from mijax.models._vit_family import VIT
from mijax.nn import Transformer

TOWERS = {"vision": ("vision_model.",), "text": ("text_model.",)}
SCALARS = ("logit_scale", "logit_bias")
TANH = "gelu_pytorch_tanh"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPTextSpec:
    """Sizes of the text tower.

    Attributes:
        layers: number of blocks.
        embed: width of the residual stream.
        heads: attention heads of a block.
        mlp: neurons of a block.
        projection: features that texts and images share.
        vocab: number of tokens.
        context: number of tokens to which every text is padded.
        activation: activation of the MLPs.
        eps: epsilon of the norms.
    """

    layers: Size
    embed: Size
    heads: Size
    mlp: Size
    projection: Size
    vocab: Size = 32000
    context: Size = 64
    activation: Annotated[str, Only(*ACTIVATIONS)] = TANH
    eps: float = 1e-6

    # Components of the blocks in both towers.
    tied, qkv_bias, scale = False, True, None
    key_bias, gated, theta = True, False, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPSpec:
    """Sizes of both towers.

    Attributes:
        vision: sizes of the image tower.
        text: sizes of the text tower.
    """

    vision: ViTSpec
    text: SigLIPTextSpec

    @property
    def layers(self) -> int:
        """Number of blocks of the image tower."""
        return self.vision.layers


class SigLIP(eqx.Module):
    """Both towers of a SigLIP.

    The logit of a pair is `exp(log_scale) * cosine + bias`, and its sigmoid the
    probability that text and image belong together.

    Attributes:
        vision: the image tower; its output is the site `pooled`.
        text: the text tower; its logits are projections at every position.
        log_scale: logarithm of the factor of similarities.
        bias: added to every logit.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> sizes = (1, 8, 2, 16)
        >>> spec = siglip_spec(sizes, sizes, patch=4, image=8, context=3)
        >>> model = mijax.models.init_image_model(spec, jax.random.key(0))
        >>> zero_shot = model.zero_shot(jnp.array([[1, 5, 9], [1, 6, 9]]))
        >>> zero_shot(jnp.ones((3, 8, 8))).shape
        (2,)
    """

    vision: VisionTransformer
    text: Transformer
    log_scale: Float[Array, ""]
    bias: Float[Array, ""]

    def image_features(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, " feature"]:
        """Return the features of one preprocessed image, with norm 1."""
        return unit(self.vision(image))

    def text_features(self, tokens: Int[Array, " seq"]) -> Float[Array, " feature"]:
        """Return the features of one text, with norm 1.

        Args:
            tokens: token ids, padded to the length used in training
                (`model.text.context`). The last position is pooled, and padding is read
                like any other token.

        Raises:
            ShapeError: a different number of tokens.
        """
        if tokens.shape[-1] != self.text.context:
            raise ShapeError(
                f"A text has {tokens.shape[-1]} tokens, but SigLIP reads the last of "
                f"{self.text.context}: pad every text to {self.text.context} tokens."
            )
        projected, _ = self.text(tokens)
        return unit(projected[-1])

    def zero_shot(self, tokens: Int[Array, "class seq"]) -> ZeroShot:
        """Return an image classifier whose classes are texts.

        Args:
            tokens: token ids of each class, such as of "a photo of a cat", padded.

        Returns:
            A model of one image that `mijax.model` takes. The sigmoid of a logit is a
            probability; those of all classes do not sum to 1.
        """
        scale, bias = self.log_scale, self.bias
        return zero_shot(self.vision, self.text_features, tokens, scale, bias)


def init(spec: SigLIPSpec, key: PRNGKeyArray, dtype: DTypeLike) -> SigLIP:
    """Draw random weights; scale and bias have their initial training values."""
    keys = jax.random.split(key)
    vision = init_vision(spec.vision, keys[0], dtype)
    text = init_siglip_text(spec.text, keys[1], dtype)
    scale, bias = jnp.log(jnp.array(10.0, dtype)), jnp.array(-10.0, dtype)
    return SigLIP(vision, text, scale, bias)


def init_siglip_text(
    spec: SigLIPTextSpec, key: PRNGKeyArray, dtype: DTypeLike
) -> Transformer:
    """Draw random weights of the text tower."""
    bias = jnp.zeros(spec.projection, dtype)
    return init_text(spec, key, dtype, causal=False, bias=bias)


def text_table(spec: SigLIPTextSpec) -> Table:
    """Return names and shapes of the tensors of the text tower."""
    shape = (spec.projection, spec.embed)
    head = (
        Rule("text_model.head.weight", shape, {"unembedding.weight": same}),
        Rule("text_model.head.bias", shape[:1], {"unembedding.bias": same}),
    )
    return Table((*text_rules(spec), *head), ignored=(POSITION_IDS,))


TEXT = Family(
    name="siglip_text",
    spec=SigLIPTextSpec,
    init=init_siglip_text,
    presets={},
    table=text_table,
)


def build(
    spec: SigLIPSpec, source: Tensors, dtype: DTypeLike, place: Placing | None = None
) -> SigLIP:
    """Build a SigLIP from a file.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    found = read_pair(source, spec, (VIT, TEXT), TOWERS, SCALARS, dtype)
    vision, text, (scale, bias) = found
    return SigLIP(vision, text, scale, bias)


def siglip_spec(
    vision: tuple[int, int, int, int],
    text: tuple[int, int, int, int],
    *,
    patch: int,
    image: int = 224,
    **more: Any,
) -> SigLIPSpec:
    """Return a spec from layers, width, heads and neurons of each tower.

    Args:
        vision: sizes of the image tower.
        text: sizes of the text tower.
        patch: side of a patch, in pixels.
        image: side of an image, in pixels.
        **more: vocabulary and context of the text tower.
    """
    tower = vision_spec(*vision, patch=patch, image=image, pool="attention")
    layers, embed, heads, mlp = text
    words = SigLIPTextSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        mlp=mlp,
        projection=tower.embed,
        **more,
    )
    return SigLIPSpec(vision=tower, text=words)


def vision_spec(layers: int, embed: int, heads: int, mlp: int, **more: Any) -> ViTSpec:
    """Return the spec of an image tower of a SigLIP."""
    return ViTSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        mlp=mlp,
        class_token=False,
        positioned=0,
        activation=TANH,
        **more,
    )


def pixels(side: int) -> ImageInput:
    """Return the preprocessing for images of a side."""
    return ImageInput((0.5,) * 3, (0.5,) * 3, resize=(side, side), method="cubic")


BASE, LARGE = (12, 768, 12, 3072), (24, 1024, 16, 4096)
SO400M = (27, 1152, 16, 4304)
SIZES = {
    "siglip-base-patch16-224": (BASE, 16, 224, 32000),
    "siglip-base-patch16-256": (BASE, 16, 256, 32000),
    "siglip-large-patch16-256": (LARGE, 16, 256, 32000),
    "siglip2-base-patch16-224": (BASE, 16, 224, 256000),
    "siglip2-large-patch16-256": (LARGE, 16, 256, 256000),
    "siglip2-so400m-patch16-256": (SO400M, 16, 256, 256000),
}
SIGLIP = Family(
    name="siglip",
    spec=SigLIPSpec,
    init=init,
    build=build,
    presets={
        name: Preset(
            siglip_spec(sizes, sizes, patch=patch, image=side, vocab=vocab),
            input=pixels(side),
        )
        for name, (sizes, patch, side, vocab) in SIZES.items()
    },
)
