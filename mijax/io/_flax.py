"""Flax checkpoints of Hugging Face models, under the names of the torch ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import LoadError
from mijax.io._json import unique


class FlaxTensors:
    """The arrays of a `flax_model.msgpack`.

    Names are joined with dots; `kernel` (transposed), `embedding` and `scale` become
    `weight`, which is what the torch files of the same models say. The file is held
    in memory until its arrays are read.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, truncated or not msgpack.
    """

    def __init__(self, path: Path) -> None:
        import msgpack  # noqa: PLC0415 - comes with flax
        from flax import serialization, traverse_util  # noqa: PLC0415 - slow to import

        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        try:
            data = path.read_bytes()
            msgpack.unpackb(data, object_pairs_hook=unique, ext_hook=nothing)
            flat = traverse_util.flatten_dict(serialization.msgpack_restore(data))
            found = [torch_name(*item) for item in flat.items()]
            self.arrays = unique(found)
        except Exception as error:  # msgpack raises many unrelated kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LoadError(
                f"{path} is not a whole flax msgpack file ({reason}). "
                "Download or copy the file again."
            ) from error
        self.path = path
        self.files = (path,)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: array.shape for name, array in self.arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Return one array."""
        return self.arrays[name]


def nothing(code: int, data: bytes) -> None:
    """Skip an array, where only the keys are of interest."""


def torch_name(name: tuple[str, ...], value: Any) -> tuple[str, np.ndarray]:
    """Spell a flax name and array as torch does."""
    stem, last = ".".join(name[:-1]), name[-1]
    array = np.asarray(value)
    if last == "kernel":
        return f"{stem}.weight", array.T
    last = "weight" if last in ("embedding", "scale") else last
    return (f"{stem}.{last}" if stem else last), array
