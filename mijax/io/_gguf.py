"""GGUF files of llama.cpp, dequantised one tensor at a time."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import LoadError

BROKEN = (ValueError, IndexError, KeyError, OSError, struct.error, OverflowError)


class Gguf:
    """The tensors and metadata of one `.gguf` file.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, truncated or not GGUF.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader  # noqa: PLC0415 - slow to import, rarely needed

        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        try:
            reader = GGUFReader(path)
        except BROKEN as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LoadError(
                f"{path} is not a whole GGUF file ({reason}). "
                "Download or copy the file again."
            ) from error
        self.path = path
        self.files = (path,)
        self.fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(int(n) for n in reversed(tensor.shape))
            for name, tensor in self.tensors.items()
        }

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def metadata(self, key: str, default: Any = None) -> Any:
        """Reads one entry of the metadata.

        Args:
            key: its name, for example `"llama.block_count"`.
            default: what to return where there is none; `None` refuses.

        Returns:
            A number, string or list.

        Raises:
            LoadError: there is no such entry and no default.
        """
        if key in self.fields:
            return self.fields[key].contents()
        if default is None:
            raise LoadError(
                f"{self.path} has no metadata '{key}', which this model needs. "
                "Convert the model to GGUF again."
            )
        return default

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor and dequantises it to float32."""
        from gguf.quants import dequantize  # noqa: PLC0415

        tensor = self.tensors[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise LoadError(
                f"{self.path}: tensor '{name}' is quantised as "
                f"{tensor.tensor_type.name}, which cannot be dequantised here. "
                "Use a file in F16, BF16, F32, Q8_0 or a K-quant."
            ) from error
        return array.reshape(self.shapes[name])
