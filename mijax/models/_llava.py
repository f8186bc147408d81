"""LLaVA 1.5 (Liu et al. 2023, arXiv:2310.03744): a CLIP tower, an MLP and a Llama.

The decoder reads the stream of the image tower before its last block, without the class
token. Blocks that it does not read are left out. Attention is causal, over image tokens
too.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import LoadError
from mijax.core import site
from mijax.io import Index, Only, Size, Tensors
from mijax.models._clip import PIXELS
from mijax.models._config import (
    ACTIVATIONS,
    Activation,
    HubConfig,
    check_heads,
    read_hub_config,
)
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._image_text import ImageText
from mijax.models._init import Normal
from mijax.models._leaves import turned
from mijax.models._llama import LLAMA
from mijax.models._llama_spec import LlamaSpec
from mijax.models._llama_spec import from_config as from_text_config
from mijax.models._parts import Placing
from mijax.models._towers import part, read_tower, split
from mijax.models._vision_config import read_tower_config
from mijax.models._vision_language import VisionLanguage
from mijax.models._vit import ViTSpec
from mijax.models._vit import init as init_vision
from mijax.models._vit_family import VIT
from mijax.nn.internal import Activation as Function


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """Sizes of the projector.

    Attributes:
        read: width of the stream that it reads.
        embed: width of the decoder.
        skip: tokens before the patches that it leaves out.
        activation: between its matrices.
        bias: whether its matrices have biases.
    """

    read: Size
    embed: Size
    skip: Index = 1
    activation: Annotated[str, Only(*ACTIVATIONS)] = "gelu"
    bias: bool = True

    # Number of blocks, as rules of tensors ask for it.
    layers = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaSpec:
    """Sizes of a LLaVA.

    Attributes:
        vision: sizes of the image tower, with the blocks that are read.
        text: sizes of the decoder.
        projector: sizes of the projector.
        image_token: id of the placeholder.
    """

    vision: ViTSpec
    text: LlamaSpec
    projector: ProjectorSpec
    image_token: Index = 32000

    @property
    def layers(self) -> int:
        """Number of blocks of the decoder."""
        return self.text.layers


class Projector(eqx.Module):
    """`w_out @ activation(w_in @ x + b_in) + b_out` at every patch.

    Attributes:
        skip: tokens before the patches, which are left out.
    """

    w_in: Float[Array, "read embed"]
    w_out: Float[Array, "embed embed"]
    b_in: Float[Array, " embed"] | None
    b_out: Float[Array, " embed"] | None
    activation: Function
    skip: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "position read"]
    ) -> Float[Array, "image_token embed"]:
        """Return the features that the decoder reads."""
        pre = x[self.skip :] @ self.w_in
        pre = pre if self.b_in is None else pre + self.b_in
        pre = site("projector_pre", pre, "image_token mlp")
        post = site("projector_post", self.activation(pre), "image_token mlp")
        out = post @ self.w_out
        return out if self.b_out is None else out + self.b_out


def init(spec: LlavaSpec, key: PRNGKeyArray, dtype: DTypeLike) -> VisionLanguage:
    """Draw random weights."""
    keys = jax.random.split(key, 3)
    return VisionLanguage(
        vision=init_vision(spec.vision, keys[0], dtype),
        projector=init_projector(spec.projector, keys[1], dtype),
        text=LLAMA.init(spec.text, keys[2], dtype),
        image_token=spec.image_token,
    )


def init_projector(
    spec: ProjectorSpec, key: PRNGKeyArray, dtype: DTypeLike
) -> Projector:
    """Draw random weights of the projector."""
    normal, embed = Normal(key, dtype), spec.embed
    return Projector(
        w_in=normal(spec.read, embed),
        w_out=normal(embed, embed),
        b_in=jnp.zeros(embed, dtype) if spec.bias else None,
        b_out=jnp.zeros(embed, dtype) if spec.bias else None,
        activation=ACTIVATIONS[spec.activation],
        skip=spec.skip,
    )


def projector_table(spec: ProjectorSpec) -> Table:
    """Return names and shapes of the tensors of the projector."""
    shapes = {"1": (spec.embed, spec.read), "2": (spec.embed, spec.embed)}
    found = []
    for (number, shape), leaf in zip(shapes.items(), ("in", "out"), strict=True):
        found.append(Rule(f"linear_{number}.weight", shape, {f"w_{leaf}": turned}))
        if spec.bias:
            name = f"linear_{number}.bias"
            found.append(Rule(name, shape[:1], {f"b_{leaf}": same}))
    return Table(tuple(found))


PROJECTOR = Family(
    name="llava_projector",
    spec=ProjectorSpec,
    init=init_projector,
    presets={},
    table=projector_table,
)
# Files of several versions of transformers.
STARTS = (
    (re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)"), "vision", ""),
    (re.compile(r"(?:model\.)?multi_modal_projector\.(.+)"), "projector", ""),
    (re.compile(r"(?:language_model\.)?(lm_head\..+)"), "text", ""),
    (re.compile(r"language_model\.(model\..+)"), "text", ""),
    (re.compile(r"model\.language_model\.(.+)"), "text", "model."),
)


def owner(name: str) -> tuple[str, str] | None:
    """Return the tower of a tensor, and its name there."""
    for pattern, tower, start in STARTS:
        if found := pattern.fullmatch(name):
            return tower, start + found[1]
    return None


def build(
    spec: LlavaSpec, source: Tensors, dtype: DTypeLike, place: Placing | None = None
) -> VisionLanguage:
    """Build a LLaVA from a file.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    towers = split(source, owner)
    families = {"vision": read_blocks(spec.vision), "projector": PROJECTOR}
    made = {
        name: read_tower(
            families.get(name, LLAMA),
            getattr(spec, name),
            part(towers, name, source),
            dtype,
            place=place,
        )
        for name in ("vision", "projector", "text")
    }
    return VisionLanguage(**made, image_token=spec.image_token)


def read_blocks(spec: ViTSpec) -> Family:
    """Return the family of an image tower of which some blocks are not read."""
    assert VIT.table is not None
    # Ours begin with `layers.N.`; those of the last norm and pooling are not read.
    later = rf"layers\.(?!(?:{'|'.join(map(str, range(spec.layers)))})\.).*"
    unread = (later, *(() if spec.final_norm else (r"norm\..*",)), r"head\..*")
    table = dataclasses.replace(VIT.table(spec), ignored=unread)
    return dataclasses.replace(VIT, table=lambda spec: table)


# What transformers takes where the config of the text model leaves a key out.
TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
}
VISION_DEFAULTS = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaConfig(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["ignore_index", "image_seq_length", "vocab_size"]
    )

    vision_config: dict[str, Any] = dataclasses.field(
        default_factory=lambda: dict(VISION_DEFAULTS)
    )
    text_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_token_index: Index | None = None
    image_token_id: Index | None = None
    projector_hidden_act: Activation = "gelu"
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False


def from_config(config: Mapping[str, Any], path: str) -> LlavaSpec:
    """Read a Hugging Face config."""
    found = read_hub_config(LlavaConfig, config, path)
    text = text_spec(TEXT_DEFAULTS | found.text_config, path)
    at = f"{path}: vision_config"
    vision = read_tower_config(found.vision_config, at, default="clip_vision_model")
    blocks = found.vision_feature_layer
    blocks += vision.layers + 1 if blocks < 0 else 0
    if not 1 <= blocks <= vision.layers:
        raise LoadError(
            f"{path}: 'vision_feature_layer' is {found.vision_feature_layer}, but the "
            f"image tower has {vision.layers} blocks: give 1 to {vision.layers}, or "
            f"-{vision.layers} to -1."
        )
    places = (found.image_token_index, found.image_token_id)
    image_token = next((one for one in places if one is not None), 32000)
    tied = found.tie_word_embeddings or text.tied
    return LlavaSpec(
        vision=dataclasses.replace(vision, layers=blocks, final_norm=False),
        text=dataclasses.replace(text, tied=tied),
        projector=ProjectorSpec(
            read=vision.embed,
            embed=text.embed,
            # The first token is left out even where it is a patch.
            skip=int(found.vision_feature_select_strategy == "default"),
            activation=found.projector_hidden_act,
            bias=found.multimodal_projector_bias,
        ),
        image_token=image_token,
    )


def text_spec(config: Mapping[str, Any], path: str) -> LlamaSpec:
    """Read the config of a decoder, which has to be a Llama.

    Raises:
        LoadError: another decoder, or a key that is unknown.
    """
    at = f"{path}: text_config"
    if config.get("model_type", "llama") != "llama":
        raise LoadError(
            f"{at}: the decoder is {config['model_type']!r}, only 'llama' is supported."
        )
    spec = from_text_config(config, at)
    check_heads(spec, at)
    return spec


def reader(spec: LlavaSpec) -> ImageText:
    """Return the preprocessing of images."""
    side = spec.vision.image
    pixels = dataclasses.replace(PIXELS, resize=side, crop=side)
    count = spec.vision.grid**2 + spec.vision.class_token - spec.projector.skip
    return ImageText(pixels, token=spec.image_token, count=count)


def llava(layers: int, embed: int, heads: int, mlp: int) -> LlavaSpec:
    """Return a LLaVA 1.5 with the CLIP tower of all of them."""
    return LlavaSpec(
        vision=ViTSpec(
            layers=23,
            embed=1024,
            heads=16,
            mlp=4096,
            patch=14,
            image=336,
            activation="quick_gelu",
            eps=1e-5,
            pre_norm=True,
            patch_bias=False,
            final_norm=False,
        ),
        text=LlamaSpec(
            layers=layers,
            embed=embed,
            heads=heads,
            kv_heads=heads,
            head_dim=embed // heads,
            mlp=mlp,
            vocab=32064,
            context=4096,
            tied=False,
        ),
        projector=ProjectorSpec(read=1024, embed=embed),
    )


PRESETS = {
    "llava-1.5-7b": Preset(llava(32, 4096, 32, 11008), "llava-hf/llava-1.5-7b-hf"),
    "llava-1.5-13b": Preset(llava(40, 5120, 40, 13824), "llava-hf/llava-1.5-13b-hf"),
}
LLAVA = Family(
    name="llava",
    spec=LlavaSpec,
    init=init,
    presets=PRESETS,
    computed=lambda spec: {
        f"text.{name}": leaf for name, leaf in LLAMA.computed(spec.text).items()
    },
    from_config=from_config,
    build=build,
    reader=reader,
)
