"""Interchange-intervention accuracy."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mijax.causal._align import Alignment
from mijax.causal._run import Shared, as_tuple, check, losses
from mijax.core import Interval, interval
from mijax.core.internal import checked

# Searches that are measured at a time: memory is that of this many.
AT_ONCE = 32


@checked
def agreement(
    models: Any, alignment: Alignment, data: Any
) -> Bool[Array, "*model search batch"]:
    """Tells where a model, after the swap, says what the causal model says.

    Args:
        models: a model or several, as `align` was given.
        alignment: subspaces at places. Those without a model axis are used in every
            model.
        data: `Counterfactuals`, or a tuple of them.

    Returns:
        Whether the label has the greatest logit.

    Raises:
        ConfigError: a task that the data do not hold.
        ShapeError: inputs of several shapes.
        SiteError: a layer or position that the model does not have.

    Examples:
        >>> import jax, mijax, jax.numpy as jnp
        >>> from mijax import causal
        >>> model = causal.MLP(2, width=4, layers=1, classes=2, key=jax.random.key(0))
        >>> x, y = jax.random.normal(jax.random.key(1), (2, 8, 2))
        >>> label = jax.vmap(lambda x: model(x)[0].argmax())(y)
        >>> data = causal.Counterfactuals(x, y[:, None], jnp.ones((8, 1), bool), label)
        >>> site = mijax.Site("mlp_post", layer=0, position=0)
        >>> whole = causal.blocks(4, (4,))
        >>> agreement(model, causal.stated(whole, site), data).all(1).tolist()
        [True]
    """
    shared, tasks = Shared.of(models), as_tuple(data)
    check(shared, alignment.site, alignment.task, tasks)
    return _agreement(shared, alignment, tasks)


@checked
def iia(models: Any, alignment: Alignment, data: Any, **options: Any) -> Interval:
    """Measures interchange-intervention accuracy, with a confidence interval.

    Geiger et al. 2021, arXiv:2106.02997.

    Args:
        models: a model or several, as `align` was given.
        alignment: subspaces at places.
        data: `Counterfactuals`, or a tuple of them.
        **options: of `mijax.interval`: level, method, resamples, key.

    Returns:
        The share of examples on which model and causal model agree, of every model and
        search; the interval is over examples.

    Examples:
        >>> import jax, mijax, jax.numpy as jnp
        >>> from mijax import causal
        >>> model = causal.MLP(2, width=4, layers=1, classes=2, key=jax.random.key(0))
        >>> x, y = jax.random.normal(jax.random.key(1), (2, 8, 2))
        >>> label = jax.vmap(lambda x: model(x)[0].argmax())(y)
        >>> data = causal.Counterfactuals(x, y[:, None], jnp.ones((8, 1), bool), label)
        >>> site = mijax.Site("mlp_post", layer=0, position=0)
        >>> whole = causal.blocks(4, (4,))
        >>> iia(model, causal.stated(whole, site), data).mean.tolist()
        [1.0]
    """
    right = agreement(models, alignment, data)
    return interval(jnp.moveaxis(right, -1, 0).astype(jnp.float32), **options)


@eqx.filter_jit
def _agreement(shared: Shared, alignment: Alignment, tasks: Any) -> Array:
    subspaces = alignment.subspaces
    if shared.several and subspaces.mask.ndim == 3:
        subspaces = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(shared), *leaf.shape)), subspaces
        )

    def one(model: Any, subspaces: Any) -> Array:
        right = losses(model, alignment, subspaces, tasks, at_once=AT_ONCE)[1]
        return right > 0

    return shared.map(one, subspaces)
