"""CLIP (Radford et al. 2021, arXiv:2103.00020): an image tower and a text tower.

The image tower is a `VisionTransformer`, the text tower a `mijax.nn.Transformer`, so
that each has the sites of its kind. Weight files have the names of Hugging Face.
"""

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax.io import Only, Size, Tensors
from mijax.models._config import ACTIVATIONS
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._image_input import ImageInput
from mijax.models._init import Normal, layer_norm
from mijax.models._leaves import plain_names, rules
from mijax.models._parts import Placing
from mijax.models._towers import ZeroShot, read_pair, unit, zero_shot
from mijax.models._vit import VisionTransformer, ViTSpec
from mijax.models._vit import init as init_vision
from mijax.models._vit_blocks import blocks
from mijax.models._vit_family import VIT
from mijax.nn import Embedding, Transformer, Unembedding

TOWERS = {
    "vision": ("vision_model.", "visual_projection."),
    "text": ("text_model.", "text_projection."),
}
SCALE = "logit_scale"
POSITION_IDS = r"text_model\..*position_ids"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextSpec:
    """Sizes of the text tower.

    Attributes:
        layers: number of blocks.
        embed: width of the residual stream.
        heads: attention heads of a block.
        mlp: neurons of a block.
        projection: features that texts and images share.
        vocab: number of tokens.
        context: most tokens of a text.
        activation: activation of the MLPs.
        eps: epsilon of the norms.
    """

    layers: Size
    embed: Size
    heads: Size
    mlp: Size
    projection: Size
    vocab: Size = 49408
    context: Size = 77
    activation: Annotated[str, Only(*ACTIVATIONS)] = "quick_gelu"
    eps: float = 1e-5

    # What blocks of both towers are made of.
    tied, qkv_bias, scale = False, True, None
    key_bias, gated, theta = True, False, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPSpec:
    """Sizes of both towers.

    Attributes:
        vision: sizes of the image tower.
        text: sizes of the text tower.
    """

    vision: ViTSpec
    text: CLIPTextSpec

    @property
    def layers(self) -> int:
        """Number of blocks of the image tower."""
        return self.vision.layers


class CLIP(eqx.Module):
    """Both towers of a CLIP.

    Attributes:
        vision: the image tower; its output is the site `projected`.
        text: the text tower; its logits are projections at every position.
        log_scale: logarithm of the factor of similarities.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> sizes = (1, 8, 2, 16)
        >>> spec = clip_spec(sizes, sizes, patch=4, image=8, shared=4)
        >>> model = mijax.models.init_image_model(spec, jax.random.key(0))
        >>> zero_shot = model.zero_shot(jnp.array([[1, 5, 9], [1, 6, 9]]))
        >>> zero_shot(jnp.ones((3, 8, 8))).shape
        (2,)
    """

    vision: VisionTransformer
    text: Transformer
    log_scale: Float[Array, ""]

    def image_features(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, " feature"]:
        """Return the features of one preprocessed image, of length 1."""
        return unit(self.vision(image))

    def text_features(self, tokens: Int[Array, " seq"]) -> Float[Array, " feature"]:
        """Return the features of one text, of length 1.

        Args:
            tokens: token ids; the text ends at its largest id, the end token. What
                comes after it does not matter.
        """
        projected, _ = self.text(tokens)
        return unit(projected[tokens.argmax()])

    def zero_shot(self, tokens: Int[Array, "class seq"]) -> "ZeroShot":
        """Return a classifier of images whose classes are texts.

        Args:
            tokens: token ids of each class, such as of "a photo of a cat".

        Returns:
            A model of one image that `mijax.model` takes.
        """
        return zero_shot(self.vision, self.text_features, tokens, self.log_scale)


def init(spec: CLIPSpec, key: PRNGKeyArray, dtype: DTypeLike) -> CLIP:
    """Draw random weights."""
    keys = jax.random.split(key)
    vision = _image_tower(init_vision(spec.vision, keys[0], dtype))
    text = init_text(spec.text, keys[1], dtype)
    return CLIP(vision, text, jnp.log(jnp.array(1 / 0.07, dtype)))


def _image_tower(model: VisionTransformer) -> VisionTransformer:
    return dataclasses.replace(model, output=("projected", "feature"))


def init_text(
    spec: Any,
    key: PRNGKeyArray,
    dtype: DTypeLike,
    *,
    causal: bool = True,
    bias: Array | None = None,
) -> Transformer:
    """Draw random weights of a text tower, whose head may have a bias."""
    normal = Normal(key, dtype)
    return Transformer(
        embedding=Embedding(normal(spec.vocab, spec.embed)),
        positions=Embedding(normal(spec.context, spec.embed, scale=0.01)),
        blocks=blocks(spec, normal, dtype, causal=causal),
        norm=layer_norm(spec.embed, dtype, spec.eps),
        unembedding=Unembedding(normal(spec.projection, spec.embed), bias),
        context=spec.context,
    )


def text_rules(spec: Any) -> tuple[Rule, ...]:
    """Return names and shapes of the tensors of a text tower, all but its head."""
    top = {
        "embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positions.weight": "text_model.embeddings.position_embedding.weight",
        "norm.weight": "text_model.final_layer_norm.weight",
        "norm.bias": "text_model.final_layer_norm.bias",
    }
    parts = {x: f"self_attn.{x}_proj" for x in "qkv"} | {"o": "self_attn.out_proj"}
    parts |= {"norm_1": "layer_norm1", "norm_2": "layer_norm2"}
    parts |= {"in": "mlp.fc1", "out": "mlp.fc2"}
    names = plain_names(top, "text_model.encoder.layers.{layer}.", parts)
    return rules(spec, names)


def text_table(spec: CLIPTextSpec) -> Table:
    """Return names and shapes of the tensors of the text tower."""
    shape = (spec.projection, spec.embed)
    head = Rule("text_projection.weight", shape, {"unembedding.weight": same})
    return Table((*text_rules(spec), head), ignored=(POSITION_IDS,))


TEXT = Family(
    name="clip_text",
    spec=CLIPTextSpec,
    init=init_text,
    presets={},
    table=text_table,
)


def build(
    spec: CLIPSpec, source: Tensors, dtype: DTypeLike, place: Placing | None = None
) -> CLIP:
    """Build a CLIP from a file.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    found = read_pair(source, spec, (VIT, TEXT), TOWERS, (SCALE,), dtype)
    vision, text, (scale,) = found
    return CLIP(_image_tower(vision), text, scale)


def clip_spec(
    vision: tuple[int, int, int, int],
    text: tuple[int, int, int, int],
    *,
    patch: int,
    shared: int,
    image: int = 224,
    activation: str = "quick_gelu",
    **more: Any,
) -> CLIPSpec:
    """Return a spec from layers, width, heads and neurons of each tower.

    Args:
        vision: sizes of the image tower.
        text: sizes of the text tower.
        patch: side of a patch, in pixels.
        shared: features that texts and images share.
        image: side of an image, in pixels.
        activation: `quick_gelu` for weights of OpenAI, `gelu` for those of LAION.
        **more: vocabulary and context of the text tower.
    """
    layers, embed, heads, mlp = vision
    tower = ViTSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        mlp=mlp,
        patch=patch,
        image=image,
        classes=shared,
        activation=activation,
        eps=1e-5,
        pre_norm=True,
        patch_bias=False,
        head_bias=False,
    )
    layers, embed, heads, mlp = text
    words = CLIPTextSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        mlp=mlp,
        projection=shared,
        activation=activation,
        **more,
    )
    return CLIPSpec(vision=tower, text=words)


PIXELS = ImageInput(
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    resize=224,
    crop=224,
    method="cubic",
)
BASE, BASE_TEXT = (12, 768, 12, 3072), (12, 512, 8, 2048)
LARGE, LARGE_TEXT = (24, 1024, 16, 4096), (12, 768, 12, 3072)
CLIP_FAMILY = Family(
    name="clip",
    spec=CLIPSpec,
    init=init,
    build=build,
    presets={
        f"clip-vit-{name}": Preset(spec, input=PIXELS)
        for name, spec in {
            "base-patch32": clip_spec(BASE, BASE_TEXT, patch=32, shared=512),
            "base-patch16": clip_spec(BASE, BASE_TEXT, patch=16, shared=512),
            "large-patch14": clip_spec(LARGE, LARGE_TEXT, patch=14, shared=768),
        }.items()
    },
)
