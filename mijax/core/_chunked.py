"""Chunks of prompts through one program, into arrays on the host or on disk."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mijax._errors import ConfigError, ShapeError
from mijax._progress import Progress, reporting
from mijax.core._array_folder import ArrayFolder
from mijax.core._digest import digest
from mijax.core._sharding import everywhere
from mijax.core._sites import known


class Chunked(NamedTuple):
    """Batching of a data set.

    Attributes:
        batch: prompts of a chunk.
        out: folder for the result; `None` for host memory.
        progress: called with the prompts that are done and their total.
    """

    batch: int
    out: Path | None
    progress: Progress


def chunked(
    batch: int | None, out: str | os.PathLike[str] | None, progress: Progress
) -> Chunked | None:
    """Return the batching of a data set; `None` runs it in one call.

    Raises:
        ConfigError: fewer than one prompt, or a folder without chunks.
    """
    if batch is None:
        if out is not None:
            raise ConfigError(
                "out= is written chunk by chunk: give batch=, the number of prompts of "
                "a chunk, as well."
            )
        return None
    if batch < 1:
        raise ConfigError(f"batch is {batch}: give a number of prompts, 1 or more.")
    if out is not None and jax.process_count() > 1:
        raise ConfigError(
            "out= is written by one process, and this job has "
            f"{jax.process_count()}: leave it out."
        )
    return Chunked(int(batch), None if out is None else Path(out), progress)


def over_chunks(program: Any, args: tuple[Any, ...], chunks: Chunked | None) -> Any:
    """Call a program on all prompts at once, or chunk by chunk.

    Args:
        program: `(model, tokens, ..., prompts)`, where `prompts` are the indices of the
            tokens' prompts.
        args: all arguments but the last.
        chunks: how; `None` is all at once.

    Returns:
        What the program returns; of chunks as NumPy arrays.
    """
    if chunks is None:
        return program(*args, None)
    model, tokens, *rest = args
    ids = known(tokens)
    if ids is None:
        raise ShapeError("batch= fills arrays on the host: call this outside jax.jit.")
    if ids.ndim < 2:
        raise ShapeError(
            "batch= goes through a batch of prompts, got one: give tokens [batch, "
            "seq], or leave out batch=."
        )

    def call(prompts: np.ndarray) -> Any:
        own, at = jax.device_put((ids[prompts], prompts))
        return program(model, own, *rest, at)

    return filled(call, len(ids), (program.__name__, args), chunks)


def filled(
    call: Callable[[np.ndarray], Any], n: int, job: tuple[str, Any], chunks: Chunked
) -> Any:
    """Call a program for every chunk and return all of its results.

    The last chunk repeats the last prompt, so that every chunk has one shape and
    nothing is compiled again. One chunk runs while the one before is stored.

    Args:
        call: takes indices of prompts, and returns a tree of arrays, prompts first.
        n: number of prompts.
        job: a name, and everything else that the result depends on.
        chunks: sizes, and where results go.

    Returns:
        The tree, of NumPy arrays or read-only memory maps.
    """
    batch = min(chunks.batch, n)

    def prompts(start: int) -> np.ndarray:
        return np.minimum(np.arange(start, start + batch), n - 1).astype(np.int32)

    one = jax.eval_shape(lambda: call(prompts(0)))
    whole = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), one
    )

    def fill(values: list[np.ndarray], done: int, saved: Callable[[int], Any]) -> None:
        waiting: Any = None
        with reporting(chunks.progress, job[0].strip("_").capitalize()) as report:
            for start in (*range(done, n, batch), None):
                found = None if start is None else everywhere(call(prompts(start)))
                if waiting is not None:
                    done = min(waiting[0] + batch, n)
                    _store(waiting[1], values, slice(waiting[0], done))
                    saved(done)
                    if report:
                        report(done, n)
                waiting = start, found

    structure = jax.tree.structure(whole)
    if chunks.out is None:
        values = [np.empty(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(whole)]
        fill(values, 0, lambda done: None)
        return jax.tree.unflatten(structure, values)
    folder = ArrayFolder(chunks.out, digest((job, batch)), whole)
    with folder.writing() as (values, done):
        fill(values, done, folder.note)
    return jax.tree.unflatten(structure, folder.opened())


def _store(found: Any, values: list[np.ndarray], at: slice) -> None:
    """Write the results of one chunk, without those of repeated prompts."""
    for value, part in zip(values, jax.device_get(jax.tree.leaves(found)), strict=True):
        value[at] = part[: at.stop - at.start]
