"""Dictionaries whose first latents are a dictionary of their own, and so on."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from mijax._errors import ConfigError
from mijax.dictionaries._wiring import product
from mijax.dictionaries.architectures._architecture import Given, Outcome
from mijax.dictionaries.architectures._batch_topk import (
    AbstractThreshold,
    BatchTopK,
    kept,
)
from mijax.dictionaries.architectures._topk import revived


class Matryoshka(AbstractThreshold):
    r"""BatchTopK with nested dictionaries (Bussmann et al. 2025, arXiv:2503.17547).

    The loss is the mean over groups $g$ of $\lVert y - \hat y_{\le g} \rVert^2$, where
    $\hat y_{\le g}$ is made of the first latents alone, up to the end of the group,
    plus the error that dead latents are to explain.

    Attributes:
        groups: share of the latents in each group, in order; they add up to 1.
        k: how many per example.
        aux: weight of the error that dead latents are to explain.
        aux_k: how many of them; half the size of the output by default.

    Raises:
        ConfigError: shares that are not positive or do not add up to 1.
    """

    groups: tuple[float, ...] = eqx.field(
        static=True, default=(1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    )
    k: Any = 32
    aux: Any = 1 / 32
    aux_k: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        """Refuses groups that are no parts of a whole."""
        if min(self.groups, default=0) <= 0 or abs(sum(self.groups) - 1) > 1e-6:
            raise ConfigError(
                f"Groups are shares of the latents that add up to 1, got {self.groups}."
            )

    def check(self, latents: int) -> None:
        """Refuses groups without latents."""
        BatchTopK(self.k).check(latents)
        if len(set(self.ends(latents))) < len(self.groups) or not self.ends(latents)[0]:
            raise ConfigError(
                f"{latents} latents are too few for groups of {self.groups}."
            )

    def ends(self, latents: int) -> tuple[int, ...]:
        """Returns the number of latents up to the end of each group."""
        shares = np.cumsum(self.groups)
        return (*(round(float(s) * latents) for s in shares[:-1]), latents)

    def loss(self, given: Given) -> Outcome:
        """Returns the mean of the groups' squared errors, and that of the dead."""
        pre = given.pre()
        latents, running = kept(given, pre, self.k)
        here = latents.shape[1]
        devices = given.step.gather(jnp.zeros(())).shape[0]
        place = given.step.part() * here + jnp.arange(here)
        rows, restored = given.wiring.rows(given.weights), given.base()
        errors, start = [], 0
        for end in self.ends(here * devices):
            if devices == 1:
                part = product(latents[:, start:end], rows[start:end].T, given.dtype)
            else:
                # A group may lie across devices: each takes what it has of it.
                inside = (place >= start) & (place < end)
                part = product(jnp.where(inside, latents, 0), rows.T, given.dtype)
            restored = restored + given.step.over_model(part)
            errors.append(given.error(restored))
            start = end
        auxiliary = self.aux * revived(given, pre, restored, self.aux_k)
        nested = sum(errors) / len(errors) - errors[-1]
        return Outcome(
            errors[-1],
            nested + auxiliary,
            *given.activity(latents),
            running,
        )
