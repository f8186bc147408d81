"""`read_checkpoint`: a checkpoint of a training run, without its objective."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mijax._errors import LoadError
from mijax.io.internal import one_line
from mijax.train._checkpoints import checksums_of


class Checkpoint(NamedTuple):
    """A checkpoint of a training run, read without its objective.

    Attributes:
        step: updates done.
        about: what the objective says of itself (`AbstractObjective.about`), a list of
            that for several objectives.
        arrays: arrays of the state by name, such as `params.weights.encoder`.
    """

    step: int
    about: Any
    arrays: dict[str, np.ndarray]


def read_checkpoint(
    folder: str | os.PathLike[str], *, step: int | None = None
) -> Checkpoint:
    """Read a checkpoint of `fit`.

    Args:
        folder: folder of checkpoints, or of one of them.
        step: which of them, by updates done; the last by default.

    Returns:
        The checkpoint.

    Raises:
        LoadError: the folder holds no such checkpoint, or it is damaged.

    Examples:
        >>> import tempfile
        >>> from mijax import dictionaries as d
        >>> source = mijax.data.Examples(jax.numpy.ones((32, 8)), batch=16)
        >>> training = d.Training(d.TopK(2), d.SAE(8), latents=16, steps=3)
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> sae = d.train(training, source, checkpoint=folder)
        >>> read_checkpoint(folder).step
        3
    """
    path = Path(folder).absolute()
    if is_one(path) and step is None:
        path, step = path.parent, int(path.name)
    steps = steps_in(path)
    if not steps or step not in (None, *steps):
        kept = f"only of updates {', '.join(map(str, steps))}" if steps else "none"
        asked = "" if step is None else f" of update {step}"
        raise LoadError(f"{path} holds no checkpoint{asked}, {kept}.")
    step = max(steps) if step is None else step
    import orbax.checkpoint as ocp  # noqa: PLC0415

    place = path / str(step)
    try:
        note = json.loads((place / "note" / "metadata").read_text())
        target = {
            name: jax.ShapeDtypeStruct(tuple(shape), dtype)
            for name, (shape, dtype) in note["arrays"].items()
        }
        with ocp.StandardCheckpointer() as reader:
            state = reader.restore(place / "state", target)
    except Exception as error:  # orbax raises many unrelated kinds
        raise LoadError(f"{place} is damaged ({one_line(error)}).") from error
    arrays = {name: np.asarray(array) for name, array in state.items()}
    checksums = note.get("sha256", {})
    for name, checksum in checksums_of(arrays).items():
        if checksum != checksums.get(name, checksum):
            raise LoadError(f"{place} is damaged (the checksum of '{name}' differs).")
    return Checkpoint(step, note.get("about"), arrays)


def is_training_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Return True if a folder is a checkpoint of `fit`, or holds some.

    Args:
        folder: any folder or file.

    Returns:
        Whether `read_checkpoint` reads it.

    Examples:
        >>> is_training_checkpoint("nowhere")
        False
    """
    return is_one(Path(folder)) or bool(steps_in(Path(folder)))


def is_one(path: Path) -> bool:
    """True if a folder is one checkpoint."""
    parts = (path / "note", path / "state")
    return path.name.isdecimal() and all(part.is_dir() for part in parts)


def steps_in(path: Path) -> list[int]:
    """Return the updates of which a folder holds checkpoints, in order."""
    found = path.iterdir() if path.is_dir() else ()
    return sorted(int(one.name) for one in found if is_one(one))
