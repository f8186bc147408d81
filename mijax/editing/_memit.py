"""MEMIT: write many facts into several layers at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mijax._errors import ConfigError, nearest
from mijax._progress import Report
from mijax.core import AbstractModel
from mijax.editing._contexts import MEMIT_CONTEXTS
from mijax.editing._covariance import Covariance
from mijax.editing._delta import AbstractDelta, Dense, LowRank
from mijax.editing._facts import Contexts, Requests
from mijax.editing._rewrite import (
    AbstractRewriter,
    Rewrite,
    at_subject,
    keys_of,
    values_of,
)
from mijax.editing._search import ValueSearch
from mijax.editing._weight_edit import WeightEdit
from mijax.editing._weights import MLP_OUT

MEMIT_SEARCH = ValueSearch(clamp=0.75)
# Layers, weight of the covariance and steps in the published runs.
PUBLISHED: Mapping[str, tuple[tuple[int, ...], float, int]] = {
    "gpt2-xl": ((13, 14, 15, 16, 17), 20_000.0, 20),
    "gpt-j-6b": ((3, 4, 5, 6, 7, 8), 15_000.0, 25),
}


class MEMIT(AbstractRewriter):
    r"""Mass-editing memory in a transformer (Meng et al. 2023, arXiv:2210.07229).

    A search finds a value $z$ for the residual stream after the last edited layer, for
    every fact. The layers are then edited in order. Each layer adds an equal part of
    the remaining difference, $r = (z - h) / n$ with $n$ layers left, for all facts at
    once:

    \[ \Delta W = r (\lambda C + K K^\top)^{-1} K \]

    with the keys $K$ of the facts, averaged over contexts, and the second moment $C$.
    Keys and $h$ are recomputed after every layer. Solved in float64.

    Attributes:
        layers: edited layers, in ascending order.
        covariance: second moments of their keys.
        weight: $\lambda$, the weight of old keys, in units of facts.
        contexts: texts before the prompt.
        search: settings of the search for $z$.

    Raises:
        ConfigError: no layers, or layers out of order.
    """

    layers: tuple[int, ...] = eqx.field(static=True, converter=tuple)
    covariance: Covariance
    weight: float | int = 15_000.0
    contexts: Contexts = eqx.field(static=True, default=MEMIT_CONTEXTS)
    search: ValueSearch = MEMIT_SEARCH

    def __check_init__(self) -> None:
        check_layers(self.layers)

    @classmethod
    def published(cls, model: str, covariance: Covariance) -> "MEMIT":
        """Return the method with the settings of a published run.

        Args:
            model: `"gpt2-xl"` or `"gpt-j-6b"`.
            covariance: second moments of the keys of its layers.

        Returns:
            The method.

        Raises:
            ConfigError: a model without published settings.
        """
        if model not in PUBLISHED:
            raise ConfigError(
                f"MEMIT has no published settings for {model!r}."
                f"{nearest(model, PUBLISHED)}"
            )
        layers, weight, steps = PUBLISHED[model]
        search = ValueSearch(clamp=MEMIT_SEARCH.clamp, steps=steps)
        return cls(layers=layers, covariance=covariance, weight=weight, search=search)

    @property
    def edited(self) -> tuple[int, ...]:
        """The edited layers."""
        return self.layers

    def check(self, model: AbstractModel) -> None:
        """Raise if the covariance comes from another model."""
        for layer in self.layers:
            self.covariance.check(model, layer)

    def find(
        self,
        model: AbstractModel,
        requests: Requests,
        *,
        batch: int,
        report: Report | None,
    ) -> Rewrite:
        """Write all facts at once."""
        return written(self, model, requests, self.solve, batch, report)[0]

    def solve(
        self, layer: int, keys: Float[np.ndarray, "mlp fact"]
    ) -> Float[np.ndarray, "mlp fact"]:
        r"""Return $(\lambda C + K K^\top)^{-1} K$ in float64."""
        moment = np.asarray(self.covariance.at(layer), np.float64)
        return np.linalg.solve(self.weight * moment + keys @ keys.T, keys)

    def find_each(self, model: AbstractModel, requests: Requests) -> list[WeightEdit]:
        """Write each fact separately into the unedited model."""
        return one_by_one(self, model, requests)


def check_layers(layers: Sequence[int]) -> None:
    """Raise unless layers are in ascending order."""
    if not layers or list(layers) != sorted(set(layers)):
        raise ConfigError(f"layers must be in ascending order, got {list(layers)}.")


def one_by_one(
    method: AbstractRewriter, model: AbstractModel, requests: Requests
) -> list[WeightEdit]:
    """Write each fact separately into the unedited model, one after another."""
    each = [requests[i : i + 1] for i in range(len(requests))]
    return [method.find(model, one, batch=1, report=None).edit for one in each]


def written(
    method: AbstractRewriter,
    model: AbstractModel,
    requests: Requests,
    solve: Any,
    batch: int,
    report: Report | None,
) -> tuple[Rewrite, AbstractModel]:
    """Search for all values, then edit layer by layer.

    Args:
        method: the method.
        model: the model.
        requests: the facts.
        solve: `(layer, keys [mlp, fact]) -> [mlp, fact]`, the left side of the update.
        batch: number of facts to search at a time.
        report: progress of the search.

    Returns:
        The edit, and the edited model.
    """
    last = method.edited[-1]
    given: Any = {"layer": last, "site": "resid_post", "batch": batch}
    values = values_of(method, model, requests, **given, report=report)
    goal = np.asarray(values.value, np.float64)
    edits: list[WeightEdit] = []
    for i, layer in enumerate(method.edited):
        keys = keys_of(model, requests, layer)[0].T
        now = np.asarray(at_subject(model, requests, "resid_post", last), np.float64)
        missing = (goal - now) / (len(method.edited) - i)
        delta = product(solve(layer, keys), missing)
        edit = WeightEdit.on(model, MLP_OUT, delta, layer=layer)
        model = edit.apply(model)
        edits.append(edit)
    whole = edits[0].then(*edits[1:])
    return Rewrite(whole, tuple(edits), values, method), model


def product(
    left: Float[np.ndarray, "mlp rank"], right: Float[np.ndarray, "rank embed"]
) -> AbstractDelta:
    """Return a product as factors, or in full where that is smaller."""
    rows, rank = left.shape
    if rank * (rows + right.shape[1]) < rows * right.shape[1]:
        return LowRank(jnp.asarray(left), jnp.asarray(right))
    return Dense(jnp.asarray(left @ right, jnp.float32))
