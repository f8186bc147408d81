"""One loop for long work: pieces, progress, resume and interrupts."""

import bisect
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mijax._progress import Progress
from mijax.core._journal import Journal
from mijax.core._sharding import everywhere


class Piece(NamedTuple):
    """A call of a compiled program.

    Attributes:
        size: units of work, for progress.
        call: starts it and returns its arrays.
        store: writes what it returned, fetched from the device, into the values.
        steps: number of chunks that it runs together, on several devices. A file
            counts chunks, so a job goes on with any number of devices.
    """

    size: int
    call: Callable[[], Any]
    store: Callable[[Any, np.ndarray], None]
    steps: int = 1


def run_pieces(
    pieces: Sequence[Piece],
    values: np.ndarray,
    job: Any,
    progress: Progress,
    resume: str | os.PathLike[str] | None,
) -> None:
    """Run every piece; results stay on the device until a save or the end.

    Args:
        pieces: the calls, in order.
        values: array that is filled in.
        job: everything that the values depend on.
        progress: called with the units that are done and their total.
        resume: file in which an interrupted job is kept and from which it goes on.

    Raises:
        OutputError: a file of another job.
    """
    total = sum(piece.size for piece in pieces)
    ends = list(itertools.accumulate((p.steps for p in pieces), initial=0))
    waiting: list[tuple[int, Any]] = []
    with Journal(resume, job if resume is not None else None) as journal:
        journal.load(values)
        # Of pieces: all of whose chunks the file holds.
        done = bisect.bisect_right(ends, journal.done) - 1

        def collect() -> None:
            for i, out in waiting:
                pieces[i].store(jax.device_get(out), values)
            waiting.clear()

        def report() -> None:
            if progress:
                progress(sum(piece.size for piece in pieces[:done]), total)

        try:
            for i in range(done, len(pieces)):
                if waiting:
                    jax.block_until_ready(waiting[-1][1])
                    done = i
                    report()
                    if journal.due():
                        collect()
                        journal.save(values, ends[done])
                waiting.append((i, everywhere(pieces[i].call())))
            collect()
            done = len(pieces)
            report()
        finally:
            if journal.path is not None and ends[done] > journal.done:
                waiting[:] = [one for one in waiting if one[0] < done]
                collect()
                journal.save(values, ends[done])
