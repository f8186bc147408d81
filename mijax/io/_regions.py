"""Byte ranges of the tensors of one file."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mijax._errors import LoadError

AGAIN = "Download or copy the file again."


class Region(NamedTuple):
    """Bytes of one tensor, and of the padding after it."""

    name: str
    begin: int
    size: int
    padded: int


def check_regions(regions: Iterable[Region], path: Path, available: int) -> None:
    """Refuse tensors that overlap, leave gaps, or do not fill the file.

    Args:
        regions: the byte range of every tensor, counted from the first byte of data.
        path: the file, named by errors.
        available: bytes of data in the file, with or without the last padding.

    Raises:
        LoadError: names the first tensor that is out of place.
    """
    expected, last = 0, None
    for region in sorted(regions, key=lambda r: (r.begin, r.size)):
        if region.begin != expected:
            problem = "overlaps" if region.begin < expected else "leaves a gap after"
            before = "the header" if last is None else f"'{last.name}'"
            raise LoadError(
                f"{path}: tensor '{region.name}' begins at byte {region.begin} of the "
                f"data, expected {expected}: it {problem} {before}. {AGAIN}"
            )
        expected, last = region.begin + region.padded, region
    needed = 0 if last is None else last.begin + last.size
    if not needed <= available <= max(needed, expected):
        name = "" if last is None else f" '{last.name}'"
        raise LoadError(
            f"{path} has {available} bytes of data, but its last tensor{name} ends at "
            f"byte {needed}. {AGAIN}"
        )


def check_weights(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return an array of finite floats, or refuses it.

    Args:
        array: the array.
        name: its name in the file.
        path: the file, named by errors.

    Raises:
        LoadError: integers, booleans or complex numbers, or a value that is NaN or
            infinite.
    """
    if not (array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float16")):
        raise LoadError(
            f"{path}: tensor '{name}' has dtype {array.dtype}, expected floats. Save "
            "the weights as floats, without quantization."
        )
    if not np.isfinite(array).all():
        raise LoadError(
            f"{path}: tensor '{name}' has values that are NaN or infinite: these "
            "weights are damaged or come from a run that diverged. Load an earlier "
            "checkpoint."
        )
    return array
