"""Flax checkpoints of Hugging Face models, under the names of the torch ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import LoadError


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
        from flax import serialization, traverse_util  # noqa: PLC0415 - slow to import

        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        try:
            tree = serialization.msgpack_restore(path.read_bytes())
            flat = traverse_util.flatten_dict(tree, sep=".")
        except Exception as error:  # msgpack raises many unrelated kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LoadError(
                f"{path} is not a whole flax msgpack file ({reason}). "
                "Download or copy the file again."
            ) from error
        self.path = path
        self.files = (path,)
        self.arrays = dict(torch_name(name, array) for name, array in flat.items())
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: array.shape for name, array in self.arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Returns one array."""
        return self.arrays[name]


def torch_name(name: str, value: Any) -> tuple[str, np.ndarray]:
    """Spells a flax name and array as torch does."""
    stem, _, last = name.rpartition(".")
    array = np.asarray(value)
    if last == "kernel":
        return f"{stem}.weight", array.T
    return (f"{stem}.weight" if last in ("embedding", "scale") else name), array
