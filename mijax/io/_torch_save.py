"""Weight files of torch, written without torch."""

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mijax.io._durable import replace_file
from mijax.io._torch_pickle import STORAGES


def save_torch(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a dict of arrays, numbers and strings as `torch.save` would.

    `torch.load(path, weights_only=True)` reads it.

    Args:
        content: arrays, whole numbers, strings, and dicts and lists of those.
        path: the file, which appears whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    text = b"\x80\x02" + encode(content, arrays) + b"."

    def write(scratch: Path) -> None:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
            put = lambda name, data: archive.writestr(  # noqa: E731
                zipfile.ZipInfo(f"archive/{name}"), data
            )
            put("data.pkl", text)
            put("byteorder", b"little")
            for index, array in enumerate(arrays):
                put(f"data/{index}", array.tobytes())
            put("version", b"3\n")

    replace_file(path, write)


def encode(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Writes a value in the language of pickles, protocol 2; collects arrays."""
    if isinstance(value, Mapping):
        items = b"".join(
            encode(key, arrays) + encode(item, arrays) for key, item in value.items()
        )
        return b"ccollections\nOrderedDict\n)R(" + items + b"u"
    if isinstance(value, list | tuple):
        return b"](" + b"".join(encode(item, arrays) for item in value) + b"e"
    if isinstance(value, str):
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, int):
        raw = value.to_bytes(8, "little", signed=True)
        return b"\x8a\x08" + raw
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    names = {dtype: name for name, dtype in STORAGES.items()}
    strides = [step // array.itemsize for step in array.strides]
    number = lambda n: encode(int(n), arrays)  # noqa: E731
    several = lambda items: b"(" + b"".join(map(number, items)) + b"t"  # noqa: E731
    storage = (
        b"("
        + encode("storage", arrays)
        + f"ctorch\n{names[array.dtype]}\n".encode()
        + encode(str(len(arrays)), arrays)
        + encode("cpu", arrays)
        + number(array.size)
        + b"tQ"
    )
    arrays.append(array)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(0)
        + several(array.shape)
        + several(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
