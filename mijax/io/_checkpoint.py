"""Checkpoints of any tree of arrays, by orbax, with a note of what they are."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax

from mijax._errors import LoadError, OutputError
from mijax.io._durable import replace_folder
from mijax.io._json import read_json
from mijax.io._manifest import check_files

T = TypeVar("T")
NOTE = "mijax_checkpoint.json"
TREE = "tree"


def save_checkpoint(
    tree: Any,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save the arrays of a tree; the folder appears complete or not at all.

    The folder lists its files with their SHA-256, which loading verifies.

    Args:
        tree: any pytree; leaves that are not arrays are not saved.
        path: the folder; an older one is replaced if mijax wrote everything in it.
        metadata: JSON to keep with the arrays, for example
            `mijax.models.describe(model, spec)`, by which `mijax.models.load` knows
            what to build.

    Raises:
        OutputError: the folder cannot be written, it holds anything that mijax did
            not write, or two arrays have one name.

    Examples:
        >>> import jax.numpy as jnp, tempfile
        >>> path = f"{tempfile.mkdtemp()}/checkpoint"
        >>> save_checkpoint({"a": jnp.ones(2)}, path)
        >>> load_checkpoint({"a": jnp.zeros(2)}, path)["a"].tolist()
        [1.0, 1.0]
    """
    arrays = flatten(tree)
    replace_folder(path, lambda folder: fill_checkpoint(folder, arrays, metadata))


def fill_checkpoint(
    folder: Path, arrays: Mapping[str, Any], metadata: Mapping[str, Any] | None
) -> None:
    """Write named arrays and their metadata into an empty folder."""
    import orbax.checkpoint as ocp  # noqa: PLC0415 - slow to import

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / TREE).resolve(), dict(arrays))
    except OSError:
        raise
    except Exception as error:  # orbax wraps errors of the disk in many kinds
        raise OutputError(
            f"Cannot write a checkpoint: {one_line(error)}. Check the free space."
        ) from error
    note = {"metadata": dict(metadata or {}), "arrays": list(arrays)}
    (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n")


def load_checkpoint(like: T, path: str | os.PathLike[str]) -> T:
    """Load a checkpoint of `save_checkpoint`, after verifying its checksums.

    Args:
        like: a tree of the same structure, holding arrays or
            `jax.ShapeDtypeStruct`s; what is not an array is taken from it.
        path: the folder.

    Returns:
        The tree, with the arrays of the checkpoint in the precision of `like`.

    Raises:
        LoadError: the checkpoint is missing, a file is damaged, or its arrays are
            not those of `like`.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415 - slow to import

    path = Path(path)
    check_files(path)
    saved = set(read_json(path / NOTE).get("arrays", []))
    wanted = flatten(like)
    if different := sorted(saved ^ wanted.keys()):
        raise LoadError(
            f"{path}: array '{different[0]}' is in only one of the checkpoint and the "
            f"tree to fill ({len(different)} such). Give a tree of the same kind."
        )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            target = (path / TREE).resolve()
            kept = checkpointer.metadata(target).item_metadata.tree
            check_shapes(path, wanted, kept)
            arrays = checkpointer.restore(
                target, jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
            )
    except LoadError:
        raise
    except Exception as error:  # orbax raises many unrelated kinds
        raise LoadError(
            f"{path} is not a complete checkpoint: {one_line(error)}."
        ) from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    values = [arrays.get(name_of(where), leaf) for where, leaf in leaves]
    return jax.tree.unflatten(structure, values)


def checkpoint_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON that was saved with a checkpoint.

    Args:
        path: the folder.

    Returns:
        The metadata, `{}` if none was given.

    Raises:
        LoadError: the checkpoint is missing, or its JSON is damaged.
    """
    check_files(Path(path), [NOTE])
    return read_json(Path(path) / NOTE).get("metadata", {})


def is_checkpoint(path: Path) -> bool:
    """True if a folder is one that `save_checkpoint` wrote."""
    return (path / NOTE).is_file()


def one_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def flatten(tree: Any) -> dict[str, Any]:
    """Names every array (or shape of an array) by its place in the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    is_array = lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    found: dict[str, Any] = {}
    for name, leaf in ((name_of(path), a) for path, a in leaves if is_array(a)):
        if name in found:
            raise OutputError(
                f"Two arrays of the tree are called '{name}': give its keys other "
                "names, without dots."
            )
        found[name] = leaf
    return found


def name_of(path: tuple[Any, ...]) -> str:
    """Writes a tree path with dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def check_shapes(path: Path, wanted: dict[str, Any], kept: Any) -> None:
    """Refuses an array of another shape; orbax would cut or pad it."""
    for name, leaf in wanted.items():
        if tuple(kept[name].shape) != tuple(leaf.shape):
            raise LoadError(
                f"{path}: array '{name}' has shape {tuple(kept[name].shape)}, the tree "
                f"to fill has {tuple(leaf.shape)}. Give a tree of the same kind."
            )
