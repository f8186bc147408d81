"""ResNets for ImageNet (He et al. 2015, arXiv:1512.03385), for inference.

Blocks of two or three convolutions; where a stage begins, a 1 by 1 convolution is the
shortcut, and of three convolutions the middle one has the stride, as in torchvision.
Batch normalization applies running statistics.

Weight files have the names of torchvision and timm: `conv1.weight`,
`layer2.0.downsample.1.running_mean`, `fc.weight`.
"""

import dataclasses

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.core import site
from mijax.io import Size
from mijax.models._family import Family, Preset, Table
from mijax.models._image_input import ImageInput
from mijax.models._mirror import mirrored
from mijax.models._yolo26_blocks import IMAGE, Maps, NewMaps
from mijax.nn import BatchNorm

EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """Sizes of a ResNet.

    Attributes:
        blocks: residual blocks of each stage.
        widths: channels of each stage's inner convolutions.
        bottleneck: True for blocks of three convolutions, whose output has four times
            as many channels.
        stem: channels of the first convolution.
        classes: number of classes.
    """

    blocks: tuple[Size, ...] = (2, 2, 2, 2)
    widths: tuple[Size, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    stem: Size = 64
    classes: Size = 1000

    @property
    def layers(self) -> int:
        """Number of residual blocks."""
        return sum(self.blocks)


class BasicBlock(eqx.Module):
    """Two convolutions, added to a shortcut."""

    conv1: eqx.nn.Conv2d
    bn1: BatchNorm
    conv2: eqx.nn.Conv2d
    bn2: BatchNorm
    downsample: tuple[eqx.nn.Conv2d, BatchNorm] | None

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        h = _relu(self.bn1(self.conv1(x)))
        return _joined(self.bn2(self.conv2(h)), x, self.downsample)


class BottleneckBlock(eqx.Module):
    """Three convolutions, the outer ones 1 by 1, added to a shortcut."""

    conv1: eqx.nn.Conv2d
    bn1: BatchNorm
    conv2: eqx.nn.Conv2d
    bn2: BatchNorm
    conv3: eqx.nn.Conv2d
    bn3: BatchNorm
    downsample: tuple[eqx.nn.Conv2d, BatchNorm] | None

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        h = _relu(self.bn1(self.conv1(x)))
        h = _relu(self.bn2(self.conv2(h)))
        return _joined(self.bn3(self.conv3(h)), x, self.downsample)


class ResNet(eqx.Module):
    """A ResNet; sites `relu` (every ReLU), `block` (outputs), `pooled`, `logits`.

    A block's output is a layer of `relu` too, the last of the block.
    """

    conv1: eqx.nn.Conv2d
    bn1: BatchNorm
    stages: tuple[tuple[BasicBlock | BottleneckBlock, ...], ...]
    fc: eqx.nn.Linear

    def __call__(self, image: Maps) -> Float[Array, " class"]:
        """Return the logits of one normalized image."""
        x = _relu(self.bn1(self.conv1(image)))
        x = eqx.nn.MaxPool2d(3, 2, padding=1)(x)
        for stage in self.stages:
            for block in stage:
                x = site("block", block(x), IMAGE)
        pooled = site("pooled", x.mean((1, 2)), "channel")
        return site("logits", self.fc(pooled), "class")


def _relu(x: Maps) -> Maps:
    """Apply the activation and mark what it returns."""
    return site("relu", jax.nn.relu(x), IMAGE)


def _joined(
    out: NewMaps, x: Maps, downsample: tuple[eqx.nn.Conv2d, BatchNorm] | None
) -> NewMaps:
    """Add the shortcut."""
    if downsample is None:
        return _relu(out + x)
    conv, norm = downsample
    return _relu(out + norm(conv(x)))


def init(spec: ResNetSpec, key: PRNGKeyArray, dtype: DTypeLike) -> ResNet:
    """Draw random weights."""
    keys = iter(jax.random.split(key, 4 * spec.layers + 2))

    def conv(
        inputs: int, outputs: int, size: int, stride: int = 1
    ) -> tuple[eqx.nn.Conv2d, BatchNorm]:
        layer = eqx.nn.Conv2d(
            inputs,
            outputs,
            size,
            stride,
            padding=size // 2,
            use_bias=False,
            dtype=dtype,
            key=next(keys),
        )
        return layer, BatchNorm.identity(outputs, dtype)

    conv1, bn1 = conv(3, spec.stem, 7, 2)
    stages, width = [], spec.stem
    for i, (count, inner) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        out, blocks = inner * (EXPANSION if spec.bottleneck else 1), []
        for j in range(count):
            stride = 2 if i and not j else 1
            change = stride > 1 or width != out
            short = conv(width, out, 1, stride) if change else None
            if spec.bottleneck:
                first, middle = conv(width, inner, 1), conv(inner, inner, 3, stride)
                parts = (*first, *middle, *conv(inner, out, 1), short)
                blocks.append(BottleneckBlock(*parts))
            else:
                parts = (*conv(width, out, 3, stride), *conv(out, out, 3), short)
                blocks.append(BasicBlock(*parts))
            width = out
        stages.append(tuple(blocks))
    fc = eqx.nn.Linear(width, spec.classes, dtype=dtype, key=next(keys))
    return ResNet(conv1, bn1, tuple(stages), fc)


def table(spec: ResNetSpec) -> Table:
    """Return names and shapes of the tensors."""

    def rename(name: str) -> str:
        if not name.startswith("stages."):
            return name
        _, stage, rest = name.split(".", 2)
        return f"layer{int(stage) + 1}.{rest}"

    return mirrored(RESNET.skeleton(spec), rename)


SIZES = {
    "resnet18": ResNetSpec(),
    "resnet34": ResNetSpec(blocks=(3, 4, 6, 3)),
    "resnet50": ResNetSpec(blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetSpec(blocks=(3, 4, 23, 3), bottleneck=True),
}
RESNET = Family(
    name="resnet",
    spec=ResNetSpec,
    init=init,
    presets={
        name: Preset(spec, input=ImageInput(resize=256, crop=224))
        for name, spec in SIZES.items()
    },
    table=table,
)
