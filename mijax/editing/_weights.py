"""Weights of a model, named by their path in its tree."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from mijax._errors import FrameError, ShapeError, SiteError, nearest
from mijax.core import AbstractModel, EditedModel
from mijax.core.internal import digest

# The matrix that writes an MLP's output: the associative memory of ROME.
MLP_OUT = "blocks.mlp.w_out"


def weight_names(model: Any) -> tuple[str, ...]:
    """List the weights of a model that an edit can change.

    Args:
        model: any tree of arrays, such as a model.

    Returns:
        Path of each array of real numbers, as `WeightEdit` and model files name it.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> weight_names(model)[-3:]
        ('blocks.mlp.b_out', 'norm.weight', 'norm.bias')
    """
    return tuple(_leaves(model))


def read(model: Any, name: str, layer: int | None) -> Float[Array, "..."]:
    """Return one weight of a model, for one layer if it is stacked.

    Raises:
        SiteError: no such weight or layer.
        FrameError: a model that keeps edits.
    """
    if isinstance(model, EditedModel):
        raise FrameError(
            "A model that keeps edits of activations holds its weights inside: change "
            "the weights of the model itself, then give it the edits, mijax.edited."
        )
    leaves = _leaves(model)
    if name not in leaves:
        raise SiteError(f"The model has no weight {name!r}.{nearest(name, leaves)}")
    leaf = leaves[name]
    stacked = name.startswith("blocks.")
    if stacked != (layer is not None):
        raise SiteError(
            f"Weight {name!r} has {'a layer axis: give' if stacked else 'no layers:'} "
            f"layer={'...' if stacked else 'None'}, got layer={layer}."
        )
    if layer is None:
        return leaf
    if not 0 <= layer < leaf.shape[0]:
        raise SiteError(
            f"Weight {name!r} has layers 0 to {leaf.shape[0] - 1}, got layer {layer}."
        )
    return leaf[layer]


def write(model: Any, name: str, layer: int | None, value: Array) -> Any:
    """Return the model with a new value for one weight, in the weight's dtype.

    Raises:
        ShapeError: the value's shape differs from the weight's.
    """
    old = read(model, name, layer)
    if old.shape != value.shape:
        where = name if layer is None else f"{name} of layer {layer}"
        raise ShapeError(
            f"{where} has shape {old.shape}, and the edit has {value.shape}: it was "
            "made for another model."
        )
    value = value.astype(old.dtype)

    def put(path: Any, leaf: Any) -> Any:
        if _name(path) != name:
            return leaf
        return value if layer is None else leaf.at[layer].set(value)

    return jax.tree_util.tree_map_with_path(put, model)


def weight_digest(value: Any) -> str:
    """Return the SHA-256 of a weight's dtype, shape and bytes; empty if traced."""
    return "" if isinstance(value, Tracer) else digest(np.asarray(value))


def bare(model: Any) -> Any:
    """Return the model inside a language model, or the given model."""
    inner = getattr(model, "model", None)
    if isinstance(model, AbstractModel) or not isinstance(inner, AbstractModel):
        return model
    return inner


def on_model(model: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to a model, or to the model inside a language model."""
    inner = bare(model)
    if inner is model:
        return change(model)
    return dataclasses.replace(model, model=change(inner))


def _leaves(model: Any) -> dict[str, Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))
    return {
        _name(path): leaf
        for path, leaf in found
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
