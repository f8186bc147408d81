"""`align`: subspaces of variables, at all places at once."""

from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax import train
from mijax._errors import ShapeError
from mijax.causal._methods import AbstractMethod
from mijax.causal._run import Lanes, Shared, as_tuple, check, losses
from mijax.causal._swap import Subspaces
from mijax.core import Site
from mijax.core.internal import checked
from mijax.data import AbstractSource


@final
class Search(eqx.Module):
    """One search: how, where, and for which variables.

    Attributes:
        method: the family of subspaces.
        site: the place, its layer and position data.
        task: index of the counterfactuals, where a batch is a tuple of several.
    """

    method: AbstractMethod
    site: Site
    task: int = 0


@final
class Alignment(eqx.Module):
    """Subspaces at places: what `align` finds, or what a hypothesis says.

    Attributes:
        subspaces: of every model and search.
        site: the place of every search, its indices `[search]`.
        task: index of the counterfactuals of every search.
    """

    subspaces: Subspaces
    site: Site
    task: Int[Array, " search"]


@checked
def align(
    models: Any,
    searches: Sequence[Search],
    source: AbstractSource,
    *,
    steps: int,
    learning_rate: float = 1e-2,
    seed: int = 0,
    sinks: Sequence[train.AbstractSink] = (),
    report: int = 100,
) -> Alignment:
    """Searches for subspaces whose swap does what a causal model says.

    Minimised is the cross-entropy of the model's output after the swap against the
    label of the causal model, with Adam, whose step falls to 0 along a cosine. All
    searches in all models are lanes of one program, on the same batches. A model's
    activations are computed once for all searches.

    Args:
        models: a model, `model(x, edits) -> (out, acts)`, or several of one kind. They
            do not change.
        searches: of one kind of method, at one kind of site.
        source: batches of `Counterfactuals`, or of a tuple of them.
        steps: updates.
        learning_rate: of Adam, at the start.
        seed: of parameters; every search in every model has its own.
        sinks: where numbers go: `"loss"`, and of every model and search `"losses"`
            and `"agreement"`, the share of the batch whose output is as labelled.
        report: updates between reports.

    Returns:
        The subspaces, of `[model, search]`, or `[search]` for one model.

    Raises:
        ConfigError: searches that cannot share a program, or more dimensions than
            there are.
        ShapeError: models or counterfactuals that do not fit one another.
        SiteError: a layer or position that the model does not have.

    Examples:
        >>> from mijax import causal
        >>> model = causal.MLP(2, width=4, layers=1, classes=2, key=jax.random.key(0))
        >>> def draw(key):  # the label is whether the first number is positive
        ...     x, y = jax.random.normal(key, (2, 2))
        ...     label = (y[0] > 0).astype(jnp.int32)
        ...     return causal.Counterfactuals(x, y[None], jnp.array([True]), label)
        >>> site = Site("mlp_post", layer=0, position=0)
        >>> searches = [Search(causal.DAS((k,)), site) for k in (1, 2)]
        >>> source = causal.Drawn(draw, batch=8)
        >>> align(model, searches, source, steps=3).subspaces.mask.sum((1, 2)).tolist()
        [1.0, 2.0]
    """
    lanes = Lanes.of(searches)
    _, batch = source.batch(source.start())
    shared = Shared.of(models)
    width, variables = check(shared, lanes.site, lanes.task, as_tuple(batch))
    for one in searches:
        one.method.check(width)
    method = searches[0].method
    mask = jax.eval_shape(
        lambda: method.found(method.start(jax.random.key(0), width)).mask
    )
    if len(mask) != variables:
        raise ShapeError(
            f"The methods have {len(mask)} variables, the counterfactuals {variables}."
        )
    objective = _Objective(
        shared, lanes, jnp.float32(learning_rate), jnp.int32(seed), width, steps
    )
    state = train.fit(objective, source, steps=steps, sinks=sinks, report=report)
    found = _found(shared, lanes, state.params)
    return Alignment(found, lanes.site, lanes.task)


class _Objective(train.AbstractObjective):
    """The sum of the losses of all lanes: Adam keeps them apart."""

    shared: Shared
    lanes: Lanes
    learning_rate: Float[Array, ""]
    seed: Int[Array, ""]
    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def key(self) -> PRNGKeyArray:
        """Returns the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[Any, None]:
        """Draws parameters of every model and search."""

        def one(key: PRNGKeyArray) -> Any:
            keys = jax.random.split(key, len(self.lanes))
            run = jax.vmap(lambda method, key: method.start(key, self.width))
            return run(self.lanes.method, keys)

        if not self.shared.several:
            return one(key), None
        return jax.vmap(one)(jax.random.split(key, len(self.shared))), None

    def loss(
        self, params: Any, memory: None, batch: Any, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], None]]:
        """Returns the sum of the losses, and those of every lane."""
        progress = step.index / self.steps

        def one(model: Any, params: Any) -> Any:
            read = lambda lane, params: lane.method.subspaces(params, progress)  # noqa: E731
            found = jax.vmap(read)(self.lanes, params)
            loss, right = losses(model, self.lanes, found, as_tuple(batch))
            penalty = jax.vmap(lambda lane, p: lane.method.penalty(p))
            return loss.mean(-1) + penalty(self.lanes, params), right.mean(-1)

        loss, right = self.shared.map(one, params)
        total = step.mean(loss.sum())
        return total, ({"losses": step.mean(loss), "agreement": step.mean(right)}, None)

    def optimiser(self) -> optax.GradientTransformation:
        """Returns Adam with a cosine."""
        cosine = optax.cosine_decay_schedule(1.0, self.steps)
        return optax.adam(lambda count: self.learning_rate * cosine(count))

    def after(
        self, params: Any, optimiser: Any, memory: None, batch: Any, step: train.Step
    ) -> tuple[Any, Any, None]:
        """Settles the parameters of every lane."""
        settle = jax.vmap(lambda lane, params: lane.method.settled(params))
        one = lambda model, params: settle(self.lanes, params)  # noqa: E731
        return self.shared.map(one, params), optimiser, memory


@eqx.filter_jit
def _found(shared: Shared, lanes: Lanes, params: Any) -> Subspaces:
    read = jax.vmap(lambda lane, params: lane.method.found(params))
    return shared.map(lambda model, params: read(lanes, params), params)
