"""llama.cpp control vectors: GGUF files with architecture `controlvector`."""

import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mijax._errors import ConfigError, LoadError
from mijax.io import Gguf, replace_file
from mijax.steering._directions import Directions

ARCHITECTURE = "controlvector"
SITE = "resid_post"
NAME = re.compile(r"direction\.(0|[1-9][0-9]*)")


def save_gguf(
    directions: Directions, path: str | os.PathLike[str], *, model_hint: str
) -> None:
    """Save directions as a control vector for llama.cpp.

    The tensor `direction.{l}` is added to the output of block `l`, counted from 0.
    llama.cpp has no control vector for block 0, and takes the strength from its command
    line.

    Args:
        directions: vectors at `resid_post`, without one for layer 0.
        path: the `.gguf` file, written atomically.
        model_hint: architecture of the model, such as `"llama"`.

    Raises:
        ConfigError: vectors from a different site, or one for layer 0.
        OutputError: the file cannot be written.

    Examples:
        >>> import tempfile
        >>> made = Directions(jnp.ones((2, 32)), layers=[1, 2])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_gguf(made, f"{folder}/joy.gguf", model_hint="llama")
        ...     load_gguf(f"{folder}/joy.gguf").layers
        (1, 2)

    Source: repeng 0.4.0, `ControlVector.export_gguf`.
    """
    from gguf import GGUFWriter  # noqa: PLC0415 - slow to import

    if directions.site != SITE or 0 in directions.layers:
        raise ConfigError(
            "llama.cpp adds control vectors to the outputs of block 1 and later: give "
            f"directions at {SITE} without layer 0, got {directions!r}."
        )
    rows = dict(zip(directions.layers, np.asarray(directions.vectors), strict=True))

    def write(part: Path) -> None:
        writer = GGUFWriter(str(part), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
        for layer in sorted(rows):
            row = np.ascontiguousarray(rows[layer], np.float32)
            writer.add_tensor(f"direction.{layer}", row)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    replace_file(Path(path), write)


def load_gguf(path: str | os.PathLike[str], *, width: int | None = None) -> Directions:
    """Load a control vector from llama.cpp or repeng.

    Args:
        path: the file.
        width: width of the model, to check that the vectors fit.

    Returns:
        Directions at `resid_post`; their method includes the file's model hint.

    Raises:
        LoadError: the file is not a control vector or has none, widths differ from
            each other or from the model's, or a tensor has an unexpected name.
    """
    file = Gguf(Path(path))
    found = file.fields.get("general.architecture")
    if found != ARCHITECTURE:
        raise LoadError(
            f"{path} has architecture {found!r}, expected {ARCHITECTURE!r}: give a "
            "control vector, such as save_gguf writes."
        )
    layers = {}
    for name in file.tensors:
        match = NAME.fullmatch(name)
        if match is None:
            raise LoadError(
                f"{path}: tensor {name!r} is not named direction.0, direction.1, ...: "
                "it is not a control vector."
            )
        layers[int(match[1])] = file.read(name)
    shapes = {rows.shape for rows in layers.values()}
    if len(shapes) != 1 or any(len(shape) != 1 for shape in shapes):
        raise LoadError(
            f"{path} has directions of shapes {sorted(shapes)}, expected one vector of "
            "the same width for each layer."
        )
    size = next(iter(shapes))[0]
    if width is not None and size != width:
        raise LoadError(
            f"{path} has vectors of width {size}, and the model has width {width}: it "
            "was made for another model."
        )
    hint: Any = file.fields.get(f"{ARCHITECTURE}.model_hint", "unknown")
    order = sorted(layers)
    return Directions(
        jnp.asarray(np.stack([layers[layer] for layer in order])),
        layers=order,
        site=SITE,
        method=f"control vector for {hint}",
    )
