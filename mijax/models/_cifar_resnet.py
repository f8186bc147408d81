"""ResNets for CIFAR-10 (He et al. 2015, arXiv:1512.03385, section 4.2).

Shortcuts between stages take every second row and column and add channels of zeros
(option A), so they have no weights. Batch normalization is in inference form: it
applies running statistics, and the model has no state.

Weight files name tensors as `conv1.weight`, `bn1.running_mean`,
`layer2.0.conv1.weight`, `linear.weight`.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.core import site
from mijax.io import Size
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._image_input import ImageInput
from mijax.nn import BatchNorm

IMAGE = "channel row column"


@dataclasses.dataclass(frozen=True)
class CifarResNetSpec:
    """Sizes of a CIFAR ResNet.

    Attributes:
        blocks: residual blocks of each stage.
        widths: channels of each stage; each is twice the one before.
        classes: number of classes.
    """

    blocks: tuple[Size, ...] = (3, 3, 3)
    widths: tuple[Size, ...] = (16, 32, 64)
    classes: Size = 10

    @property
    def layers(self) -> int:
        """Number of residual blocks."""
        return sum(self.blocks)


class ResidualBlock(eqx.Module):
    """Two convolutions and a shortcut."""

    conv1: eqx.nn.Conv2d
    bn1: BatchNorm
    conv2: eqx.nn.Conv2d
    bn2: BatchNorm

    def __call__(
        self, x: Float[Array, "channel row column"]
    ) -> Float[Array, "channel_2 row_2 column_2"]:
        """Apply the block."""
        hidden = site("relu", jax.nn.relu(self.bn1(self.conv1(x))), IMAGE)
        (stride, _), out = self.conv1.stride, self.conv1.out_channels
        new = (out - x.shape[0]) // 2
        shortcut = jnp.pad(x[:, ::stride, ::stride], ((new, new), (0, 0), (0, 0)))
        out = self.bn2(self.conv2(hidden)) + shortcut
        return site("relu", jax.nn.relu(out), IMAGE)


class CifarResNet(eqx.Module):
    """A CIFAR ResNet; sites `relu` (stem, then two per block), `pooled`, `logits`."""

    conv1: eqx.nn.Conv2d
    bn1: BatchNorm
    stages: tuple[tuple[ResidualBlock, ...], ...]
    linear: eqx.nn.Linear

    def __call__(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, " class"]:
        """Return the logits of one normalized image."""
        x = site("relu", jax.nn.relu(self.bn1(self.conv1(image))), IMAGE)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        pooled = site("pooled", x.mean((1, 2)), "channel")
        return site("logits", self.linear(pooled), "class")


def init(spec: CifarResNetSpec, key: PRNGKeyArray, dtype: DTypeLike) -> CifarResNet:
    """Draw random weights."""
    keys = iter(jax.random.split(key, 2 * spec.layers + 2))

    def conv(inputs: int, outputs: int, stride: int) -> eqx.nn.Conv2d:
        return eqx.nn.Conv2d(
            inputs,
            outputs,
            3,
            stride,
            padding=1,
            use_bias=False,
            dtype=dtype,
            key=next(keys),
        )

    stem = conv(3, spec.widths[0], 1)
    stages, width = [], spec.widths[0]
    for count, out in zip(spec.blocks, spec.widths, strict=True):
        blocks = []
        for _ in range(count):
            stride = 1 if out == width else 2
            blocks.append(
                ResidualBlock(
                    conv(width, out, stride),
                    BatchNorm.identity(out, dtype),
                    conv(out, out, 1),
                    BatchNorm.identity(out, dtype),
                )
            )
            width = out
        stages.append(tuple(blocks))
    linear = eqx.nn.Linear(width, spec.classes, dtype=dtype, key=next(keys))
    return CifarResNet(
        stem, BatchNorm.identity(spec.widths[0], dtype), tuple(stages), linear
    )


def table(spec: CifarResNetSpec) -> Table:
    """Return names and shapes of the tensors."""
    first, last = spec.widths[0], spec.widths[-1]
    rules = [
        _conv("conv1", "conv1", 3, first),
        *_norm("bn1", "bn1", first),
        Rule("linear.weight", (spec.classes, last), {"linear.weight": same}),
        Rule("linear.bias", (spec.classes,), {"linear.bias": same}),
    ]
    width = first
    for i, (count, out) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        for j in range(count):
            file, leaf = f"layer{i + 1}.{j}", f"stages.{i}.{j}"
            for k, inputs in (("1", width), ("2", out)):
                rules.append(_conv(f"{file}.conv{k}", f"{leaf}.conv{k}", inputs, out))
                rules += _norm(f"{file}.bn{k}", f"{leaf}.bn{k}", out)
            width = out
    return Table(tuple(rules))


def _conv(file: str, leaf: str, inputs: int, outputs: int) -> Rule:
    shape = (outputs, inputs, 3, 3)
    return Rule(f"{file}.weight", shape, {f"{leaf}.weight": same})


def _norm(file: str, leaf: str, width: int) -> list[Rule]:
    names = {
        "weight": "weight",
        "bias": "bias",
        "running_mean": "mean",
        "running_var": "variance",
    }
    return [
        Rule(f"{file}.{name}", (width,), {f"{leaf}.{field}": same})
        for name, field in names.items()
    ]


CIFAR_RESNET = Family(
    name="cifar_resnet",
    spec=CifarResNetSpec,
    init=init,
    presets={
        f"cifar-resnet{6 * n + 2}": Preset(
            CifarResNetSpec(blocks=(n, n, n)), input=ImageInput()
        )
        for n in (3, 5, 7, 9)
    },
    table=table,
)
