"""AlphaEdit: edits in the null space of common keys."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Float

from mijax._errors import ConfigError, FrameError, nearest
from mijax._progress import Report
from mijax.core import AbstractModel
from mijax.editing._contexts import MEMIT_CONTEXTS
from mijax.editing._covariance import Covariance, memory_digest
from mijax.editing._facts import Contexts, Requests
from mijax.editing._memit import MEMIT_SEARCH, check_layers, one_by_one, written
from mijax.editing._rewrite import AbstractRewriter, Rewrite, keys_of
from mijax.editing._search import ValueSearch
from mijax.editing._weight_edit import WeightEdit

THRESHOLD = 0.02
# Layers, steps and learning rate in the published runs.
PUBLISHED: Mapping[str, tuple[tuple[int, ...], int, float]] = {
    "gpt2-xl": ((13, 14, 15, 16, 17), 20, 0.5),
    "gpt-j-6b": ((3, 4, 5, 6, 7, 8), 25, 0.5),
    "llama-3-8b": ((4, 5, 6, 7, 8), 25, 0.1),
}


class AlphaEdit(AbstractRewriter):
    r"""Null-space constrained editing (Fang et al. 2025, arXiv:2410.02355).

    Like MEMIT, but with an update that leaves the values of common keys unchanged:

    \[ \Delta W^\top = (P (K K^\top + K_p K_p^\top) + \beta I)^{-1} P K r^\top \]

    with the projection $P$ onto directions that keys hardly use, and the keys $K_p$ of
    facts written earlier. The published code solves this in float32; mijax uses
    float64. Write the next facts with the `method` from the returned `Rewrite`, which
    remembers the keys.

    Attributes:
        layers: edited layers, in ascending order.
        projections: $P$ for each layer.
        past: $K_p K_p^\top$ for each layer.
        bases: SHA-256 of the weights that produce the keys, per layer.
        ridge: $\beta$.
        contexts: texts before the prompt.
        search: settings of the search for values.
    """

    layers: tuple[int, ...] = eqx.field(static=True)
    projections: Float[np.ndarray, "layer mlp mlp"]
    past: Float[np.ndarray, "layer mlp mlp"]
    bases: tuple[str, ...] = eqx.field(static=True)
    ridge: float | int = 10.0
    contexts: Contexts = eqx.field(static=True, default=MEMIT_CONTEXTS)
    search: ValueSearch = MEMIT_SEARCH

    @classmethod
    def of(
        cls,
        covariance: Covariance,
        layers: Sequence[int],
        *,
        below: float | None = None,
        fraction: float | None = None,
        ridge: float | int = 10.0,
        contexts: Contexts = MEMIT_CONTEXTS,
        search: ValueSearch = MEMIT_SEARCH,
    ) -> "AlphaEdit":
        """Create the method for a model with no facts written yet.

        Args:
            covariance: second moments of its keys.
            layers: layers to edit.
            below: eigenvectors with eigenvalues below this number are free to edit. The
                published 0.02 depends on the scale of the activations.
            fraction: alternatively, the fraction of all eigenvectors that are free to
                edit.
            ridge: weight of the penalty on the update's norm.
            contexts: texts before the prompt.
            search: settings of the search for values.

        Returns:
            The method.

        Raises:
            ConfigError: layers out of order, or no direction is free to edit.
            SiteError: a layer without a second moment.
        """
        check_layers(layers)
        given = {"below": below, "fraction": fraction}
        projections = np.stack([covariance.null_space(i, **given) for i in layers])
        bases = tuple(covariance.bases[covariance.layers.index(i)] for i in layers)
        return cls(
            layers=tuple(layers),
            projections=projections,
            past=np.zeros_like(projections),
            bases=bases,
            ridge=ridge,
            contexts=contexts,
            search=search,
        )

    @classmethod
    def published(cls, model: str, covariance: Covariance) -> "AlphaEdit":
        """Return the method with the settings of a published run.

        Args:
            model: `"gpt2-xl"`, `"gpt-j-6b"` or `"llama-3-8b"`.
            covariance: second moments of the keys of its layers.

        Returns:
            The method.

        Raises:
            ConfigError: a model without published settings.
        """
        if model not in PUBLISHED:
            raise ConfigError(
                f"AlphaEdit has no published settings for {model!r}."
                f"{nearest(model, PUBLISHED)}"
            )
        layers, steps, rate = PUBLISHED[model]
        clamp = MEMIT_SEARCH.clamp
        search = ValueSearch(learning_rate=rate, steps=steps, clamp=clamp)
        return cls.of(covariance, layers, below=THRESHOLD, search=search)

    @property
    def edited(self) -> tuple[int, ...]:
        """The edited layers."""
        return self.layers

    def check(self, model: AbstractModel) -> None:
        """Raise unless the keys were measured on this model."""
        for layer, base in zip(self.layers, self.bases, strict=True):
            if base and base != memory_digest(model, layer):
                raise FrameError(
                    f"The null space of layer {layer} belongs to another model or "
                    "weight processing: create the method from this model's covariance."
                )

    def find(
        self,
        model: AbstractModel,
        requests: Requests,
        *,
        batch: int,
        report: Report | None,
    ) -> Rewrite:
        """Write all facts at once, in addition to earlier ones."""
        found, edited = written(self, model, requests, self.solve, batch, report)
        # As in the published code, the keys come from the edited model.
        after = [keys_of(edited, requests, layer)[0].T for layer in self.layers]
        return eqx.tree_at(lambda r: r.method, found, self.after(after))

    def solve(
        self, layer: int, keys: Float[np.ndarray, "mlp fact"]
    ) -> Float[np.ndarray, "mlp fact"]:
        r"""Return $(P (K K^\top + K_p K_p^\top) + \beta I)^{-1} P K$ in float64."""
        at = self.layers.index(layer)
        free = self.projections[at]
        seen = free @ (keys @ keys.T + self.past[at])
        return np.linalg.solve(seen + self.ridge * np.eye(len(seen)), free @ keys)

    def after(self, keys: Sequence[Float[np.ndarray, "mlp fact"]]) -> "AlphaEdit":
        """Return the method after writing facts with these keys in each layer."""
        past = self.past + np.stack([each @ each.T for each in keys])
        return eqx.tree_at(lambda m: m.past, self, past)

    def find_each(self, model: AbstractModel, requests: Requests) -> list[WeightEdit]:
        """Write each fact separately into the unedited model."""
        return one_by_one(self, model, requests)
