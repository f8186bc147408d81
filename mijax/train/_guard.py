"""Stops a run whose loss or update is no number any more, and says where."""

import jax
import numpy as np

from mijax._errors import TrainingError
from mijax.core.internal import digest
from mijax.train._advance import Told
from mijax.train._checkpoints import Checkpoints

EXPLODED = 1e6


class Guard:
    """Looks at updates one program late, so that the device never waits.

    A loss is that before the update: parameters that an update has spoilt would be kept
    if the update itself were not looked at.
    """

    def __init__(self, kept: Checkpoints):
        self._kept = kept
        self._first: np.ndarray | None = None
        self._waiting: Told | None = None

    def watch(self, told: Told) -> None:
        """Checks the updates before, and remembers these."""
        before, self._waiting = self._waiting, told
        self._check(before)

    def settle(self) -> None:
        """Checks the last updates too."""
        before, self._waiting = self._waiting, None
        self._check(before)

    def _check(self, told: Told | None) -> None:
        if told is None:
            return
        losses, norms = (
            told.rows(name).reshape(len(told.steps), -1) for name in ("loss", "update")
        )
        first = np.abs(losses[0]) + 1e-12 if self._first is None else self._first
        self._first = first
        wrong = ~np.isfinite(losses) | (np.abs(losses) > EXPLODED * first)
        wrong |= ~np.isfinite(norms)
        if not wrong.any():
            return
        place = int(np.argmax(wrong.any(1)))
        step, batch = told.steps[place], told.batch(place)
        bad, values, sizes = wrong[place], losses[place], norms[place]
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
