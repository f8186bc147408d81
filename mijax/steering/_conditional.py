"""Conditional steering: steer only the prompts that meet a condition."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from mijax._errors import ConfigError, ShapeError
from mijax.core import PerPrompt
from mijax.core.internal import ModelLike, checked, reals
from mijax.steering._directions import Directions
from mijax.steering._read import AbstractReading, MeanOf, as_prompts, joined, read

# Thresholds in the grid search, as in the reference.
THRESHOLDS = np.arange(101) / 100


class Condition(eqx.Module):
    r"""A condition on the prompt: its similarity to a direction.

    Let $x$ be the mean input of one layer over the tokens of the prompt, and
    $P = c c^\top / c^\top c$. The similarity is $s = \cos(x, \tanh(P x))$. The
    condition is met where $s > \theta$, or where $s < \theta$ if `above` is false.
    Generated tokens do not count. Combine the boolean arrays of several conditions
    with `&`, `|` and `~`.

    The reference names the two cases by the threshold: `comparator="smaller"` is
    `above=True`.

    Attributes:
        direction: the vector `c`, `[embed]`.
        layer: index of the block whose input is read.
        threshold: the number `θ`.
        above: true if the similarity must be above the threshold, false if below it.
        reading: tokens of the prompt to average.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> condition = Condition(jnp.arange(32.0), layer=1, threshold=0.05)
        >>> condition.met(model, jnp.array([[5, 6, 7], [8, 9, 10]])).shape
        (2,)

    Source: Lee et al. 2024, arXiv:2409.05907 (CAST).
    """

    direction: Float[Array, " embed"] = eqx.field(converter=reals)
    layer: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    above: bool = eqx.field(static=True, default=True)
    reading: AbstractReading = eqx.field(default_factory=MeanOf)

    def __check_init__(self):
        """Refuse a direction of norm 0, with which every similarity is NaN."""
        traced = isinstance(self.direction, Tracer)
        if not traced and not np.asarray(self.direction).any():
            raise ShapeError("A condition needs a direction, got zeros only.")

    def similarity(
        self, model: ModelLike, prompts: Any, *, batch: int | None = None
    ) -> Float[Array, " prompt"]:
        """Return the similarity of each prompt.

        Raises:
            ShapeError: the vector's width differs from the model's.
            SiteError: a layer that the model does not have.
        """
        one = Directions(self.direction[None], layers=[self.layer], site="resid_pre")
        return _similarities(model, prompts, one, self.reading, batch)[:, 0]

    def met(
        self, model: ModelLike, prompts: Any, *, batch: int | None = None
    ) -> Bool[Array, " prompt"]:
        """Return true for each prompt that meets the condition."""
        found = self.similarity(model, prompts, batch=batch)
        return found > self.threshold if self.above else found < self.threshold


def gated(strength: float, met: Any) -> PerPrompt:
    """Return a strength for the prompts that meet a condition, and 0 for the others.

    Args:
        strength: strength of the steering.
        met: one boolean per prompt.

    Returns:
        One strength per prompt, for `Directions.add`; prompts with strength 0 are
        bitwise unchanged.

    Raises:
        ShapeError: anything other than one boolean per prompt.

    Examples:
        >>> gated(2.0, jnp.array([True, False])).values.tolist()
        [2.0, 0.0]
    """
    met = jnp.asarray(met)
    if met.dtype != bool or met.ndim != 1:
        raise ShapeError(
            f"A condition is one boolean per prompt, got {met.dtype}{met.shape}."
        )
    return PerPrompt(jnp.where(met, jnp.float32(strength), jnp.float32(0)))


class ConditionSearch(eqx.Module):
    """The best condition in a grid, with the F1 scores of the whole grid.

    Attributes:
        condition: the best condition.
        f1: its F1 score on the prompts of the search.
        grid: F1 for every layer, threshold and side, `above` first.
        layers: layers of the grid.
        control: best F1 score of each random direction on the same grid.
    """

    condition: Condition
    f1: float = eqx.field(static=True)
    grid: Float[np.ndarray, "layer threshold side"]
    layers: tuple[int, ...] = eqx.field(static=True)
    control: Float[np.ndarray, " control"]


@checked
def find_condition(
    model: ModelLike,
    positive: Any,
    negative: Any,
    directions: Directions,
    *,
    reading: AbstractReading = MeanOf(),  # noqa: B008 - a frozen value
    random: Sequence[Directions] = (),
    batch: int | None = None,
) -> ConditionSearch:
    """Search for the layer, threshold and side that best separate two sets of prompts.

    The grid covers every layer of the directions, thresholds 0, 0.01, ..., 1 and both
    sides. The condition with the largest F1 score wins; ties keep the earliest.

    Args:
        model: a decoder, or a language model.
        positive: prompts that should meet the condition.
        negative: prompts that should not.
        directions: one vector per layer at `resid_pre`, such as those of
            `extract(..., method=PairCenteredPCA(), site="resid_pre")`.
        reading: tokens of the prompts to average.
        random: random directions as a control, from `directions.random(key)`.
        batch: number of prompts to run at a time.

    Returns:
        The condition with its score.

    Raises:
        ConfigError: directions from a different site.
        ShapeError: the vectors' width differs from the model's.
        SiteError: a layer that the model does not have.
    """
    bare, met = as_prompts(model, positive)
    both = joined(met, as_prompts(model, negative)[1])
    labels = np.arange(len(both)) < len(met)

    def scores(one: Directions) -> Float[np.ndarray, "layer threshold side"]:
        return _f1(np.asarray(_similarities(bare, both, one, reading, batch)), labels)

    grid = scores(directions)
    layer, at, side = np.unravel_index(int(grid.argmax()), grid.shape)
    condition = Condition(
        directions.vectors[layer],
        layer=directions.layers[layer],
        threshold=float(THRESHOLDS[at]),
        above=bool(side == 0),
        reading=reading,
    )
    control = np.array([scores(one).max() for one in random])
    return ConditionSearch(
        condition, float(grid.max()), grid, directions.layers, control
    )


def _similarities(
    model: Any,
    prompts: Any,
    directions: Directions,
    reading: AbstractReading,
    batch: int | None,
) -> Float[Array, "prompt layer"]:
    """Return the similarity of each prompt to the direction in each layer."""
    if directions.site != "resid_pre":
        raise ConfigError(
            "A condition reads the input of a layer: give directions at resid_pre, got "
            f"{directions.site}."
        )
    bare, prompts = as_prompts(model, prompts)
    acts = read(bare, prompts, site="resid_pre", reading=reading, batch=batch)
    # Checks width and layers.
    directions.steer().check_operand(acts.transpose(1, 0, 2), range(1), ())
    x = acts[:, np.array(directions.layers)].astype(jnp.float32)
    c = directions.vectors
    along = (x * c).sum(-1, keepdims=True) / (c * c).sum(-1, keepdims=True)
    seen = jnp.tanh(along * c)
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(seen, axis=-1)
    return (x * seen).sum(-1) / jnp.maximum(norms, 1e-12)


def _f1(
    similarity: Float[np.ndarray, "prompt layer"], labels: Bool[np.ndarray, " prompt"]
) -> Float[np.ndarray, "layer threshold side"]:
    """Return F1 for every cell, 0 where no prompt meets the condition."""
    found = np.stack(
        [
            similarity[..., None] > THRESHOLDS.astype(np.float32),
            similarity[..., None] < THRESHOLDS.astype(np.float32),
        ],
        axis=-1,
    )
    true = (found & labels[:, None, None, None]).sum(0)
    return 2 * true / (found.sum(0) + labels.sum())
