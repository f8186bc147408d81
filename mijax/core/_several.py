"""Several metrics as one, so that a sweep measures them in one run."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.core._metric import AbstractMetric


class Several(AbstractMetric):
    """Metrics side by side; the score is a vector with one entry for each."""

    metrics: tuple[AbstractMetric, ...]
    position: Array | None = None

    def reads(self, prompt: Int[Array, ""] | None, seq: int) -> Int[Array, " reads"]:
        """Return the positions that each metric reads, one after the other."""
        return jnp.concatenate([one.reads(prompt, seq) for one in self.metrics])

    def ids(self, prompt: Int[Array, ""] | None) -> Int[Array, " k"] | None:
        """Return the tokens that each metric reads; all if one of them needs all."""
        every = [one.ids(prompt) for one in self.metrics]
        some = [ids for ids in every if ids is not None]
        return jnp.concatenate(some) if len(some) == len(every) else None

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, " metric"]:
        """Return the score of each metric."""
        whole = self.ids(prompt) is None
        found, row, column = [], 0, 0
        for one in self.metrics:
            ids = one.ids(prompt)
            # The number of positions does not depend on the length of the prompts.
            rows = one.reads(prompt, 1).shape[0]
            own = logits[row : row + rows]
            row += rows
            if ids is not None and whole:
                own = own[:, ids]
            elif ids is not None:
                own = own[:, column : column + len(ids)]
                column += len(ids)
            found.append(one.score(own, prompt))
        return jnp.stack(found)


def joined(metric: Any) -> tuple[Any, tuple[str, ...] | None]:
    """Return several metrics as one, and their names; one metric stays as it is."""
    if not isinstance(metric, Mapping):
        return metric, None
    return Several(metrics=tuple(metric.values())), tuple(metric)
