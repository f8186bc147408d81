"""Second moments of keys on disk."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np

from mijax._errors import LoadError
from mijax.editing._covariance import Covariance
from mijax.io import Indices, Only, SafeTensors, Size, read_record, save_safetensors
from mijax.io.internal import parse_json

VERSION = 1
KIND = "mijax.editing.covariance"
NAME = "moments"


@dataclasses.dataclass(frozen=True)
class Description:
    """Metadata in a file with second moments."""

    version: Annotated[int, Only(VERSION)]
    layers: Indices
    count: Size
    bases: list[str]


def save_covariance(covariance: Covariance, path: str | os.PathLike[str]) -> None:
    """Save second moments of keys atomically, as one safetensors file.

    Args:
        covariance: the second moments.
        path: the file.

    Raises:
        OutputError: the file cannot be written.

    Examples:
        >>> import pathlib, tempfile, jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.random.randint(jax.random.key(1), (20, 10), 0, 64)
        >>> found = mijax.editing.covariance(model, tokens, layers=[1])
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "c.safetensors"
        >>> save_covariance(found, path)
        >>> load_covariance(path)
        Covariance(layers 1; 200 tokens, width 64)
    """
    text = {
        "version": VERSION,
        "layers": list(covariance.layers),
        "count": covariance.count,
        "bases": list(covariance.bases),
    }
    metadata = {KIND: json.dumps(text)}
    save_safetensors({NAME: covariance.moments}, Path(path), metadata=metadata)


def load_covariance(path: str | os.PathLike[str]) -> Covariance:
    """Load second moments saved by `save_covariance`.

    Args:
        path: the file.

    Returns:
        The second moments; editing a different model with them raises an error.

    Raises:
        LoadError: the file is missing, damaged or of a different kind.
    """
    file = SafeTensors(Path(path))
    if KIND not in file.metadata or set(file.shapes) != {NAME}:
        raise LoadError(
            f"{path} is not a covariance file: give one that "
            "mijax.editing.save_covariance wrote."
        )
    try:
        content = parse_json(file.metadata[KIND].encode())
    except ValueError as error:
        raise LoadError(f"{path}: its metadata is damaged. Save it again.") from error
    found = read_record(Description, content, str(path), thing="covariance")
    moments, layers = file.read(NAME), len(found.layers)
    fits = moments.ndim == 3 and len(moments) == layers == len(found.bases)
    if not fits or moments.shape[1] != moments.shape[2]:
        raise LoadError(
            f"{path}: moments of shape {moments.shape} do not fit {layers} layers."
        )
    if moments.dtype != np.float32 or not np.isfinite(moments).all():
        raise LoadError(f"{path}: moments are not finite float32. Save them again.")
    return Covariance(moments, found.layers, found.count, tuple(found.bases))
