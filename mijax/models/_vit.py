"""Vision transformers: ViT, DINOv2, DINOv3, the image tower of CLIP.

Dosovitskiy et al. 2021, arXiv:2010.11929; Oquab et al. 2023, arXiv:2304.07193; Darcet
et al. 2023, arXiv:2309.16588 (registers); Siméoni et al. 2025, arXiv:2508.10104
(DINOv3); Radford et al. 2021, arXiv:2103.00020. Blocks
are `mijax.nn.Block`, those of the decoders, with attention that is not causal.

Weight files have the names of timm, Hugging Face or vit-pytorch; see `_vit_files.py`.
"""

import dataclasses
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError
from mijax.core import site
from mijax.core.internal import Sequence, run_block
from mijax.io import Index, Only, Size
from mijax.models._attention_pool import AttentionPool, init_pool
from mijax.models._config import ACTIVATIONS
from mijax.models._init import Normal, layer_norm
from mijax.models._position_grid import bucketed_positions, resized_positions
from mijax.models._vit_blocks import blocks
from mijax.nn import (
    Block,
    Embedding,
    Identity,
    LayerNorm,
    PatchRotary,
    Transformer,
    Unembedding,
)

EMBED = "position embed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTSpec:
    """Sizes of a vision transformer.

    Attributes:
        layers: number of blocks.
        embed: width of the residual stream.
        heads: attention heads of a block.
        mlp: neurons of a block.
        patch: side of a patch, in pixels.
        image: side of the images that positions were learned for, in pixels.
        classes: outputs of the head; 0 for none.
        channels: channels of an image.
        registers: tokens after the class token that no patch belongs to.
        class_token: whether a class token precedes the patches (not in SigLIP).
        positioned: tokens before the patches that have positions.
        activation: activation of the MLPs.
        eps: epsilon of the norms.
        scale: factor of attention scores, `head_dim ** -0.5` without it.
        hidden: neurons of a hidden layer in the head; 0 for a linear head.
        pool: what the head reads, `token` (the first one), `mean` (of patches, before
            the last norm) or `attention` (see `AttentionPool`).
        pre_norm: True if a norm comes before the blocks (CLIP).
        final_norm: False if there is no last norm.
        patch_bias: False if patches are embedded without a bias.
        qkv_bias: False if queries, keys and values have no biases.
        key_bias: False if only keys have no biases (DINOv3).
        gated: True if MLPs are gated.
        head_bias: False if the head has no bias.
        antialias: True if positions are resized with antialiasing.
        bucketed: True if positions of another grid are looked up and not resized.
        theta: base of rotary positions of patches; without it, positions are learned.
    """

    layers: Size
    embed: Size
    heads: Size
    mlp: Size
    patch: Size
    image: Size
    classes: Index = 0
    channels: Size = 3
    registers: Index = 0
    class_token: bool = True
    positioned: Index = 1
    activation: Annotated[str, Only(*ACTIVATIONS)] = "gelu"
    eps: float = 1e-6
    scale: float | None = None
    hidden: Index = 0
    pool: Annotated[str, Only("token", "mean", "attention")] = "token"
    pre_norm: bool = False
    final_norm: bool = True
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    gated: bool = False
    head_bias: bool = True
    antialias: bool = False
    bucketed: bool = False
    theta: float | None = None

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image // self.patch

    # Sizes that rules of decoders ask for.
    tied, vocab, context = False, 0, 0


class VisionTransformer(eqx.Module):
    """A vision transformer of any family.

    Position 0 is the class token, if there is one, then come registers, then patches
    along rows. Sites are those of a decoder: `embed`, `resid_pre`, `q`, `k`, `v`,
    `scores`, `pattern`, `z`, `attn_out`, `mlp_post`, `resid_post`, ... with a layer for
    each block, then `resid_final`, `pooled`, and `logits` if there is a head.
    LayerScale is part of the output weights, so that the output of a head is what it
    adds to the stream.

    Attributes:
        patch: embedding of patches.
        class_token: the class token, `[1, embed]`, or `None`.
        registers: tokens after it, `[register, embed]`, or `None`.
        prefix_positions: positions of the first of these, or `None`.
        positions: positions of patches, `[row, column, embed]`, or `None` if attention
            rotates by them.
        pre_norm: norm before the blocks.
        blocks: stacked blocks.
        norm: the last norm.
        hidden: hidden layer of the head, or `None`.
        head: the head, or `None`.
        attention_pool: attention that pools all positions, or `None`.
        pool: what the head reads.
        antialias: True if positions are resized with antialiasing.
        bucketed: True if positions of another grid are looked up and not resized.
        output: name and axis of the head's site.
    """

    patch: eqx.nn.Conv2d
    class_token: Float[Array, "1 embed"] | None
    registers: Float[Array, "register embed"] | None
    prefix_positions: Float[Array, "positioned embed"] | None
    positions: Float[Array, "rows columns embed"] | None
    pre_norm: LayerNorm | Identity
    blocks: Block
    norm: LayerNorm | Identity
    hidden: eqx.nn.Linear | None
    head: Unembedding | None
    attention_pool: AttentionPool | None
    pool: str = eqx.field(static=True)
    antialias: bool = eqx.field(static=True)
    bucketed: bool = eqx.field(static=True, default=False)
    output: tuple[str, str] = eqx.field(static=True, default=("logits", "class"))

    def __call__(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, " output"]:
        """Return the logits of one preprocessed image.

        Args:
            image: sides that are multiples of the patch.

        Returns:
            Class logits; what the head would read where there is none.

        Raises:
            ShapeError: an image of another rank, or with other sides.
        """
        x = self.stream(image)
        if self.pool == "mean":
            x = self.norm(x[len(self.prefix) :].mean(0))
        else:
            x = site("resid_final", self.norm(x), EMBED)
            x = x[0] if self.attention_pool is None else self.attention_pool(x)
        x = site("pooled", x, "embed")
        if self.hidden is not None:
            x = site(
                "head_hidden", jax.nn.gelu(self.hidden(x), approximate=False), "mlp"
            )
        return (
            x
            if self.head is None
            else site(self.output[0], self.head(x), self.output[1])
        )

    def stream(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, "position embed"]:
        """Return the residual stream after the last block.

        Raises:
            ShapeError: an image of another rank, or with other sides.
        """
        x = site("embed", self.embed(image), EMBED)
        rows = Sequence(jnp.arange(len(x), dtype=jnp.int32))
        blocks = self._on_grid(image.shape)
        arrays, static = eqx.partition(blocks, eqx.is_array)

        def step(x: Array, layer: Any) -> tuple[Array, None]:
            return run_block(eqx.combine(layer, static), x, rows), None

        return jax.lax.scan(step, x, arrays)[0]

    def embed(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, "position embed"]:
        """Return the residual stream that enters the first block."""
        side = self.patch.kernel_size[0]
        if image.ndim != 3 or any(n % side or not n for n in image.shape[1:]):
            raise ShapeError(
                f"The image has shape {list(image.shape)}, expected [channel, row, "
                f"column] with sides that are multiples of {side}. Use the "
                "preprocessing that comes with the model."
            )
        patches = self.patch(image)
        _, rows, columns = patches.shape
        patches = patches.transpose(1, 2, 0)
        if self.positions is not None:
            patches = patches + self._positions_of(self.positions, rows, columns)
        prefix = self.prefix
        if self.prefix_positions is not None:
            count = len(self.prefix_positions)
            prefix = prefix.at[:count].add(self.prefix_positions)
        x = jnp.concatenate([prefix, patches.reshape(rows * columns, -1)])
        return self.pre_norm(x)

    @property
    def prefix(self) -> Float[Array, "prefix embed"]:
        """Class token and registers, if the model has any."""
        given = [x for x in (self.class_token, self.registers) if x is not None]
        if given:
            return jnp.concatenate(given)
        return jnp.zeros((0, self.patch.out_channels), self.patch.weight.dtype)

    def _positions_of(
        self, table: Float[Array, "rows columns embed"], rows: int, columns: int
    ) -> Float[Array, "row column embed"]:
        """Return the learned positions of a grid."""
        if self.bucketed:
            return bucketed_positions(table, rows, columns)
        return resized_positions(table, rows, columns, antialias=self.antialias)

    def _on_grid(self, shape: tuple[int, ...]) -> Block:
        """Return the blocks for images of a shape, whose patches form another grid."""
        rotary = self.blocks.attention.rotary
        if not isinstance(rotary, PatchRotary):
            return self.blocks
        rows, columns = (n // self.patch.kernel_size[0] for n in shape[-2:])
        rotary = dataclasses.replace(rotary, rows=rows, columns=columns)
        attention = dataclasses.replace(self.blocks.attention, rotary=rotary)
        return dataclasses.replace(self.blocks, attention=attention)

    def on_tokens(
        self, images: Float[Array, "batch channel row column"]
    ) -> tuple[Transformer, Int[Array, "batch position"]]:
        """Return the model of some images as a transformer that reads tokens.

        The residual streams that enter the first block become the table of token
        embeddings, one token for each position of each image. So every method for
        decoders applies: direct logit attribution, lenses, circuits of heads and edges.
        Logits are those of the head at every position; position 0 is the classifier's.

        Args:
            images: preprocessed images.

        Returns:
            The transformer, and the tokens of each image.

        Raises:
            ConfigError: a head with a hidden layer, without one, or of the mean.

        Examples:
            >>> import jax, mijax
            >>> spec = mijax.models.ViTSpec(
            ...     layers=2, embed=16, heads=2, mlp=32, patch=4, image=8, classes=3
            ... )
            >>> vit = mijax.models.init_image_model(spec, jax.random.key(0))
            >>> model, tokens = vit.on_tokens(jax.numpy.ones((1, 3, 8, 8)))
            >>> split = mijax.lens.direct_logit_attribution
            >>> split(model, tokens, 1, position=0).heads.shape  # image, layer, head
            (1, 2, 2)
        """
        if self.head is None or self.hidden is not None or self.pool != "token":
            raise ConfigError(
                "on_tokens takes a model whose linear head reads the class token. Use "
                "mijax.model(vit, image) with this one."
            )
        embedded = jax.vmap(self.embed)(images)
        batch, count, embed = embedded.shape
        model = Transformer(
            embedding=Embedding(embedded.reshape(-1, embed)),
            positions=None,
            blocks=self._on_grid(images.shape),
            norm=self.norm,
            unembedding=self.head,
        )
        return model, jnp.arange(batch * count, dtype=jnp.int32).reshape(batch, count)


def init(spec: ViTSpec, key: PRNGKeyArray, dtype: DTypeLike) -> VisionTransformer:
    """Draw random weights."""
    check(spec)
    normal, embed = Normal(key, dtype), spec.embed
    patch = eqx.nn.Conv2d(
        spec.channels,
        embed,
        spec.patch,
        spec.patch,
        use_bias=spec.patch_bias,
        dtype=dtype,
        key=next(normal.keys),
    )
    hidden, width = None, embed
    if spec.hidden:
        linear = eqx.nn.Linear(embed, spec.hidden, dtype=dtype, key=next(normal.keys))
        hidden, width = linear, spec.hidden
    bias = jnp.zeros(spec.classes, dtype) if spec.head_bias else None
    head = Unembedding(normal(spec.classes, width), bias) if spec.classes else None
    pool = init_pool(spec, normal, dtype) if spec.pool == "attention" else None
    norms = {
        name: layer_norm(embed, dtype, spec.eps) if there else Identity()
        for name, there in (("pre", spec.pre_norm), ("final", spec.final_norm))
    }
    return VisionTransformer(
        patch=patch,
        class_token=normal(1, embed) if spec.class_token else None,
        registers=normal(spec.registers, embed) if spec.registers else None,
        prefix_positions=normal(spec.positioned, embed) if spec.positioned else None,
        positions=None if spec.theta else normal(spec.grid, spec.grid, embed),
        pre_norm=norms["pre"],
        blocks=blocks(spec, normal, dtype, causal=False),
        norm=norms["final"],
        hidden=hidden,
        head=head,
        attention_pool=pool,
        pool=spec.pool,
        antialias=spec.antialias,
        bucketed=spec.bucketed,
    )


def check(spec: ViTSpec) -> None:
    """Refuse sizes that do not fit each other."""
    if spec.image % spec.patch or spec.embed % spec.heads:
        raise ConfigError(
            f"image {spec.image} has to be a multiple of patch {spec.patch}, and embed "
            f"{spec.embed} of heads {spec.heads}."
        )
    count = spec.class_token + spec.registers
    if spec.positioned > count:
        raise ConfigError(
            f"positioned is {spec.positioned}, but there are {count} tokens before the "
            "patches."
        )
    if spec.theta and (spec.positioned or spec.embed // spec.heads % 4):
        raise ConfigError(
            f"theta {spec.theta} needs positioned=0 and heads whose size is a multiple "
            f"of 4, but positioned is {spec.positioned} and embed // heads "
            f"{spec.embed // spec.heads}."
        )
    if spec.pool == "token" and spec.classes and not count:
        raise ConfigError("pool='token' needs a class token: set class_token=True.")
