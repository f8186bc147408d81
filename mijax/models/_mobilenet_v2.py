"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), for inference.

Batch normalization is folded into the convolutions, each of which has a bias.

Weight files give the convolutions in the order of computation, `conv.{i}.weight` and
`conv.{i}.bias` counted from 0, and `classifier.1.weight` and `.bias`. Files exported
through ONNX, which number their tensors (`onnx::Conv_468`, `onnx::Conv_469`, ...), are
read in the order of these numbers.
"""

import dataclasses
import re
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.core import site
from mijax.io import Size, Tensors
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._image_input import ImageInput

IMAGE = "channel row column"
ONNX = re.compile(r"onnx::Conv_(\d+)")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Bottleneck blocks of one width (Table 2 of the paper).

    Attributes:
        expansion: channels of the hidden convolution per input channel.
        width: channels of the output.
        blocks: number of blocks.
        stride: stride of the first block.
    """

    expansion: Size
    width: Size
    blocks: Size
    stride: Size


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class MobileNetV2Spec:
    """Sizes of a MobileNetV2.

    Attributes:
        stem: channels of the first convolution.
        stages: the bottleneck blocks.
        head: channels of the last convolution.
        classes: number of classes.
        cap: largest value that an activation passes on: 6, or `None` for weights whose
            channels were rescaled for quantization, behind which ReLU6 became ReLU
            (Nagel et al. 2019, arXiv:1906.04721, section 4.1).
    """

    stem: Size = 32
    stages: tuple[Stage, ...] = STAGES
    head: Size = 1280
    classes: Size = 1000
    cap: float | None = 6.0

    @property
    def layers(self) -> int:
        """Number of bottleneck blocks."""
        return sum(stage.blocks for stage in self.stages)


class Bottleneck(eqx.Module):
    """Expand, filter each channel, project; with a shortcut where shapes agree.

    Attributes:
        hidden: the convolutions that an activation follows.
        project: the last convolution, which is linear.
        cap: largest value that the activation passes on.
    """

    hidden: tuple[eqx.nn.Conv2d, ...]
    project: eqx.nn.Conv2d
    cap: float | None = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "channel row column"]
    ) -> Float[Array, "channel_2 row_2 column_2"]:
        """Apply the block."""
        h = x
        for conv in self.hidden:
            h = _relu(conv(h), self.cap)
        out = self.project(h)
        return site("block", out + x if out.shape == x.shape else out, IMAGE)


class MobileNetV2(eqx.Module):
    """A MobileNetV2; sites `relu`, `block` (its outputs), `pooled`, `logits`."""

    stem: eqx.nn.Conv2d
    blocks: tuple[Bottleneck, ...]
    head: eqx.nn.Conv2d
    classifier: eqx.nn.Linear
    cap: float | None = eqx.field(static=True)

    def __call__(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, " class"]:
        """Return the logits of one normalized image."""
        x = _relu(self.stem(image), self.cap)
        for block in self.blocks:
            x = block(x)
        x = _relu(self.head(x), self.cap)
        pooled = site("pooled", x.mean((1, 2)), "channel")
        return site("logits", self.classifier(pooled), "class")


def _relu(x: Float[Array, "channel row column"], cap: float | None) -> Array:
    """Apply the activation and mark what it returns."""
    x = jax.nn.relu(x)
    return site("relu", x if cap is None else jnp.minimum(x, cap), IMAGE)


def init(spec: MobileNetV2Spec, key: PRNGKeyArray, dtype: DTypeLike) -> MobileNetV2:
    """Draw random weights."""
    keys = iter(jax.random.split(key, 3 * spec.layers + 3))

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
        return eqx.nn.Conv2d(
            inputs,
            outputs,
            size,
            stride,
            padding=size // 2,
            groups=groups,
            dtype=dtype,
            key=next(keys),
        )

    stem, width, blocks = conv(3, spec.stem, 3, 2), spec.stem, []
    for stage in spec.stages:
        for i in range(stage.blocks):
            wide = stage.expansion * width
            expand = [conv(width, wide, 1)] if stage.expansion > 1 else []
            stride = stage.stride if i == 0 else 1
            filters = conv(wide, wide, 3, stride, wide)
            blocks.append(
                Bottleneck((*expand, filters), conv(wide, stage.width, 1), spec.cap)
            )
            width = stage.width
    head = conv(width, spec.head, 1)
    linear = eqx.nn.Linear(spec.head, spec.classes, dtype=dtype, key=next(keys))
    return MobileNetV2(stem, tuple(blocks), head, linear, spec.cap)


def table(spec: MobileNetV2Spec) -> Table:
    """Return names and shapes of the tensors."""
    skeleton = eqx.filter_eval_shape(
        lambda: init(spec, jax.random.key(0), np.dtype("float32"))
    )
    convs: list[tuple[str, eqx.nn.Conv2d]] = [("stem", skeleton.stem)]
    for i, block in enumerate(skeleton.blocks):
        for j, conv in enumerate(block.hidden):
            convs.append((f"blocks.{i}.hidden.{j}", conv))
        convs.append((f"blocks.{i}.project", block.project))
    convs.append(("head", skeleton.head))
    rules = [
        Rule(
            "classifier.1.weight",
            (spec.classes, spec.head),
            {"classifier.weight": same},
        ),
        Rule("classifier.1.bias", (spec.classes,), {"classifier.bias": same}),
    ]
    for i, (leaf, conv) in enumerate(convs):
        weight, outputs = conv.weight.shape, conv.out_channels
        rules.append(Rule(f"conv.{i}.weight", weight, {f"{leaf}.weight": same}))
        rules.append(Rule(f"conv.{i}.bias", (outputs,), {f"{leaf}.bias": _column}))
    return Table(tuple(rules))


def _column(bias: np.ndarray) -> np.ndarray:
    """Return a bias with the shape that a convolution adds."""
    return bias[:, None, None]


class InOrder:
    """Tensors of an ONNX export under the names of `table`.

    Args:
        source: the tensors; those whose names are not of an ONNX export keep them.
    """

    def __init__(self, source: Tensors) -> None:
        numbered = [name for name in source.shapes if ONNX.fullmatch(name)]
        numbered.sort(key=lambda name: int(name.rpartition("_")[2]))
        self.source, self.path, self.files = source, source.path, source.files
        self.names = {name: name for name in source.shapes if name not in numbered}
        for i, name in enumerate(numbered):
            kind = ("weight", "bias")[i % 2]
            self.names[f"conv.{i // 2}.{kind}"] = name
        self.shapes: Mapping[str, tuple[int, ...]] = {
            new: source.shapes[old] for new, old in self.names.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self.source.read(self.names[name])


MOBILENET_V2 = Family(
    name="mobilenet_v2",
    spec=MobileNetV2Spec,
    init=init,
    presets={
        name: Preset(MobileNetV2Spec(cap=cap), input=ImageInput(resize=256, crop=224))
        for name, cap in (("mobilenet-v2", 6.0), ("mobilenet-v2-equalized", None))
    },
    table=table,
    renamed=InOrder,
)
