"""Shapes of a decoder's activations, traced once for a structure and shapes."""

from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mijax.core._edited import unedited
from mijax.core._model import AbstractModel
from mijax.core._sites import Sites


def site_shapes(model: AbstractModel, seq: int) -> Sites[Any]:
    """Returns the shape of every activation of one example, without running it.

    Args:
        model: the model.
        seq: number of tokens.

    Returns:
        `Sites` of `jax.ShapeDtypeStruct`, `None` at sites that the model lacks.
    """
    # Edits keep shapes; those with one place per prompt need to know the prompt.
    leaves, tree = jax.tree.flatten(unedited(model))
    specs = tuple(
        (leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf for leaf in leaves
    )
    which = tuple(map(eqx.is_array, leaves))
    return _shapes(tree, specs, which, seq, jnp.result_type(float) == jnp.float64)


@lru_cache(maxsize=128)
def _shapes(tree: Any, specs: Any, which: Any, seq: int, _: bool) -> Sites[Any]:
    """Trace a model of some structure and shapes, once."""
    arrays = [
        jax.ShapeDtypeStruct(*spec)
        for spec, real in zip(specs, which, strict=True)
        if real
    ]

    def acts(arrays: list[Any], tokens: Array) -> Sites[Any]:
        rest = iter(arrays)
        pairs = zip(specs, which, strict=True)
        leaves = [next(rest) if real else leaf for leaf, real in pairs]
        return jax.tree.unflatten(tree, leaves)(tokens)[1]

    return jax.eval_shape(acts, arrays, jax.ShapeDtypeStruct((seq,), jnp.int32))
