"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), for inference.

Weight files have the names of timm: `stem.0.weight`, `stages.1.downsample.1.weight`,
`stages.1.blocks.0.conv_dw.weight`, `head.fc.weight`.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.core import site
from mijax.io import Size
from mijax.models._family import Family, Preset, Table
from mijax.models._image_input import ImageInput
from mijax.models._init import layer_norm
from mijax.models._mirror import mirrored
from mijax.models._yolo26_blocks import IMAGE, Maps, NewMaps
from mijax.nn import LayerNorm

EPS, WIDER = 1e-6, 4


@dataclasses.dataclass(frozen=True)
class ConvNeXtSpec:
    """Sizes of a ConvNeXt.

    Attributes:
        blocks: blocks of each stage.
        widths: channels of each stage.
        classes: number of classes.
    """

    blocks: tuple[Size, ...] = (3, 3, 9, 3)
    widths: tuple[Size, ...] = (96, 192, 384, 768)
    classes: Size = 1000

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return sum(self.blocks)


class Linears(eqx.Module):
    """Two linear layers that act on the channels of each place."""

    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear

    def __call__(
        self, x: Float[Array, "row column channel"]
    ) -> Float[Array, "row column channel"]:
        """Apply both, with the sites `mlp_pre` and `mlp_post`."""
        pre = jax.vmap(jax.vmap(self.fc1))(x)
        pre = site("mlp_pre", pre.transpose(2, 0, 1), "mlp row column")
        post = site("mlp_post", jax.nn.gelu(pre, approximate=False), "mlp row column")
        return jax.vmap(jax.vmap(self.fc2))(post.transpose(1, 2, 0))


class ConvNeXtBlock(eqx.Module):
    """A depthwise convolution and two linear layers, added to their input."""

    conv_dw: eqx.nn.Conv2d
    norm: LayerNorm
    mlp: Linears
    gamma: Float[Array, " channel"]

    def __call__(self, x: Maps) -> Maps:
        """Apply the block."""
        h = self.mlp(self.norm(self.conv_dw(x).transpose(1, 2, 0)))
        write = site("write", (self.gamma * h).transpose(2, 0, 1), IMAGE)
        return site("block", x + write, IMAGE)


class Stage(eqx.Module):
    """Blocks of one width; from the second stage on, maps are made smaller first."""

    downsample: tuple[LayerNorm, eqx.nn.Conv2d] | None
    blocks: tuple[ConvNeXtBlock, ...]

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the stage."""
        if self.downsample is not None:
            norm, conv = self.downsample
            x = conv(over_channels(norm, x))
        for block in self.blocks:
            x = block(x)
        return x


class Head(eqx.Module):
    """A norm and a linear layer."""

    norm: LayerNorm
    fc: eqx.nn.Linear


class ConvNeXt(eqx.Module):
    """A ConvNeXt; sites `mlp_pre`, `mlp_post`, `write`, `block`, `pooled`, `logits`.

    `write` is what a block adds to its input, `block` the sum.
    """

    stem: tuple[eqx.nn.Conv2d, LayerNorm]
    stages: tuple[Stage, ...]
    head: Head

    def __call__(self, image: Maps) -> Float[Array, " class"]:
        """Return the logits of one normalized image."""
        conv, norm = self.stem
        x = over_channels(norm, conv(image))
        for stage in self.stages:
            x = stage(x)
        pooled = site("pooled", self.head.norm(x.mean((1, 2))), "channel")
        return site("logits", self.head.fc(pooled), "class")


def over_channels(norm: LayerNorm, x: Maps) -> Maps:
    """Normalize the channels of each place."""
    return norm(x.transpose(1, 2, 0)).transpose(2, 0, 1)


def init(spec: ConvNeXtSpec, key: PRNGKeyArray, dtype: DTypeLike) -> ConvNeXt:
    """Draw random weights."""
    keys = iter(jax.random.split(key, 3 * spec.layers + len(spec.blocks) + 1))

    def conv(inputs: int, outputs: int, size: int) -> eqx.nn.Conv2d:
        return eqx.nn.Conv2d(inputs, outputs, size, size, dtype=dtype, key=next(keys))

    def linear(inputs: int, outputs: int) -> eqx.nn.Linear:
        return eqx.nn.Linear(inputs, outputs, dtype=dtype, key=next(keys))

    def block(width: int) -> ConvNeXtBlock:
        depthwise = eqx.nn.Conv2d(
            width, width, 7, padding=3, groups=width, dtype=dtype, key=next(keys)
        )
        wide = WIDER * width
        mlp = Linears(linear(width, wide), linear(wide, width))
        norm = layer_norm(width, dtype, EPS)
        return ConvNeXtBlock(depthwise, norm, mlp, jnp.full(width, 1e-6, dtype))

    width = spec.widths[0]
    stem, stages = (conv(3, width, 4), layer_norm(width, dtype, EPS)), []
    for i, (count, out) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        down = (layer_norm(width, dtype, EPS), conv(width, out, 2)) if i else None
        stages.append(Stage(down, tuple(block(out) for _ in range(count))))
        width = out
    head = Head(layer_norm(width, dtype, EPS), linear(width, spec.classes))
    return ConvNeXt(stem, tuple(stages), head)


def table(spec: ConvNeXtSpec) -> Table:
    """Return names and shapes of the tensors; the tree has the names of the file."""
    return mirrored(CONVNEXT.skeleton(spec))


CONVNEXT = Family(
    name="convnext",
    spec=ConvNeXtSpec,
    init=init,
    presets={
        f"convnext-{name}": Preset(
            ConvNeXtSpec(blocks, widths),
            input=ImageInput(resize=256, crop=224, method="cubic"),
        )
        for name, blocks, widths in (
            ("tiny", (3, 3, 9, 3), (96, 192, 384, 768)),
            ("small", (3, 3, 27, 3), (96, 192, 384, 768)),
            ("base", (3, 3, 27, 3), (128, 256, 512, 1024)),
        )
    },
    table=table,
)
