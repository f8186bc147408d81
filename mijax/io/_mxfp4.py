"""Weights in four bits with a shared exponent (MXFP4), read as bfloat16.

The format of the Open Compute Project (MX specification 1.0, 2023): 32 neighbors share
one power of two; each has a sign, two bits of exponent and one of mantissa.
"""

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8

from mijax._errors import LoadError
from mijax.io._tensors import Tensors

VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
# The two values of a byte, that of its low bits first.
SIGNED = np.concatenate([VALUES, -VALUES])
PAIRS = np.stack([np.tile(SIGNED, 16), np.repeat(SIGNED, 16)], axis=-1)
BLOCKS, SCALES = "_blocks", "_scales"
# Bytes of a block of 32 values, and what an exponent is counted from.
WIDTH, BIAS = 16, 127


class Mxfp4Tensors:
    """The tensors of a file, with pairs of `NAME_blocks` and `NAME_scales` as `NAME`.

    Blocks are `[*rows, block, 16]` bytes and scales `[*rows, block]`; the tensor is
    `[*rows, 32 block]` in bfloat16, in which every value is exact. Other tensors are
    read as they are.

    Args:
        tensors: the tensors of the file.

    Raises:
        LoadError: blocks without scales, or of another shape.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors, self.path, self.files = tensors, tensors.path, tensors.files
        shapes = dict(tensors.shapes)
        self.packed = {
            name.removesuffix(BLOCKS) for name in shapes if name.endswith(BLOCKS)
        }
        for name in sorted(self.packed):
            blocks, scales = shapes.pop(name + BLOCKS), shapes.pop(name + SCALES, ())
            if (*scales, WIDTH) != blocks or len(blocks) < 3:
                raise LoadError(
                    f"{self.path}: tensor '{name}{BLOCKS}' has shape {blocks} and its "
                    f"scales {scales or None}, expected (..., rows, n, {WIDTH}) and "
                    "(..., rows, n). Download the file again."
                )
            shapes[name] = (*scales[:-1], scales[-1] * 2 * WIDTH)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        if name not in self.packed:
            return self.tensors.read(name)
        blocks = self.tensors.read(name + BLOCKS)
        scales = self.tensors.read(name + SCALES)
        if blocks.dtype != np.uint8 or scales.dtype != np.uint8:
            raise LoadError(
                f"{self.path}: blocks and scales of '{name}' have dtypes "
                f"{blocks.dtype} and {scales.dtype}, expected uint8."
            )
        found = np.empty(self.shapes[name], ml_dtypes.bfloat16)
        # One expert at a time, since float32 is eight times as large as the blocks.
        for part, *given in zip(found, blocks, scales, strict=True):
            part[...] = dequantize(*given)
        return found


def dequantize(
    blocks: UInt8[np.ndarray, "*rows block 16"],
    scales: UInt8[np.ndarray, "*rows block"],
) -> Float[np.ndarray, "*rows width"]:
    """Return the values of blocks, in float32; the largest exponent stands for NaN."""
    exponents = np.where(scales == 2 * BIAS + 1, np.float32(math.nan), scales)
    power = np.exp2(exponents - BIAS)
    values = PAIRS[blocks].reshape(*scales.shape, 2 * WIDTH) * power[..., None]
    return values.reshape(*scales.shape[:-1], -1)
