"""YOLO11, a detector whose boxes need non-maximum suppression (Ultralytics 2024).

Stages are those of YOLO26, with other kinds of blocks in a few of them. The head gives
a distribution over distances for each side of a box (Li et al. 2020,
arXiv:2006.04388). It is trained so that many anchors find each object:
`non_max_suppression` keeps the best of them. Batch normalization is folded into the
convolutions, as in a fused model of Ultralytics.

Weight files name tensors as Ultralytics does: `model.0.conv.weight`,
`model.2.m.0.cv1.conv.bias`, `model.23.cv3.0.2.weight`. Published weights have the
license AGPL-3.0; this code was written from the description of the architecture.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.core import site
from mijax.io import Size
from mijax.models._family import Family, Preset, Table
from mijax.models._letterbox import Letterbox
from mijax.models._mirror import mirrored
from mijax.models._yolo26 import (
    DetectorOutput,
    Scaled,
    bottleneck,
    conv_names,
    detected,
)
from mijax.models._yolo26_blocks import (
    C2PSA,
    SPPF,
    AnyMaps,
    BoxBranch,
    C3k,
    C3k2,
    ClassBranch,
    Conv,
    Make,
    in_turn,
)


@dataclasses.dataclass(frozen=True)
class Yolo11Spec(Scaled):
    """Sizes of a YOLO11.

    Attributes:
        depth: factor of the number of blocks in a stage.
        width: factor of the number of channels.
        most: most channels of a stage, before the factor.
        deep: True if every stage has the deeper kind of block (m, l, x).
        classes: number of classes.
        bins: distances from 0 that the distribution of a side is over, in strides.
    """

    bins: Size = 16


class Distances(eqx.Module):
    """Expected distances to the sides of a box; the site `bins` is the distribution.

    Attributes:
        conv: the distance of each bin, `[1, bin, 1, 1]`: 0, 1, 2, ...
    """

    conv: eqx.nn.Conv2d

    def __call__(self, x: AnyMaps) -> AnyMaps:
        """Return the expectation of each of four sides."""
        logits = x.reshape(4, -1, *x.shape[1:])
        weights = jax.nn.softmax(logits, axis=1)
        weights = site("bins", weights, "side bin row column")
        return jnp.einsum("sbrc,b->src", weights, self.conv.weight[0, :, 0, 0])


class DistributionDetect(eqx.Module):
    """The head: boxes and class logits at each place of three maps."""

    cv2: tuple[BoxBranch, ...]
    cv3: tuple[ClassBranch, ...]
    dfl: Distances

    @classmethod
    def make(
        cls, make: Make, inputs: tuple[int, ...], spec: Yolo11Spec
    ) -> "DistributionDetect":
        """Draw random weights."""
        wide = max(16, inputs[0] // 4, 4 * spec.bins)
        deep = max(inputs[0], min(spec.classes, 100))
        sides = tuple(
            (
                make.conv(n, wide, 3),
                make.conv(wide, wide, 3),
                make.plain(wide, 4 * spec.bins),
            )
            for n in inputs
        )
        scores = tuple(make.classes(n, deep, spec.classes) for n in inputs)
        conv = eqx.nn.Conv2d(
            spec.bins, 1, 1, use_bias=False, dtype=make.dtype, key=next(make.keys)
        )
        bins = jnp.arange(spec.bins, dtype=make.dtype)[None, :, None, None]
        return cls(
            sides, scores, Distances(eqx.tree_at(lambda c: c.weight, conv, bins))
        )

    def __call__(self, maps: list[AnyMaps]) -> tuple[list[AnyMaps], list[AnyMaps]]:
        """Return distances to the sides of a box, and class logits, for each map."""
        sides = [self.dfl(in_turn(c, x)) for c, x in zip(self.cv2, maps, strict=True)]
        flat = [(*a, *b, c) for a, b, c in self.cv3]
        return sides, [in_turn(c, x) for c, x in zip(flat, maps, strict=True)]


class Yolo11(eqx.Module):
    """A YOLO11 detector of any size.

    Anchors and sites are those of `Yolo26`, and the site `bins`, `side bin row column`:
    for each of the three maps the distribution over distances to the sides of a box.
    Many anchors find one object; see `non_max_suppression`.

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
        """Name in the weight file of each layer of the site `conv`."""
        return conv_names(self)


def init(spec: Yolo11Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Yolo11:
    """Draw random weights."""
    make = Make(key, dtype)
    c64, c128, c256, c512, c1024 = map(spec.channels, (64, 128, 256, 512, 1024))

    def down(inputs: int, outputs: int) -> Conv:
        return make.conv(inputs, outputs, 3, stride=2)

    def stage(inputs: int, outputs: int, *, deep: bool, expansion=0.5) -> C3k2:
        return C3k2.make(
            make,
            inputs,
            outputs,
            block=C3k.make if deep or spec.deep else bottleneck,
            count=spec.count(2),
            expansion=expansion,
        )

    layers = (
        down(3, c64),
        down(c64, c128),
        stage(c128, c256, deep=False, expansion=0.25),
        down(c256, c256),
        stage(c256, c512, deep=False, expansion=0.25),
        down(c512, c512),
        stage(c512, c512, deep=True),
        down(c512, c1024),
        stage(c1024, c1024, deep=True),
        SPPF.make(make, c1024, c1024, active=True, shortcut=False),
        C2PSA.make(make, c1024, spec.count(2)),
        (),
        (),
        stage(c1024 + c512, c512, deep=False),
        (),
        (),
        stage(c512 + c512, c256, deep=False),
        down(c256, c256),
        (),
        stage(c256 + c512, c512, deep=False),
        down(c512, c512),
        (),
        stage(c512 + c1024, c1024, deep=True),
        DistributionDetect.make(make, (c256, c512, c1024), spec),
    )
    return Yolo11(layers)


def table(spec: Yolo11Spec) -> Table:
    """Return names and shapes of the tensors; the tree has the names of the file."""
    return mirrored(YOLO11.skeleton(spec))


YOLO11 = Family(
    name="yolo11",
    spec=Yolo11Spec,
    init=init,
    presets={
        f"yolo11{size}": Preset(spec, input=Letterbox())
        for size, spec in {
            "n": Yolo11Spec(0.5, 0.25, 1024),
            "s": Yolo11Spec(0.5, 0.5, 1024),
            "m": Yolo11Spec(0.5, 1.0, 512, deep=True),
            "l": Yolo11Spec(1.0, 1.0, 512, deep=True),
            "x": Yolo11Spec(1.0, 1.5, 512, deep=True),
        }.items()
    },
    table=table,
)
