"""EfficientNet-Lite (Tan and Le 2019, arXiv:1905.11946; Liu 2020), for inference.

An EfficientNet without squeeze-and-excitation and with ReLU6, padded as TensorFlow does
("SAME": the odd row and column come last). Batch normalization applies running
statistics.

Weight files have the names of the package `efficientnet-lite-pytorch`:
`_conv_stem.weight`, `_blocks.3._depthwise_conv.weight`, `_fc.bias`.
"""

import dataclasses

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from mijax.core import site
from mijax.io import Size
from mijax.models._family import Family, Preset, Table
from mijax.models._image_input import ImageInput
from mijax.models._mirror import mirrored
from mijax.models._yolo26_blocks import IMAGE, Maps, NewMaps
from mijax.nn import BatchNorm

EPS = 1e-3


@dataclasses.dataclass(frozen=True)
class LiteStage:
    """Blocks of one width.

    Attributes:
        kernel: side of the depthwise convolutions.
        stride: stride of the first block.
        expansion: channels of the hidden convolution per input channel.
        width: channels of the output.
        blocks: number of blocks.
    """

    kernel: Size
    stride: Size
    expansion: Size
    width: Size
    blocks: Size


LITE0 = (
    LiteStage(3, 1, 1, 16, 1),
    LiteStage(3, 2, 6, 24, 2),
    LiteStage(5, 2, 6, 40, 2),
    LiteStage(3, 2, 6, 80, 3),
    LiteStage(5, 1, 6, 112, 3),
    LiteStage(5, 2, 6, 192, 4),
    LiteStage(3, 1, 6, 320, 1),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteSpec:
    """Sizes of an EfficientNet-Lite.

    Attributes:
        stem: channels of the first convolution.
        stages: the blocks.
        head: channels of the last convolution.
        classes: number of classes.
    """

    stem: Size = 32
    stages: tuple[LiteStage, ...] = LITE0
    head: Size = 1280
    classes: Size = 1000

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return sum(stage.blocks for stage in self.stages)


class LiteBlock(eqx.Module):
    """Expand, filter each channel, project; added to the input where shapes agree."""

    expand_conv: eqx.nn.Conv2d | None
    bn0: BatchNorm | None
    depthwise_conv: eqx.nn.Conv2d
    bn1: BatchNorm
    project_conv: eqx.nn.Conv2d
    bn2: BatchNorm

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        h = x
        if self.expand_conv is not None and self.bn0 is not None:
            h = _relu6(self.bn0(self.expand_conv(h)))
        h = _relu6(self.bn1(self.depthwise_conv(h)))
        out = self.bn2(self.project_conv(h))
        return site("block", out + x if out.shape == x.shape else out, IMAGE)


class EfficientNetLite(eqx.Module):
    """An EfficientNet-Lite; sites `relu`, `block` (outputs), `pooled`, `logits`."""

    conv_stem: eqx.nn.Conv2d
    bn0: BatchNorm
    blocks: tuple[LiteBlock, ...]
    conv_head: eqx.nn.Conv2d
    bn1: BatchNorm
    fc: eqx.nn.Linear

    def __call__(self, image: Maps) -> Float[jax.Array, " class"]:
        """Return the logits of one normalized image."""
        x = _relu6(self.bn0(self.conv_stem(image)))
        for block in self.blocks:
            x = block(x)
        x = _relu6(self.bn1(self.conv_head(x)))
        pooled = site("pooled", x.mean((1, 2)), "channel")
        return site("logits", self.fc(pooled), "class")


def _relu6(x: Maps) -> Maps:
    """Apply the activation and mark what it returns."""
    return site("relu", jax.nn.relu6(x), IMAGE)


def init(
    spec: EfficientNetLiteSpec, key: PRNGKeyArray, dtype: DTypeLike
) -> EfficientNetLite:
    """Draw random weights."""
    keys = iter(jax.random.split(key, 3 * spec.layers + 3))

    def conv(
        inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
    ) -> tuple[eqx.nn.Conv2d, BatchNorm]:
        layer = eqx.nn.Conv2d(
            inputs,
            outputs,
            size,
            stride,
            padding="SAME",
            groups=groups,
            use_bias=False,
            dtype=dtype,
            key=next(keys),
        )
        norm = BatchNorm.identity(outputs, dtype)
        return layer, dataclasses.replace(norm, eps=EPS)

    stem, width, blocks = conv(3, spec.stem, 3, 2), spec.stem, []
    for stage in spec.stages:
        for i in range(stage.blocks):
            wide = stage.expansion * width
            expand = conv(width, wide, 1) if stage.expansion > 1 else (None, None)
            stride = 1 if i else stage.stride
            depthwise = conv(wide, wide, stage.kernel, stride, wide)
            blocks.append(LiteBlock(*expand, *depthwise, *conv(wide, stage.width, 1)))
            width = stage.width
    head = conv(width, spec.head, 1)
    fc = eqx.nn.Linear(spec.head, spec.classes, dtype=dtype, key=next(keys))
    return EfficientNetLite(*stem, tuple(blocks), *head, fc)


def table(spec: EfficientNetLiteSpec) -> Table:
    """Return names and shapes of the tensors."""

    def rename(name: str) -> str:
        *parts, last = name.split(".")
        marked = [part if part.isdigit() else f"_{part}" for part in parts]
        return ".".join([*marked, last])

    return mirrored(EFFICIENTNET_LITE.skeleton(spec), rename)


EFFICIENTNET_LITE = Family(
    name="efficientnet_lite",
    spec=EfficientNetLiteSpec,
    init=init,
    presets={
        "efficientnet-lite0": Preset(
            EfficientNetLiteSpec(), input=ImageInput(resize=256, crop=224)
        )
    },
    table=table,
)
