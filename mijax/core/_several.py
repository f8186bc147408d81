"""Several metrics as one, so that a sweep measures them in one run."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.core._metric import AbstractMetric


class Several(AbstractMetric):
    """Metrics side by side; the score is a vector with one entry for each."""

    metrics: tuple[AbstractMetric, ...]
    seq: int = eqx.field(static=True)
    position: Array | None = None

    def reads(self, prompt: Int[Array, ""] | None, seq: int) -> Int[Array, " reads"]:
        """Return the positions that each metric reads, one after the other."""
        return jnp.concatenate([one.reads(prompt, seq) for one in self.metrics])

    def ids(self, prompt: Int[Array, ""] | None) -> Int[Array, " k"] | None:
        """Return the tokens that each metric reads; all if one of them needs all."""
        every = [one.ids(prompt) for one in self.metrics]
        some = [ids for ids in every if ids is not None]
        return jnp.concatenate(some) if len(some) == len(every) else None

    def looks(self) -> tuple[Any, ...]:
        """Return the metrics of activations, in order."""
        return tuple(look for one in self.metrics for look in one.looks())

    def picked(self, seen: tuple[Array, ...], prompt: Any) -> tuple[Array, ...]:
        """Select the rows of each metric of activations."""
        found, row, look = [], 0, 0
        for one in self.metrics:
            rows, count = one.reads(prompt, self.seq).shape[0], len(one.looks())
            own = tuple(a[row : row + rows] for a in seen[look : look + count])
            found += one.picked(own, prompt)
            row, look = row + rows, look + count
        return tuple(found)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, " metric"]:
        """Return the score of each metric."""
        return self.score_seen(logits, (), prompt)

    def score_seen(
        self, logits: Any, seen: tuple[Array, ...], prompt: Any
    ) -> Float[Array, " metric"]:
        """Return the score of each metric, from logits or activations."""
        whole = self.ids(prompt) is None
        found, row, column, look = [], 0, 0, 0
        for one in self.metrics:
            ids, count = one.ids(prompt), len(one.looks())
            rows = one.reads(prompt, self.seq).shape[0]
            own = logits[row : row + rows]
            row += rows
            if ids is not None and whole:
                own = own[:, ids]
            elif ids is not None:
                own = own[:, column : column + len(ids)]
                column += len(ids)
            values = seen[look : look + count]
            look += count
            found.append(one.score_seen(own, values, prompt))
        return jnp.stack(found)


def joined(metric: Any, seq: int) -> tuple[Any, tuple[str, ...] | None]:
    """Return several metrics as one, and their names; one metric stays as it is."""
    if not isinstance(metric, Mapping):
        return metric, None
    return Several(metrics=tuple(metric.values()), seq=seq), tuple(metric)
