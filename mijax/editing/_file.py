"""Delta files: a `WeightEdit` on disk, without the model."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from mijax._errors import LoadError, ShapeError
from mijax.editing._delta import AbstractDelta, Dense, LowRank
from mijax.editing._weight_edit import Change, WeightEdit
from mijax.io import Index, Only, SafeTensors, read_record, save_safetensors
from mijax.io.internal import parse_json

VERSION = 1
KIND = "mijax.editing"
PARTS = {"low_rank": ("left", "right"), "dense": ("values",)}
KINDS: dict[str, type[AbstractDelta]] = {"low_rank": LowRank, "dense": Dense}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Location of one change, as stored in the file's metadata."""

    weight: str
    kind: Annotated[str, Only("low_rank", "dense")]
    layer: Index | None = None
    base: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """Metadata in a delta file."""

    version: Annotated[int, Only(VERSION)]
    changes: list[dict[str, Any]]


def save(edit: WeightEdit, path: str | os.PathLike[str]) -> None:
    """Save an edit as one safetensors file.

    The file contains the deltas in float32, their locations, and the SHA-256 of every
    original weight. It is written atomically. A rank-one edit of a 6,400 by 1,600
    matrix takes 32 kB.

    Args:
        edit: the edit.
        path: the file.

    Raises:
        OutputError: the file cannot be written.

    Examples:
        >>> import pathlib, tempfile, jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> delta = LowRank(jnp.ones((64, 1)), jnp.ones((1, 32)))
        >>> edit = WeightEdit.on(model, "blocks.mlp.w_out", delta, layer=1)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "paris.safetensors"
        >>> save(edit, path)
        >>> load(path).changes
        (blocks.mlp.w_out, layer 1: LowRank(rank at most 1, 64 x 32, 2048 numbers),)
    """
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for i, change in enumerate(edit.changes):
        kind = next(k for k, cls in KINDS.items() if isinstance(change.delta, cls))
        entries.append(
            {
                "weight": change.weight,
                "kind": kind,
                "layer": change.layer,
                "base": change.base,
            }
        )
        for part in PARTS[kind]:
            arrays[f"{i}.{part}"] = np.asarray(getattr(change.delta, part))
    text = json.dumps({"version": VERSION, "changes": entries})
    save_safetensors(arrays, Path(path), metadata={KIND: text})


def load(path: str | os.PathLike[str]) -> WeightEdit:
    """Load an edit saved by `save`.

    Args:
        path: the file.

    Returns:
        The edit; applying it to a different model raises an error.

    Raises:
        LoadError: the file is missing, damaged or not a delta file.
    """
    file = SafeTensors(Path(path))
    if KIND not in file.metadata:
        raise LoadError(
            f"{path} is not a delta file of mijax: its metadata has no {KIND!r}. Give "
            "a file that mijax.editing.save wrote."
        )
    try:
        content = parse_json(file.metadata[KIND].encode())
    except ValueError as error:
        raise LoadError(f"{path}: its metadata is damaged. Save it again.") from error
    found = read_record(Description, content, str(path), thing="edit")
    entries = [
        read_record(Entry, one, f"{path}: change {i}", thing="edit")
        for i, one in enumerate(found.changes)
    ]
    expected = {f"{i}.{p}" for i, one in enumerate(entries) for p in PARTS[one.kind]}
    if expected != set(file.shapes):
        wrong = sorted(expected ^ set(file.shapes))[0]
        raise LoadError(
            f"{path}: tensor {wrong!r} is missing or unknown. Save the edit again."
        )
    return WeightEdit(
        tuple(_change(file, i, one, str(path)) for i, one in enumerate(entries))
    )


def _change(file: SafeTensors, index: int, entry: Entry, path: str) -> Change:
    """Read one change."""
    parts = [file.read(f"{index}.{part}") for part in PARTS[entry.kind]]
    if any(p.dtype != np.float32 or not np.isfinite(p).all() for p in parts):
        raise LoadError(
            f"{path}: change {index} is not finite float32. Save the edit again."
        )
    try:
        delta = KINDS[entry.kind](*(jnp.asarray(part) for part in parts))
    except ShapeError as error:
        raise LoadError(f"{path}: change {index}: {error}") from error
    return Change(entry.weight, entry.layer, delta, entry.base)
