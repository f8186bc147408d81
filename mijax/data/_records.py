"""Keys of the files next to stored activations and tokens."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from mijax._errors import LoadError
from mijax.data._files import read_json
from mijax.io import Index, Only, Size, read_record
from mijax.io.internal import Bytes

STORE_FORM = "mijax activations 1"
STORE_DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """Keys of the manifest of stored activations."""

    form: Annotated[str, Only(STORE_FORM)]
    digest: str
    whole: bool
    rows: Size
    dtype: Annotated[str, Only(*STORE_DTYPES)]
    shard: Size
    shards: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """Keys of the manifest of stored token ids."""

    form: str
    digest: str
    dtype: Annotated[str, Only("uint16", "uint32", "int32")]
    separator: Index | None
    last: Index
    tokens: Size
    documents: Size
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Keys of one shard: its rows, and the files of inputs and targets."""

    rows: Size
    x: dict[str, Any]
    y: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Keys of one file."""

    file: str
    bytes: Bytes
    sha256: str


def read_store(path: Path) -> dict[str, Any]:
    """Read the manifest of stored activations, all of it checked.

    Args:
        path: the manifest.

    Returns:
        Its keys and values.

    Raises:
        LoadError: a key that is missing, unknown or of another type, shards that do
            not add up, or a file outside the folder.
    """
    record = read_json(path, STORE_FORM)
    found = read_record(StoreRecord, record, path, thing="store")
    for shard in found.shards:
        one = read_record(ShardRecord, shard, f"{path}: shards", thing="store")
        for file in (one.x, *(() if one.y is None else (one.y,))):
            name = read_record(FileRecord, file, f"{path}: shards", thing="store").file
            if Path(name).name != name:
                raise LoadError(f"{path}: {name!r:.60} is not a file of its folder.")
    total = sum(shard["rows"] for shard in found.shards)
    several = {tuple(sorted(shard)) for shard in found.shards}
    if total > found.rows or (found.whole and total != found.rows) or len(several) > 1:
        raise LoadError(
            f"{path}: the shards do not add up to {found.rows} rows. Delete the folder "
            "and store again."
        )
    return record
