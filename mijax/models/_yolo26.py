"""YOLO26, a detector without non-maximum suppression (Ultralytics 2026), for inference.

Three sizes of maps each give a box and a logit per class at every place; the one-to-one
head is trained so that each object is found once. Only that head is kept, and batch
normalization is folded into the convolutions, as in a fused model of Ultralytics.

Weight files name tensors as Ultralytics does: `model.0.conv.weight`,
`model.2.m.0.cv1.conv.bias`, `model.23.one2one_cv3.0.2.weight`. Published weights have
the license AGPL-3.0; this code was written from the description of the architecture.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ShapeError
from mijax.core import site
from mijax.io import Size
from mijax.models._family import Family, Preset, Table, path_name
from mijax.models._letterbox import Letterbox
from mijax.models._mirror import mirrored
from mijax.models._yolo26_blocks import (
    C2PSA,
    IMAGE,
    SPPF,
    AttentionBlock,
    Bottleneck,
    C3k,
    C3k2,
    Conv,
    Detect,
    Make,
    upsample,
)

STRIDES = (8, 16, 32)
UP, TOGETHER = (11, 14), {12: 6, 15: 4, 18: 13, 21: 10}
HEAD_INPUTS = (16, 19, 22)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Sizes of a detector that are factors of those of the largest.

    Attributes:
        depth: factor of the number of blocks in a stage.
        width: factor of the number of channels.
        most: most channels of a stage, before the factor.
        deep: True if every stage has the deeper kind of block (m, l, x).
        classes: number of classes.
    """

    depth: float = 0.5
    width: float = 0.25
    most: Size = 1024
    deep: bool = False
    classes: Size = 80

    @property
    def layers(self) -> int:
        """Number of stages, the head included."""
        return 24

    def channels(self, channels: int) -> int:
        """Return the number of channels of a stage: a multiple of 8."""
        return max(8, -int(-min(channels, self.most) * self.width // 8) * 8)

    def count(self, blocks: int) -> int:
        """Return the number of blocks of a stage."""
        return max(round(blocks * self.depth), 1)


@dataclasses.dataclass(frozen=True)
class Yolo26Spec(Scaled):
    """Sizes of a YOLO26.

    Attributes:
        depth: factor of the number of blocks in a stage.
        width: factor of the number of channels.
        most: most channels of a stage, before the factor.
        deep: True if every stage has the deeper kind of block (m, l, x).
        classes: number of classes.
    """


class DetectorOutput(NamedTuple):
    """Boxes and class logits of a detector, at every anchor.

    Attributes:
        boxes: left, top, right, bottom in pixels of the model's input.
        logits: class logits; the score of a class is their sigmoid.
    """

    boxes: Float[Array, "anchor side"]
    logits: Float[Array, "anchor class"]


class Yolo26(eqx.Module):
    """A YOLO26 detector of any size.

    An anchor is a place of one of the three maps that the head reads: first all of
    stride 8, along rows, then 16, then 32. Sites:

    | site | layers | axes |
    |---|---|---|
    | `conv` | every convolution with its activation | `channel row column` |
    | `stage` | stages 0 to 22, numbered as in the file | `channel row column` |
    | `q` `k` `v` `z` | the attention layers | `position head head_dim` |
    | `scores` `pattern` | the same | `position head key_position` |
    | `logits` | | `anchor class` |
    | `boxes` | | `anchor side` |

    `conv_names` lists the convolutions; `scores` are those of attention.

    Attributes:
        model: the stages.
    """

    model: tuple[Any, ...]

    def __call__(self, image: Float[Array, "channel row column"]) -> DetectorOutput:
        """Detect objects in one image, red, green and blue from 0 to 1.

        Args:
            image: sides that are multiples of 32.

        Returns:
            A box and class logits for each anchor.

        Raises:
            ShapeError: an image of another rank, or with other sides.
        """
        return detected(self.model, image)

    @property
    def conv_names(self) -> tuple[str, ...]:
        """Name in the weight file of each layer of the site `conv`.

        Examples:
            >>> import jax, mijax
            >>> key = jax.random.key(0)
            >>> model = mijax.models.init_image_model("yolo26n", key)
            >>> model.conv_names[:3]
            ('model.0', 'model.1', 'model.2.cv1')
        """
        return conv_names(self)


def detected(
    model: tuple[Any, ...], image: Float[Array, "channel row column"]
) -> DetectorOutput:
    """Return the outputs of the stages of a detector for one image.

    Raises:
        ShapeError: an image of another rank, or with other sides.
    """
    if image.ndim != 3 or any(side % STRIDES[-1] for side in image.shape[1:]):
        raise ShapeError(
            f"The image has shape {list(image.shape)}, expected [channel, row, "
            f"column] with sides that are multiples of {STRIDES[-1]}. Use the "
            "preprocessing that comes with the model, or mijax.models.Letterbox."
        )
    outputs, x = [], image
    for i, stage in enumerate(model[:-1]):
        if i in UP:
            x = upsample(x)
        elif i in TOGETHER:
            x = jnp.concatenate([x, outputs[TOGETHER[i]]])
        else:
            x = stage(x)
        x = site("stage", x, IMAGE)
        outputs.append(x)
    sides, logits = model[-1]([outputs[i] for i in HEAD_INPUTS])
    boxes = jnp.concatenate(list(map(_boxes, sides, STRIDES)))
    flat = jnp.concatenate([y.reshape(y.shape[0], -1).T for y in logits])
    return DetectorOutput(
        site("boxes", boxes, "anchor side"), site("logits", flat, "anchor class")
    )


def conv_names(model: Any) -> tuple[str, ...]:
    """Return the name in the weight file of each convolution with an activation."""
    is_conv = lambda node: isinstance(node, Conv)  # noqa: E731
    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_conv)[0]
    return tuple(path_name(path) for path, node in found if is_conv(node))


def _boxes(
    sides: Float[Array, "side row column"], stride: int
) -> Float[Array, "anchor side"]:
    """Return boxes from distances between the center of a place and the sides."""
    _, rows, columns = sides.shape
    y, x = jnp.meshgrid(
        jnp.arange(rows) + 0.5, jnp.arange(columns) + 0.5, indexing="ij"
    )
    left, top, right, bottom = sides
    boxes = jnp.stack([x - left, y - top, x + right, y + bottom], axis=-1)
    return stride * boxes.reshape(-1, 4)


def init(spec: Yolo26Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Yolo26:
    """Draw random weights."""
    make = Make(key, dtype)
    c64, c128, c256, c512, c1024 = map(spec.channels, (64, 128, 256, 512, 1024))

    def down(inputs: int, outputs: int) -> Conv:
        return make.conv(inputs, outputs, 3, stride=2)

    def stage(inputs: int, outputs: int, *, deep: bool = True, expansion=0.5) -> C3k2:
        return C3k2.make(
            make,
            inputs,
            outputs,
            block=C3k.make if deep or spec.deep else bottleneck,
            count=spec.count(2),
            expansion=expansion,
        )

    last = C3k2.make(make, c512 + c1024, c1024, block=_attended, count=1)
    layers = (
        down(3, c64),
        down(c64, c128),
        stage(c128, c256, deep=False, expansion=0.25),
        down(c256, c256),
        stage(c256, c512, deep=False, expansion=0.25),
        down(c512, c512),
        stage(c512, c512),
        down(c512, c1024),
        stage(c1024, c1024),
        SPPF.make(make, c1024, c1024),
        C2PSA.make(make, c1024, spec.count(2)),
        (),
        (),
        stage(c1024 + c512, c512),
        (),
        (),
        stage(c512 + c512, c256),
        down(c256, c256),
        (),
        stage(c256 + c512, c512),
        down(c512, c512),
        (),
        last,
        Detect.make(make, (c256, c512, c1024), spec.classes),
    )
    return Yolo26(layers)


def bottleneck(make: Make, width: int) -> Bottleneck:
    return Bottleneck.make(make, width, 0.5)


def _attended(make: Make, width: int) -> tuple[Bottleneck, AttentionBlock]:
    return bottleneck(make, width), AttentionBlock.make(make, width)


def table(spec: Yolo26Spec) -> Table:
    """Return names and shapes of the tensors; the tree has the names of the file."""
    return mirrored(YOLO26.skeleton(spec))


YOLO26 = Family(
    name="yolo26",
    spec=Yolo26Spec,
    init=init,
    presets={
        f"yolo26{size}": Preset(spec, input=Letterbox())
        for size, spec in {
            "n": Yolo26Spec(0.5, 0.25, 1024),
            "s": Yolo26Spec(0.5, 0.5, 1024),
            "m": Yolo26Spec(0.5, 1.0, 512, deep=True),
            "l": Yolo26Spec(1.0, 1.0, 512, deep=True),
            "x": Yolo26Spec(1.0, 1.5, 512, deep=True),
        }.items()
    },
    table=table,
)
