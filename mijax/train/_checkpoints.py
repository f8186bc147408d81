"""Checkpoints of a run: written whole or not at all, beside the training."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import OutputError
from mijax.core._digest import digest
from mijax.io._checkpoint import flatten, name_of

KEEP = 2


class Checkpoints:
    """The folder of checkpoints of one run; without a folder it does nothing.

    Args:
        folder: where they are, `None` for nowhere.
        job: what the run is; a folder of another one is refused.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, job: Any):
        self.folder = None if folder is None else Path(folder).resolve()
        self._digest = "" if folder is None else digest(job)
        self._manager: Any = None

    def __enter__(self) -> "Checkpoints":
        if self.folder is None:
            return self
        import orbax.checkpoint as ocp  # noqa: PLC0415 - slow to import

        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=True)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise OutputError(
                f"Cannot write checkpoints to {self.folder} ({error.strerror})."
            ) from error
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

    def load(self, like: Any) -> Any:
        """Returns the last state that was kept, or `like` if there is none.

        Raises:
            OutputError: the folder holds another run, or no whole checkpoint.
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
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(
                f"{self.folder} does not hold checkpoints of a run ({error})."
            ) from error
        arrays = flatten(raw(like))
        if note != {"run": self._digest, "arrays": shapes(arrays)}:
            raise OutputError(
                f"{self.folder} holds checkpoints of another run (other objective, "
                "source or sizes): give another folder, or delete it."
            )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        found = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )["state"]
        leaves, structure = jax.tree_util.tree_flatten_with_path(raw(like))
        values = [found.get(name_of(where), leaf) for where, leaf in leaves]
        return typed(jax.tree.unflatten(structure, values), like)

    def save(self, step: int, state: Any) -> None:
        """Keeps a state; returns as soon as it is copied from the device."""
        if self._manager is None or self._manager.latest_step() == step:
            return
        import orbax.checkpoint as ocp  # noqa: PLC0415

        arrays = {name: global_of(a) for name, a in flatten(raw(state)).items()}
        note = {"run": self._digest, "arrays": shapes(arrays)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), note=ocp.args.JsonSave(note)
                ),
            )
        except Exception as error:
            raise self._unwritten(error) from error

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
    """Whether a leaf is a typed random key."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def shapes(arrays: dict[str, Any]) -> dict[str, list[Any]]:
    """Describes arrays by name."""
    return {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items()}
