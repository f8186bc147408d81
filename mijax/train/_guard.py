"""Stops a run whose loss or update is no number any more, and says where."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mijax._errors import TrainingError
from mijax.core._journal import digest
from mijax.train._checkpoints import Checkpoints

EXPLODED = 1e6


class Guard:
    """Looks at each update one late, so that the device never waits.

    A loss is that before the update: parameters that an update has spoilt would be kept
    if the update itself were not looked at.
    """

    def __init__(self, kept: Checkpoints):
        self._kept = kept
        self._first: np.ndarray | None = None
        self._waiting: tuple[int, Mapping[str, Any], Any] | None = None

    def watch(self, step: int, info: Mapping[str, Any], batch: Any) -> None:
        """Checks the update before, and remembers this one."""
        before, self._waiting = self._waiting, (step, info, batch)
        self._check(before)

    def settle(self) -> None:
        """Checks the last update too."""
        before, self._waiting = self._waiting, None
        self._check(before)

    def _check(self, waiting: tuple[int, Mapping[str, Any], Any] | None) -> None:
        if waiting is None:
            return
        step, info, batch = waiting
        values, sizes = (
            np.atleast_1d(np.asarray(info[name], np.float64))
            for name in ("loss", "update")
        )
        if self._first is None:
            self._first = np.abs(values) + 1e-12
        bad = ~np.isfinite(values) | (np.abs(values) > EXPLODED * self._first)
        bad |= ~np.isfinite(sizes)
        if not bad.any():
            return
        lane = f" of lane {int(np.argmax(bad))}" if len(values) > 1 else ""
        leaves = jax.tree.leaves(batch)
        parts = sum(int((~np.isfinite(np.asarray(a))).sum()) for a in leaves)
        of_batch = f", which holds {parts} numbers that are not finite" if parts else ""
        raise TrainingError(
            f"The loss{lane} is {values[bad][0]:g} and the update has norm "
            f"{sizes[bad][0]:g} at step {step}, on the batch with digest "
            f"{digest(batch)[:12]}{of_batch}. {self._kept.last()} Lower the learning "
            "rate, clip gradients, or look at that batch."
        )
