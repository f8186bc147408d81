"""Blocks of YOLO26 and YOLO11, with fields in the order of computation.

Fields have the names of the weight files.

Each takes one image's maps `[channel, row, column]`. Batch normalization is folded into
the convolutions.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.core import site
from mijax.core.internal import HEADS

IMAGE = "channel row column"
GRID = "position head key_position"
HEAD_WIDTH = 64
Maps = Float[Array, "channel row column"]
NewMaps = Float[Array, "channel_2 row_2 column_2"]
AnyMaps = Float[Array, "_ _ _"]


class Make:
    """Draw the layers of a model with keys that are split from one.

    Args:
        key: random key.
        dtype: precision of the weights.
    """

    def __init__(self, key: PRNGKeyArray, dtype: DTypeLike) -> None:
        self.keys, self.dtype = _split(key), dtype

    def plain(
        self, inputs: int, outputs: int, size: int = 1, *, stride: int = 1, groups=1
    ) -> eqx.nn.Conv2d:
        """Return a convolution that keeps the size of the maps, or divides it."""
        return eqx.nn.Conv2d(
            inputs,
            outputs,
            size,
            stride,
            padding=size // 2,
            groups=groups,
            dtype=self.dtype,
            key=next(self.keys),
        )

    def conv(
        self, inputs: int, outputs: int, size: int = 1, *, active: bool = True, **more
    ) -> "Conv":
        """Return a convolution with its activation."""
        return Conv(self.plain(inputs, outputs, size, **more), active)

    def depthwise(self, inputs: int, outputs: int, *, active: bool = True) -> "Conv":
        """Return a 3 by 3 convolution with as many groups as divide both sizes."""
        groups = math.gcd(inputs, outputs)
        return self.conv(inputs, outputs, 3, active=active, groups=groups)

    def classes(self, inputs: int, hidden: int, classes: int) -> "ClassBranch":
        """Return the branch of a head that gives class logits."""
        return (
            (self.depthwise(inputs, inputs), self.conv(inputs, hidden)),
            (self.depthwise(hidden, hidden), self.conv(hidden, hidden)),
            self.plain(hidden, classes),
        )


def _split(key: PRNGKeyArray) -> Iterator[PRNGKeyArray]:
    """Yield new keys."""
    while True:
        key, one = jax.random.split(key)
        yield one


class Conv(eqx.Module):
    """A convolution, and SiLU if `active`; what it returns is the site `conv`."""

    conv: eqx.nn.Conv2d
    active: bool = eqx.field(static=True, default=True)

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the layer."""
        x = self.conv(x)
        return site("conv", jax.nn.silu(x) if self.active else x, IMAGE)


# Branches of a head for one of the maps that it reads.
BoxBranch = tuple[Conv, Conv, eqx.nn.Conv2d]
ClassBranch = tuple[tuple[Conv, Conv], tuple[Conv, Conv], eqx.nn.Conv2d]


class Bottleneck(eqx.Module):
    """Two convolutions, added to their input."""

    cv1: Conv
    cv2: Conv

    @classmethod
    def make(cls, make: Make, width: int, expansion: float) -> "Bottleneck":
        """Draw random weights."""
        hidden = int(width * expansion)
        return cls(make.conv(width, hidden, 3), make.conv(hidden, width, 3))

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        return x + self.cv2(self.cv1(x))


class C3k(eqx.Module):
    """Bottlenecks on one half of the channels, next to a shortcut on the other."""

    cv1: Conv
    m: tuple[Bottleneck, ...]
    cv2: Conv
    cv3: Conv

    @classmethod
    def make(cls, make: Make, width: int, count: int = 2) -> "C3k":
        """Draw random weights."""
        half = width // 2
        cv1 = make.conv(width, half)
        m = tuple(Bottleneck.make(make, half, 1.0) for _ in range(count))
        return cls(cv1, m, make.conv(width, half), make.conv(2 * half, width))

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        return self.cv3(jnp.concatenate([in_turn(self.m, self.cv1(x)), self.cv2(x)]))


class Attention(eqx.Module):
    """Self-attention between the places of the maps; sites `q k v scores pattern z`.

    Values pass a depthwise convolution too, which is added to what the heads read. Keys
    and queries of a head have half the width of its values. A position is a place of
    the maps, counted along rows.
    """

    qkv: Conv
    pe: Conv
    proj: Conv
    heads: int = eqx.field(static=True)

    @classmethod
    def make(cls, make: Make, width: int) -> "Attention":
        """Draw random weights."""
        heads = max(width // HEAD_WIDTH, 1)
        keys = heads * (width // heads // 2)
        qkv = make.conv(width, width + 2 * keys, active=False)
        pe = make.depthwise(width, width, active=False)
        return cls(qkv, pe, make.conv(width, width, active=False), heads)

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the layer."""
        width, *space = x.shape
        each = self.qkv(x).reshape(self.heads, -1, math.prod(space))
        key_dim = (each.shape[1] - width // self.heads) // 2
        q, k, v = jnp.split(each.transpose(2, 0, 1), (key_dim, 2 * key_dim), axis=-1)
        q, k, v = site("q", q, HEADS), site("k", k, HEADS), site("v", v, HEADS)
        scores = jnp.einsum("phd,khd->phk", q, k) * key_dim**-0.5
        pattern = jax.nn.softmax(site("scores", scores, GRID), axis=-1)
        pattern = site("pattern", pattern, GRID)
        z = site("z", jnp.einsum("phk,khd->phd", pattern, v), HEADS)
        mixed, values = (y.reshape(len(y), -1).T.reshape(x.shape) for y in (z, v))
        return self.proj(mixed + self.pe(values))


class AttentionBlock(eqx.Module):
    """Attention, then two convolutions, each added to its input."""

    attn: Attention
    ffn: tuple[Conv, Conv]

    @classmethod
    def make(cls, make: Make, width: int) -> "AttentionBlock":
        """Draw random weights."""
        attention = Attention.make(make, width)
        wide = make.conv(width, 2 * width)
        return cls(attention, (wide, make.conv(2 * width, width, active=False)))

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        x = x + self.attn(x)
        return x + in_turn(self.ffn, x)


class C3k2(eqx.Module):
    """Blocks on half of the channels; what each returns is kept and mixed.

    Attributes:
        cv1: makes both halves.
        m: blocks, each one layer or several in a row.
        cv2: mixes the halves and what each block returns.
    """

    cv1: Conv
    m: tuple[Any, ...]
    cv2: Conv

    @classmethod
    def make(
        cls,
        make: Make,
        inputs: int,
        outputs: int,
        *,
        block: Callable[[Make, int], Any],
        count: int,
        expansion: float = 0.5,
    ) -> "C3k2":
        """Draw random weights."""
        half = int(outputs * expansion)
        cv1 = make.conv(inputs, 2 * half)
        m = tuple(block(make, half) for _ in range(count))
        return cls(cv1, m, make.conv((2 + count) * half, outputs))

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        parts = jnp.split(self.cv1(x), 2)
        for block in self.m:
            chain = block if isinstance(block, tuple) else (block,)
            parts.append(in_turn(chain, parts[-1]))
        return self.cv2(jnp.concatenate(parts))


class SPPF(eqx.Module):
    """Three maxima over 5 by 5 places in a row, all kept and mixed.

    Attributes:
        cv1: makes the maps that the maxima read.
        cv2: mixes these maps and the maxima.
        shortcut: True if the input is added to the output (YOLO26).
    """

    cv1: Conv
    cv2: Conv
    shortcut: bool = eqx.field(static=True, default=True)

    @classmethod
    def make(
        cls,
        make: Make,
        inputs: int,
        outputs: int,
        *,
        active: bool = False,
        shortcut: bool = True,
    ) -> "SPPF":
        """Draw random weights."""
        half = inputs // 2
        first = make.conv(inputs, half, active=active)
        return cls(first, make.conv(4 * half, outputs), shortcut)

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        pool, parts = eqx.nn.MaxPool2d(5, 1, 2), [self.cv1(x)]
        for _ in range(3):
            parts.append(pool(parts[-1]))
        out = self.cv2(jnp.concatenate(parts))
        return x + out if self.shortcut and x.shape == out.shape else out


class C2PSA(eqx.Module):
    """Attention blocks on half of the channels."""

    cv1: Conv
    m: tuple[AttentionBlock, ...]
    cv2: Conv

    @classmethod
    def make(cls, make: Make, width: int, count: int) -> "C2PSA":
        """Draw random weights."""
        cv1 = make.conv(width, 2 * (width // 2))
        m = tuple(AttentionBlock.make(make, width // 2) for _ in range(count))
        return cls(cv1, m, make.conv(2 * (width // 2), width))

    def __call__(self, x: Maps) -> NewMaps:
        """Apply the block."""
        kept, attended = jnp.split(self.cv1(x), 2)
        return self.cv2(jnp.concatenate([kept, in_turn(self.m, attended)]))


class Detect(eqx.Module):
    """The one-to-one head: boxes and class logits at each place of three maps."""

    one2one_cv2: tuple[BoxBranch, ...]
    one2one_cv3: tuple[ClassBranch, ...]

    @classmethod
    def make(cls, make: Make, inputs: tuple[int, ...], classes: int) -> "Detect":
        """Draw random weights."""
        wide = max(16, inputs[0] // 4, 4)
        deep = max(inputs[0], min(classes, 100))
        sides = tuple(
            (make.conv(n, wide, 3), make.conv(wide, wide, 3), make.plain(wide, 4))
            for n in inputs
        )
        scores = tuple(make.classes(n, deep, classes) for n in inputs)
        return cls(sides, scores)

    def __call__(self, maps: list[AnyMaps]) -> tuple[list[AnyMaps], list[AnyMaps]]:
        """Return distances to the sides of a box, and class logits, for each map."""
        sides = [in_turn(c, x) for c, x in zip(self.one2one_cv2, maps, strict=True)]
        flat = [(*a, *b, c) for a, b, c in self.one2one_cv3]
        return sides, [in_turn(c, x) for c, x in zip(flat, maps, strict=True)]


def upsample(x: Maps) -> NewMaps:
    """Repeat each place in two rows and columns."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def in_turn(layers: tuple[Any, ...], x: Maps) -> NewMaps:
    """Apply layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x
