"""InceptionV3 (Szegedy et al. 2016, arXiv:1512.00567), for inference.

Mixed blocks join the channels of several branches. Batch normalization applies running
statistics.

Weight files have the names of torchvision and timm: `Conv2d_1a_3x3.conv.weight`,
`Mixed_5b.branch5x5_1.bn.running_mean`, `fc.weight`. Both publish files with the head
that only training uses: give `ignore=("AuxLogits.",)` to `load_image_model`.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.core import site
from mijax.io import Size
from mijax.models._family import Family, Preset, Table
from mijax.models._image_input import ImageInput
from mijax.models._mirror import mirrored
from mijax.models._yolo26_blocks import IMAGE, Maps, NewMaps
from mijax.nn import BatchNorm

EPS = 1e-3
AVERAGE, LARGEST = "average", "largest"


class Unit(NamedTuple):
    """A convolution of the architecture.

    Attributes:
        name: its name in a block.
        channels: channels of its output.
        rows: rows of its kernel.
        columns: columns of its kernel.
        stride: its stride.
        padded: False if the maps shrink by the size of the kernel.
    """

    name: str
    channels: int
    rows: int = 1
    columns: int = 1
    stride: int = 1
    padded: bool = True


# A branch is units in a row, pools among them; a tuple of units reads one input.
Branch = tuple[Any, ...]


def _square(name: str, channels: int, size: int, **more: Any) -> Unit:
    return Unit(name, channels, size, size, **more)


def _shrinking(name: str, channels: int) -> Unit:
    return Unit(name, channels, 3, 3, stride=2, padded=False)


def _first(pooled: int) -> tuple[Branch, ...]:
    """Return the branches of the blocks 5b to 5d."""
    return (
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), _square("branch5x5_2", 64, 5)),
        (
            Unit("branch3x3dbl_1", 64),
            _square("branch3x3dbl_2", 96, 3),
            _square("branch3x3dbl_3", 96, 3),
        ),
        (AVERAGE, Unit("branch_pool", pooled)),
    )


def _second(inner: int) -> tuple[Branch, ...]:
    """Return the branches of the blocks 6b to 6e."""
    return (
        (Unit("branch1x1", 192),),
        (
            Unit("branch7x7_1", inner),
            Unit("branch7x7_2", inner, 1, 7),
            Unit("branch7x7_3", 192, 7, 1),
        ),
        (
            Unit("branch7x7dbl_1", inner),
            Unit("branch7x7dbl_2", inner, 7, 1),
            Unit("branch7x7dbl_3", inner, 1, 7),
            Unit("branch7x7dbl_4", inner, 7, 1),
            Unit("branch7x7dbl_5", 192, 1, 7),
        ),
        (AVERAGE, Unit("branch_pool", 192)),
    )


THIRD: tuple[Branch, ...] = (
    (Unit("branch1x1", 320),),
    (
        Unit("branch3x3_1", 384),
        (Unit("branch3x3_2a", 384, 1, 3), Unit("branch3x3_2b", 384, 3, 1)),
    ),
    (
        Unit("branch3x3dbl_1", 448),
        _square("branch3x3dbl_2", 384, 3),
        (Unit("branch3x3dbl_3a", 384, 1, 3), Unit("branch3x3dbl_3b", 384, 3, 1)),
    ),
    (AVERAGE, Unit("branch_pool", 192)),
)
STEM: Branch = (
    _shrinking("Conv2d_1a_3x3", 32),
    _square("Conv2d_2a_3x3", 32, 3, padded=False),
    _square("Conv2d_2b_3x3", 64, 3),
    LARGEST,
    Unit("Conv2d_3b_1x1", 80),
    _square("Conv2d_4a_3x3", 192, 3, padded=False),
    LARGEST,
)
MIXED: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _first(32),
    "Mixed_5c": _first(64),
    "Mixed_5d": _first(64),
    "Mixed_6a": (
        (_shrinking("branch3x3", 384),),
        (
            Unit("branch3x3dbl_1", 64),
            _square("branch3x3dbl_2", 96, 3),
            _shrinking("branch3x3dbl_3", 96),
        ),
        (LARGEST,),
    ),
    "Mixed_6b": _second(128),
    "Mixed_6c": _second(160),
    "Mixed_6d": _second(160),
    "Mixed_6e": _second(192),
    "Mixed_7a": (
        (Unit("branch3x3_1", 192), _shrinking("branch3x3_2", 320)),
        (
            Unit("branch7x7x3_1", 192),
            Unit("branch7x7x3_2", 192, 1, 7),
            Unit("branch7x7x3_3", 192, 7, 1),
            _shrinking("branch7x7x3_4", 192),
        ),
        (LARGEST,),
    ),
    "Mixed_7b": THIRD,
    "Mixed_7c": THIRD,
}


@dataclasses.dataclass(frozen=True)
class InceptionV3Spec:
    """Sizes of an InceptionV3.

    Attributes:
        width: factor of the number of channels.
        classes: number of classes.
    """

    width: float = 1.0
    classes: Size = 1000

    @property
    def layers(self) -> int:
        """Number of mixed blocks."""
        return len(MIXED)


class Convolution(eqx.Module):
    """A convolution, batch normalization and ReLU; it returns the site `conv`."""

    conv: eqx.nn.Conv2d
    bn: BatchNorm

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the layer."""
        return site("conv", jax.nn.relu(self.bn(self.conv(x))), IMAGE)


class InceptionV3(eqx.Module):
    """An InceptionV3; sites `conv` (after ReLU), `mixed` (blocks), `pooled`, `logits`.

    Attributes:
        stem: convolutions before the mixed blocks, by name.
        mixed: convolutions of each mixed block, by name.
        fc: the head.
    """

    stem: dict[str, Convolution]
    mixed: dict[str, dict[str, Convolution]]
    fc: eqx.nn.Linear

    def __call__(self, image: Maps) -> Float[Array, " class"]:
        """Return the logits of one normalized image, whose sides are at least 75."""
        x = _run(self.stem, STEM, image)
        for name, branches in MIXED.items():
            parts = [_run(self.mixed[name], branch, x) for branch in branches]
            x = site("mixed", jnp.concatenate(parts), IMAGE)
        pooled = site("pooled", x.mean((1, 2)), "channel")
        return site("logits", self.fc(pooled), "class")


def _run(layers: dict[str, Convolution], branch: Branch, x: Maps) -> NewMaps:
    """Apply a branch."""
    for step in branch:
        if step == AVERAGE:
            x = eqx.nn.AvgPool2d(3, 1, padding=1)(x)
        elif step == LARGEST:
            x = eqx.nn.MaxPool2d(3, 2)(x)
        elif isinstance(step, Unit):
            x = layers[step.name](x)
        else:
            x = jnp.concatenate([layers[unit.name](x) for unit in step])
    return x


def init(spec: InceptionV3Spec, key: PRNGKeyArray, dtype: DTypeLike) -> InceptionV3:
    """Draw random weights."""
    keys = iter(jax.random.split(key, 128))

    def convolution(inputs: int, unit: Unit) -> Convolution:
        padding = (unit.rows // 2, unit.columns // 2) if unit.padded else 0
        outputs = _scaled(unit.channels, spec)
        conv = eqx.nn.Conv2d(
            inputs,
            outputs,
            (unit.rows, unit.columns),
            unit.stride,
            padding=padding,
            use_bias=False,
            dtype=dtype,
            key=next(keys),
        )
        norm = BatchNorm.identity(outputs, dtype)
        return Convolution(conv, dataclasses.replace(norm, eps=EPS))

    def branch(steps: Branch, width: int) -> tuple[dict[str, Convolution], int]:
        found = {}
        for step in steps:
            if isinstance(step, str):
                continue
            units = (step,) if isinstance(step, Unit) else step
            found |= {unit.name: convolution(width, unit) for unit in units}
            width = sum(_scaled(unit.channels, spec) for unit in units)
        return found, width

    stem, width = branch(STEM, 3)
    mixed = {}
    for name, branches in MIXED.items():
        made = [branch(steps, width) for steps in branches]
        mixed[name] = {k: layer for layers, _ in made for k, layer in layers.items()}
        width = sum(channels for _, channels in made)
    fc = eqx.nn.Linear(width, spec.classes, dtype=dtype, key=next(keys))
    return InceptionV3(stem, mixed, fc)


def _scaled(channels: int, spec: InceptionV3Spec) -> int:
    return max(1, round(channels * spec.width))


def table(spec: InceptionV3Spec) -> Table:
    """Return names and shapes of the tensors."""

    def rename(name: str) -> str:
        return name.removeprefix("stem.").removeprefix("mixed.")

    return mirrored(INCEPTION_V3.skeleton(spec), rename)


INCEPTION_V3 = Family(
    name="inception_v3",
    spec=InceptionV3Spec,
    init=init,
    presets={
        "inception-v3": Preset(
            InceptionV3Spec(),
            input=ImageInput((0.5,) * 3, (0.5,) * 3, resize=342, crop=299),
        )
    },
    table=table,
)
