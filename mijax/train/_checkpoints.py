"""Checkpoints of a run, written atomically while training goes on."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import OutputError
from mijax.core.internal import digest
from mijax.io import locked, replace_file
from mijax.io.internal import flatten, name_of, one_line

KEEP = 2
MARK = "mijax_checkpoints.json"
# Contents of the folder of a step, by orbax.
PARTS = {"note", "state", "_CHECKPOINT_METADATA", "commit_success.txt"}


class Checkpoints:
    """The folder of checkpoints of one run; without a folder it does nothing.

    Args:
        folder: where they are, `None` for nowhere.
        job: what the run is; a folder of another one is refused.
        about: JSON to keep with every checkpoint, for `read_checkpoint`.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, job: Any, about: Any = None
    ):
        self._about = about
        self.folder = None if folder is None else Path(folder).absolute()
        self._digest = "" if folder is None else digest(job)
        self._manager: Any = None
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> "Checkpoints":
        if self.folder is None:
            return self
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(locked(self.folder))
                claim(self.folder)
            self._manager = open_manager(self.folder)
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as failed:
            # An error of the run itself comes first.
            if error is None:
                raise self._unwritten(failed) from failed
        finally:
            with contextlib.suppress(Exception):
                self._manager.close()
            self._lock.close()

    def load(self, like: Any) -> Any:
        """Return the last state that was kept, or `like` if there is none.

        Raises:
            OutputError: the folder holds another run, or the checkpoint is damaged.
        """
        manager = self._manager
        step = None if manager is None else manager.latest_step()
        if manager is None or step is None:
            return like
        import orbax.checkpoint as ocp  # noqa: PLC0415

        try:
            note = manager.restore(
                step, args=ocp.args.Composite(note=ocp.args.JsonRestore())
            )["note"]
            checksums = note.pop("sha256")
        except Exception as error:  # orbax raises many unrelated kinds
            raise self._damaged(step, one_line(error)) from error
        arrays = flatten(raw(like))
        own = {"run": self._digest, "arrays": shapes(arrays)}
        if {key: note.get(key) for key in own} != own:
            raise OutputError(
                f"{self.folder} holds checkpoints of another run (other objective, "
                "source or sizes): give another folder, or delete it."
            )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        try:
            found = manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )["state"]
        except Exception as error:
            raise self._damaged(step, one_line(error)) from error
        for name, checksum in checksums_of(found).items():
            if checksum != checksums.get(name, checksum):
                raise self._damaged(step, f"the checksum of '{name}' differs")
        leaves, structure = jax.tree_util.tree_flatten_with_path(raw(like))
        values = [found.get(name_of(where), leaf) for where, leaf in leaves]
        return typed(jax.tree.unflatten(structure, values), like)

    def save(self, step: int, state: Any) -> None:
        """Keep a state; return as soon as it is copied from the device."""
        if self._manager is None or self._manager.latest_step() == step:
            return
        import orbax.checkpoint as ocp  # noqa: PLC0415

        arrays = {name: global_of(a) for name, a in flatten(raw(state)).items()}
        note = {"run": self._digest, "arrays": shapes(arrays), "about": self._about}
        note["sha256"] = checksums_of(arrays)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), note=ocp.args.JsonSave(note)
                ),
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def _damaged(self, step: int, why: str) -> OutputError:
        return OutputError(
            f"The checkpoint {self.folder}/{step} is damaged ({why}): delete that "
            "folder to go on from the checkpoint before it."
        )

    def _unwritten(self, error: Exception) -> OutputError:
        """The error for a write that failed, now or behind the training's back."""
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "No space left" in why:
            why = "no space left on the device"
        return OutputError(
            f"Cannot write a checkpoint to {self.folder} ({why}). {self.last()} The "
            "same call goes on from there."
        )

    def last(self) -> str:
        """Says where the last whole checkpoint is."""
        if self._manager is not None:
            # What is on disk: orbax remembers a write that has failed as a step.
            with contextlib.suppress(Exception):
                self._manager.wait_until_finished()
            self._manager.reload()
        step = None if self._manager is None else self._manager.latest_step()
        if step is None:
            return "There is no checkpoint."
        return f"The last checkpoint is step {step} in {self.folder}."


def claim(folder: Path) -> None:
    """Mark a new folder as one for checkpoints; refuse one with anything else in it.

    Old checkpoints are deleted during a run, so a folder of the user that looks like
    one must not be there.
    """
    reason = ""
    if folder.is_symlink():
        reason = "is a link, and mijax does not write through links"
    elif folder.exists() and not folder.is_dir():
        reason = "is a file"
    elif folder.is_dir() and any(folder.iterdir()):
        strange = [path.name for path in folder.iterdir() if not is_own(path)]
        if strange:
            reason = f"holds '{strange[0]}', which no training of mijax wrote"
        elif not (folder / MARK).exists() and any(
            p.name.isdigit() for p in folder.iterdir()
        ):
            reason = f"has no {MARK}, so it may hold files of yours"
    if reason:
        raise OutputError(
            f"{folder} {reason}. Nothing was changed: move it away, or give another "
            "folder for checkpoints."
        )
    text = json.dumps({"form": "mijax checkpoints 1"}) + "\n"
    if not (folder / MARK).exists():
        replace_file(folder / MARK, lambda scratch: scratch.write_text(text))


def is_own(path: Path) -> bool:
    """Return True if an entry of a folder is one that checkpoints make."""
    if path.is_symlink():
        return False
    if path.is_dir():
        if path.name.isdigit():
            return {part.name for part in path.iterdir()} <= PARTS
        return ".orbax-checkpoint-tmp" in path.name or path.name.startswith(
            f".{MARK}.mijax-"
        )
    return path.name == MARK


def open_manager(folder: Path) -> Any:
    """Open the folder with orbax."""
    import orbax.checkpoint as ocp  # noqa: PLC0415 - slow to import

    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=True)
    try:
        return ocp.CheckpointManager(folder, options=options)
    except OSError as error:
        raise OutputError(
            f"Cannot write checkpoints to {folder} ({error.strerror})."
        ) from error


def checksums_of(arrays: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the arrays that this process holds in full."""
    found = {}
    for name, array in arrays.items():
        if getattr(array, "is_fully_addressable", True):
            data = np.ascontiguousarray(array).view(np.uint8).data
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def global_of(array: Any) -> Any:
    """Makes a number of all processes of an array that each has for itself."""
    several = jax.process_count() > 1
    if several and isinstance(array, jax.Array) and array.is_fully_addressable:
        return np.asarray(array)
    return array


def raw(tree: Any) -> Any:
    """Replaces typed random keys by their numbers."""
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)


def typed(tree: Any, like: Any) -> Any:
    """Makes random keys of numbers where `like` has some."""
    return jax.tree.map(
        lambda a, b: jax.random.wrap_key_data(a) if is_key(b) else a, tree, like
    )


def is_key(leaf: Any) -> bool:
    """True if a leaf is a typed random key."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def shapes(arrays: dict[str, Any]) -> dict[str, list[Any]]:
    """Describes arrays by name."""
    return {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items()}
