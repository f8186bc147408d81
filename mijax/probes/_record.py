"""`Fit`: probes that were fitted, and what is known about them."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError, ShapeError
from mijax.core import Interval
from mijax.probes._check import inputs
from mijax.probes._frame import Frame
from mijax.probes._probe import CONVERGED, AbstractLinear, AbstractProbe, Linear
from mijax.probes._program import outputs_of


class Row(NamedTuple):
    """One probe of a `Fit.table()`.

    Attributes:
        probe: its index, e.g. `(layer,)`.
        strength: of the regularisation.
        train: accuracy or R² on the examples that were fitted.
        held_out: on the others.
        low: lower end of its confidence interval.
        high: upper end.
        baseline: that of always saying the most frequent class, or the mean.
        chance: that of guessing.
        gradient: norm of the gradient relative to the start.
        converged: whether it is small.
    """

    probe: tuple[int, ...]
    strength: float
    train: float
    held_out: float
    low: float
    high: float
    baseline: float
    chance: float
    gradient: float
    converged: bool


class Fit(eqx.Module):
    """Fitted probes, `*probe` of them, e.g. `[layer, position]`.

    Attributes:
        params: parameters on standardised inputs; see `weights`.
        frame: mean and scale of the inputs that were fitted, `[*probe, feature]`.
        strength: the chosen strength of regularisation, `[*probe]`.
        selection: loss of every strength on training examples that were set aside
            (nats, or squared error), `[*probe, strength]`; NaN where there was no
            choice.
        train: accuracy, or R², on the examples that were fitted, `[*probe]`.
        held_out: the same on held-out examples, with its interval over these: Wilson's
            (1927) for accuracy, a bootstrap one for R², where their variance counts as
            known.
        values: its summands, `[*probe, example]`: 1 where right and 0 where wrong, or
            `1 - error² / variance`.
        baseline: held-out accuracy of the most frequent training class, or R² of the
            training mean.
        chance: accuracy of guessing, one over the number of classes; 0 for R².
        gradient: norm of the gradient relative to that at the start of the solver.
        steps: iterations of the solver.
        probe: the kind.
        classes: labels in the order of the logits; none for values.
    """

    params: Any
    frame: Frame
    strength: Float[Array, "*probe"]
    selection: Float[Array, "*probe strength"]
    train: Float[Array, "*probe"]
    held_out: Interval
    values: Float[Array, "*probe example"]
    baseline: Float[Array, ""]
    chance: Float[Array, ""]
    gradient: Float[Array, "*probe"]
    steps: Int[Array, "*probe"]
    probe: AbstractProbe
    classes: tuple[int, ...] = eqx.field(static=True)

    @property
    def converged(self) -> Bool[Array, "*probe"]:
        """True if the relative gradient is at most 1e-4."""
        return self.gradient <= CONVERGED

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `*probe`."""
        return self.strength.shape

    @property
    def weights(self) -> Linear:
        """Weight `[*probe, feature, output]` and bias of inputs as they came.

        Two classes share one output, the log odds of the second.

        Raises:
            ConfigError: the probe is not linear.
        """
        linear = self._linear()
        weight = linear.weight / self.frame.scale[..., None]
        with jax.default_matmul_precision("highest"):
            shift = jnp.einsum("...d,...dk->...k", self.frame.mean, weight)
        return Linear(weight, linear.bias - shift)

    def logits(self, x: Any) -> Float[Array, "..."]:
        """Returns logits of the classes, or values.

        Args:
            x: inputs of the same probes, `[*probe, example, feature]` or `Sequences`.

        Returns:
            Logits `[*probe, example, label]`, or values `[*probe, example]`.

        Raises:
            ShapeError: inputs of other probes or with other features.
        """
        flat, lead = inputs(self.probe, x, "x")
        features = jax.tree.leaves(flat)[0].shape[-1]
        if lead != self.shape or features != self.frame.mean.shape[-1]:
            raise ShapeError(
                f"x is of probes {lead} with {features} features; these probes are "
                f"{self.shape} with {self.frame.mean.shape[-1]}."
            )
        rank = len(self.shape)
        params, frame = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[rank:]), (self.params, self.frame)
        )
        out = outputs_of(self.probe, params, frame, flat)
        out = out.reshape(*self.shape, *out.shape[1:])
        return out if self.classes else out[..., 0]

    def predict(self, x: Any) -> Array:
        """Returns the most likely labels, or values, `[*probe, example]`.

        Args:
            x: inputs of the same probes.

        Raises:
            ShapeError: inputs of other probes or with other features.
        """
        out = self.logits(x)
        if not self.classes:
            return out
        return jnp.asarray(self.classes)[jnp.argmax(out, axis=-1)]

    def direction(
        self, label: int | None = None, *, against: int | None = None
    ) -> Float[Array, "*probe feature"]:
        """Returns where a class, or the value, lies in activation space.

        The gradient of its logit minus that of the other class (of the mean of all
        others), on activations as they came, with norm 1: a value for `mijax.Add`, or
        directions for `mijax.Project`. A probe without any weight gives zeros.

        Args:
            label: the class; the larger of two by default. None for values.
            against: another class.

        Returns:
            Unit vectors.

        Raises:
            ConfigError: the probe is not linear, an unknown class, or no class among
                several.
        """
        weight = self.weights.weight
        classes = list(self.classes)
        if not classes:
            if label is not None or against is not None:
                raise ConfigError("A probe of values has one direction: give no class.")
            return _unit(weight[..., 0])
        if weight.shape[-1] == 1:
            weight = jnp.concatenate([jnp.zeros_like(weight), weight], axis=-1)
        if label is None:
            if len(classes) > 2:
                raise ConfigError(f"Which of the classes {classes}? direction(label).")
            label = classes[0] if against == classes[-1] else classes[-1]
        k = self._index(label)
        if against is not None:
            return _unit(weight[..., k] - weight[..., self._index(against)])
        others = (weight.sum(-1) - weight[..., k]) / (len(classes) - 1)
        return _unit(weight[..., k] - others)

    def table(self) -> list[Row]:
        """Returns one row per probe, in order."""
        numbers = (
            *(self.strength, self.train, self.gradient),
            *(self.held_out.mean, self.held_out.low, self.held_out.high),
        )
        columns = [np.asarray(found).reshape(-1).tolist() for found in numbers]
        known = {"baseline": float(self.baseline), "chance": float(self.chance)}
        return [
            Row(
                probe=index,
                strength=strength,
                train=train,
                held_out=mean,
                low=low,
                high=high,
                gradient=gradient,
                converged=gradient <= CONVERGED,
                **known,
            )
            for index, strength, train, gradient, mean, low, high in zip(
                np.ndindex(self.shape), *columns, strict=True
            )
        ]

    def _linear(self) -> Linear:
        if not isinstance(self.probe, AbstractLinear):
            raise ConfigError(
                f"{type(self.probe).__name__} is not linear, so it has no weights of "
                "features and no direction: use Logistic, Means, LDA or Ridge."
            )
        return self.params

    def _index(self, label: int) -> int:
        if label not in self.classes:
            raise ConfigError(
                f"No class {label}; the probe was trained on {self.classes}."
            )
        return self.classes.index(label)


def _unit(vectors: Float[Array, "*probe feature"]) -> Float[Array, "*probe feature"]:
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norm > 0, norm, 1.0)
