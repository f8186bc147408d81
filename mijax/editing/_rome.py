"""ROME: rank-one model editing."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, nearest
from mijax._progress import Report
from mijax.core import AbstractModel
from mijax.editing._contexts import ROME_CONTEXTS
from mijax.editing._covariance import Covariance
from mijax.editing._delta import LowRank
from mijax.editing._facts import Contexts, Requests
from mijax.editing._rewrite import (
    AbstractRewriter,
    Rewrite,
    at_subject,
    keys_of,
    values_of,
)
from mijax.editing._search import Values, ValueSearch
from mijax.editing._weight_edit import WeightEdit
from mijax.editing._weights import MLP_OUT, read

# Layer and clamp in the published runs, and MLP matrices as named in their files.
PUBLISHED: Mapping[str, tuple[int, float]] = {
    "gpt2-medium": (8, 3.0),
    "gpt2-large": (12, 4.0),
    "gpt2-xl": (17, 4.0),
    "gpt-j-6b": (5, 4.0),
}


class AbstractEditedKey(eqx.Module):
    """The key whose value the edit sets."""

    @abc.abstractmethod
    def choose(
        self, averaged: Float[np.ndarray, "mlp"], plain: Float[np.ndarray, "mlp"]
    ) -> Float[np.ndarray, "mlp"]:
        """Choose between the average over contexts and the plain prompt's key."""


class PromptKey(AbstractEditedKey):
    """The key of the plain prompt, as in ROME's published code."""

    def choose(
        self, averaged: Float[np.ndarray, "mlp"], plain: Float[np.ndarray, "mlp"]
    ) -> Float[np.ndarray, "mlp"]:
        """Return the plain prompt's key."""
        return plain


class AveragedKey(AbstractEditedKey):
    """The key averaged over contexts, as in r-ROME (Gupta et al. 2024).

    The same key then sets the direction and the length of the update, which prevents
    the large updates that make a model collapse after one edit (arXiv:2403.07175).
    """

    def choose(
        self, averaged: Float[np.ndarray, "mlp"], plain: Float[np.ndarray, "mlp"]
    ) -> Float[np.ndarray, "mlp"]:
        """Return the average over contexts."""
        return averaged


class Uncorrected(eqx.Module):
    """The identity in place of a covariance, unlike the published method.

    It needs no text, but changes the values of other keys more.
    """

    def solve(self, layer: int, keys: Any) -> Float[np.ndarray, "mlp *n"]:
        """Return the keys in float64."""
        return np.asarray(keys, np.float64)

    def check(self, model: Any, layer: int) -> None:
        """Accept every model."""


class ROME(AbstractRewriter):
    r"""Rank-one model editing (Meng et al. 2022, arXiv:2202.05262).

    The output matrix $W$ of an MLP is treated as a memory that maps the key $k$ of a
    subject, the activation at `mlp_post`, to a value. Among all changes that map $k$ to
    the value $v^*$, this one changes the values of other keys least:

    \[ \Delta W = u \otimes \frac{v^* - W k}{k \cdot u}, \quad
       u = \frac{C^{-1} \bar k}{\|C^{-1} \bar k\|} \]

    with the second moment $C$ of keys and the key $\bar k$ averaged over contexts. As
    in the published code, $k$ is the key of the plain prompt and not the average, so
    that $W' k = v^*$ there; `key=AveragedKey()` is r-ROME.

    Attributes:
        layer: the edited layer.
        covariance: second moment of its keys, or `Uncorrected()`.
        contexts: texts before the prompt.
        search: settings of the search for $v^*$.
        key: the key whose value the edit sets.
    """

    layer: int = eqx.field(static=True)
    covariance: Covariance | Uncorrected
    contexts: Contexts = eqx.field(static=True, default=ROME_CONTEXTS)
    search: ValueSearch = ValueSearch()
    key: AbstractEditedKey = PromptKey()

    @classmethod
    def published(cls, model: str, covariance: Covariance | Uncorrected) -> "ROME":
        """Return the method with the settings of a published run.

        Args:
            model: `"gpt2-medium"`, `"gpt2-large"`, `"gpt2-xl"` or `"gpt-j-6b"`.
            covariance: second moment of the keys.

        Returns:
            The method.

        Raises:
            ConfigError: a model without published settings.

        Examples:
            >>> ROME.published("gpt2-medium", Uncorrected()).search.clamp
            3.0
        """
        if model not in PUBLISHED:
            raise ConfigError(
                f"ROME has no published settings for {model!r}."
                f"{nearest(model, PUBLISHED)}"
            )
        layer, clamp = PUBLISHED[model]
        return cls(layer=layer, covariance=covariance, search=ValueSearch(clamp=clamp))

    @property
    def edited(self) -> tuple[int, ...]:
        """The edited layers."""
        return (self.layer,)

    def check(self, model: AbstractModel) -> None:
        """Raise if the covariance is singular or comes from another model."""
        self.covariance.check(model, self.layer)

    def find(
        self,
        model: AbstractModel,
        requests: Requests,
        *,
        batch: int,
        report: Report | None,
    ) -> Rewrite:
        """Edit one fact at a time, each in the model with the earlier edits."""
        edits, values = [], []
        for i in range(len(requests)):
            one = requests[i : i + 1]
            found = self._values(model, one, 1)
            (edit,) = self._edits(model, one, found)
            model = edit.apply(model)
            edits.append(edit)
            values.append(found)
            if report:
                report(i + 1, len(requests))
        joined = jax.tree.map(lambda *a: jnp.concatenate(a), *values)
        return Rewrite(edits[0].then(*edits[1:]), tuple(edits), joined, self)

    def find_each(self, model: AbstractModel, requests: Requests) -> list[WeightEdit]:
        """Edit each fact separately in the unedited model."""
        return self._edits(
            model, requests, self._values(model, requests, len(requests))
        )

    def _values(self, model: AbstractModel, requests: Requests, batch: int) -> Values:
        given: Any = {"layer": self.layer, "site": "mlp_out", "batch": batch}
        return values_of(self, model, requests, **given)

    def _edits(
        self, model: AbstractModel, requests: Requests, values: Values
    ) -> list[WeightEdit]:
        """Return the rank-one edit for each fact."""
        averaged, plain = keys_of(model, requests, self.layer)
        solved = self.covariance.solve(self.layer, averaged.T).T
        target = np.asarray(values.value, np.float64)
        before = np.asarray(at_subject(model, requests, "mlp_out", self.layer))
        matrix = np.asarray(read(model, MLP_OUT, self.layer).astype(jnp.float32))
        edits = []
        for i in range(len(requests)):
            u = solved[i] / np.linalg.norm(solved[i])
            key = self.key.choose(averaged[i], plain[i])
            # The MLP's output, including its bias, is affine in the key.
            now = before[i] + (key - plain[i]) @ matrix
            right = (target[i] - now) / (key @ u)
            delta = LowRank(_column(u), _row(right))
            edits.append(WeightEdit.on(model, MLP_OUT, delta, layer=self.layer))
        return edits


def _column(values: np.ndarray) -> Array:
    return jnp.asarray(values[:, None], jnp.float32)


def _row(values: np.ndarray) -> Array:
    return jnp.asarray(values[None], jnp.float32)
