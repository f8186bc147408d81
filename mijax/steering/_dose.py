"""Effect and cost of steering over strengths and layers, with random controls."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, ShapeError
from mijax.core import AbstractMetric, Interval, cross_entropy, interval, sweep
from mijax.core.internal import ModelLike, as_tokens, checked, cut, lengths_of
from mijax.data import Prompts
from mijax.steering._directions import Directions
from mijax.steering._read import as_prompts
from mijax.steering._steer import AbstractLimit, AbstractScale, Raw


class Doses(eqx.Module):
    """Strengths and layers to try, and the unit of the strengths.

    Attributes:
        strengths: strengths, for instance -2 to 2.
        layers: layers to steer, one at a time; by default, all that have a vector.
        scale: unit of the strength.
        limit: limit on the norm after the addition.
        controls: number of random directions with the same norms.
        seed: seed for the controls.

    Examples:
        >>> Doses([0.0, 1.0], layers=[1]).strengths
        (0.0, 1.0)
    """

    strengths: tuple[float, ...] = eqx.field(
        static=True, converter=lambda given: tuple(float(one) for one in given)
    )
    layers: tuple[int, ...] | None = eqx.field(
        static=True,
        default=None,
        converter=lambda given: None if given is None else tuple(map(int, given)),
        kw_only=True,
    )
    scale: AbstractScale = eqx.field(default_factory=Raw, kw_only=True)
    limit: AbstractLimit | None = eqx.field(default=None, kw_only=True)
    controls: int = eqx.field(static=True, default=4, kw_only=True)
    seed: int = eqx.field(static=True, default=0, kw_only=True)


class DoseResponse(eqx.Module):
    """Effect on prompts and cost on neutral text, for each layer and strength.

    Attributes:
        layers: layers, steered one at a time.
        strengths: strengths.
        effect: effect metric, in its units.
        cost: increase in the cost metric on neutral text over the unsteered model.
        random_effect: effect of each random direction.
        random_cost: cost of each random direction.
        base_effect: effect metric of the unsteered model.
        base_cost: cost metric of the unsteered model.
    """

    layers: tuple[int, ...] = eqx.field(static=True)
    strengths: tuple[float, ...] = eqx.field(static=True)
    effect: Float[Array, "prompt layer strength"]
    cost: Float[Array, "text layer strength"]
    random_effect: Float[Array, "control prompt layer strength"]
    random_cost: Float[Array, "control text layer strength"]
    base_effect: Float[Array, " prompt"]
    base_cost: Float[Array, " text"]

    def __repr__(self) -> str:
        layers, strengths = len(self.layers), len(self.strengths)
        controls = len(self.random_effect)
        return cut(
            f"DoseResponse({layers} layers x {strengths} strengths, "
            f"{len(self.base_effect)} prompts, {controls} random directions)"
        )

    def effects(self) -> Interval:
        """Return the mean effect over prompts with its interval, by layer, strength."""
        return interval(self.effect)

    def costs(self) -> Interval:
        """Return the mean cost over texts with its interval, by layer and strength."""
        return interval(self.cost)

    def best(self, most_cost: float) -> tuple[int, float]:
        """Return the layer and strength with the largest effect at a bounded cost.

        Args:
            most_cost: largest allowed mean cost.

        Returns:
            The layer and the strength.

        Raises:
            ConfigError: every cell costs more.
        """
        effect, cost = (np.asarray(x).mean(0) for x in (self.effect, self.cost))
        effect = np.where(cost <= most_cost, effect, -np.inf)
        if not np.isfinite(effect).any():
            raise ConfigError(
                f"Every layer and strength costs more than {most_cost:g}: the lowest "
                f"cost is {cost.min():.3g}."
            )
        row, column = np.unravel_index(int(effect.argmax()), effect.shape)
        return self.layers[row], self.strengths[column]


@checked
def dose_response(
    model: ModelLike,
    prompts: Any,
    directions: Directions,
    *,
    effect: AbstractMetric,
    neutral: Any,
    doses: Doses,
    cost: AbstractMetric | None = None,
    position: Any = None,
) -> DoseResponse:
    """Measure the effect and cost of steering for all layers and strengths at once.

    One sweep measures the effect and another the cost. Each is one compiled program,
    shared by the random directions. Neutral text is steered at every token.

    Args:
        model: a decoder, or a language model.
        prompts: prompts for measuring the effect.
        directions: one vector per layer.
        effect: effect metric on the prompts.
        neutral: prompts or texts that should not change.
        doses: strengths, layers and controls.
        cost: cost metric on neutral text; the mean next-token loss by default.
        position: positions to steer in the prompts; all by default.

    Returns:
        Effects and costs, for the directions and for the random directions.

    Raises:
        ShapeError: the vectors' width differs from the model's.
        SiteError: a layer without a vector.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jnp.array([[5, 6, 7], [8, 9, 10]])
        >>> made = Directions(jnp.ones((2, 32)), layers=[1, 2])
        >>> found = dose_response(
        ...     model,
        ...     tokens,
        ...     made,
        ...     effect=mijax.logit_difference(4, 5),
        ...     neutral=tokens,
        ...     doses=Doses([0.0, 1.0], controls=1),
        ... )
        >>> found.effect.shape, found.random_cost.shape
        ((2, 2, 2), (1, 2, 2, 2))
    """
    bare, prompts = as_prompts(model, prompts)
    _, neutral = as_prompts(model, neutral)
    layers = directions.layers if doses.layers is None else doses.layers
    directions = directions.at_layers(layers)
    keys = jax.random.split(jax.random.key(doses.seed), doses.controls)
    tried = [directions, *(directions.random(key) for key in keys)]
    cost = next_token_loss(neutral) if cost is None else cost
    over = {"layer": list(layers), "coefficient": list(doses.strengths)}

    def measured(given: Prompts, metric: AbstractMetric, position: Any) -> list[Any]:
        found = []
        for one in tried:
            edit = one.steer(scale=doses.scale, limit=doses.limit)
            placed = edit.at(one.site, position=position)
            options = {"over": over, "metric": metric, "progress": False}
            found.append(sweep(bare, given, placed, **options))
        return found

    effects = measured(prompts, effect, position)
    costs = measured(neutral, cost, None)
    base = costs[0].base
    shape = (0, *effects[0].values.shape), (0, *costs[0].values.shape)
    change = [found.values - base[:, None, None] for found in costs]
    return DoseResponse(
        layers=tuple(layers),
        strengths=doses.strengths,
        effect=effects[0].values,
        cost=change[0],
        random_effect=_stacked([found.values for found in effects[1:]], shape[0]),
        random_cost=_stacked(change[1:], shape[1]),
        base_effect=effects[0].base,
        base_cost=base,
    )


def _stacked(values: Sequence[Array], empty: tuple[int, ...]) -> Array:
    return jnp.stack(values) if values else jnp.zeros(empty)


def next_token_loss(prompts: Any) -> cross_entropy:
    """Return the metric for the mean next-token loss, ignoring padding.

    Args:
        prompts: `mijax.data.Prompts` or tokens, each of at least 2 tokens.

    Returns:
        A metric for these prompts.

    Raises:
        ShapeError: a prompt of one token.

    Examples:
        >>> metric = next_token_loss(jnp.array([[5, 6, 7], [8, 9, 10]]))
        >>> metric(jnp.zeros((2, 3, 12))).shape
        (2,)
    """
    tokens = np.atleast_2d(np.asarray(as_tokens(prompts)))
    lengths = lengths_of(prompts)
    lengths = np.array(tokens.shape[1:]) if lengths is None else lengths
    if min(lengths) < 2:
        raise ShapeError("A prompt of 1 token has no next token: give 2 or more.")
    inside = np.arange(1, tokens.shape[1]) < lengths[:, None]
    labels, position = tokens[:, 1:], np.arange(tokens.shape[1] - 1)
    return cross_entropy(np.where(inside, labels, -1), position=position[None])
