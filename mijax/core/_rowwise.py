"""Check that custom edits change each row by itself, as packed rows require."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from mijax._errors import ShapeError
from mijax.core._check import placed_at
from mijax.core._edits import AbstractEdit, Apply
from mijax.core._place import Place
from mijax.core._rows import Sequence
from mijax.core._sites import BLOCK_SITES, SITES, Sites, get


def check_rowwise(
    one: AbstractEdit, acts: Float[Array, "layer prompt seq ..."], layered: bool
) -> None:
    """Refuse a custom edit whose rows depend on each other.

    Every row is edited once with the others of its prompt and once without them. Edits
    from mijax are known to be equal in both.

    Args:
        one: the edit, without a place.
        acts: activations to try it on.
        layered: whether the site has layers.

    Raises:
        ShapeError: the two results differ.
    """
    if not any(_custom(edit) for edit in _edits(one)):
        return
    mixes = _mixes(one, acts, layered)
    if not isinstance(mixes, Tracer) and bool(mixes):
        raise ShapeError(
            f"{type(one).__name__} mixes rows: its result for one token depends on the "
            "other rows, which in sweeps and generation belong to other runs. Use "
            "mijax.run, or compute what it needs beforehand."
        )


def check_generated(edits: Sites[Any], shapes: Sites[Any]) -> None:
    """Refuse custom edits that generation would run on rows of several prompts.

    Args:
        edits: a record of edits, tried on random activations.
        shapes: shapes of all sites.

    Raises:
        ShapeError: an edit whose rows depend on each other.
    """
    for name in SITES:
        for placed in placed_at(get(edits, name)):
            if not any(_custom(edit) for edit in _edits(placed.edit)):
                continue
            layered, spec = name in BLOCK_SITES, get(shapes, name)
            layers, *row = (
                spec.shape[:1] + spec.shape[2:]
                if layered
                else (
                    1,
                    *spec.shape[1:],
                )
            )
            shape = (layers, 1, 4, *row)
            acts = jax.random.normal(jax.random.key(0), shape, spec.dtype)
            check_rowwise(placed.edit, acts, layered)


def _custom(edit: AbstractEdit) -> bool:
    foreign = type(edit).__module__.split(".")[0] != "mijax"
    return foreign or isinstance(edit, Apply)


def _edits(node: Any) -> list[AbstractEdit]:
    """List an edit and the edits that it holds."""
    if isinstance(node, list | tuple):
        return [edit for part in node for edit in _edits(part)]
    if not isinstance(node, eqx.Module):
        return []
    parts = [getattr(node, f.name, None) for f in dataclasses.fields(node)]
    return [*([node] if isinstance(node, AbstractEdit) else []), *_edits(parts)]


@eqx.filter_jit
def _mixes(one: AbstractEdit, acts: Array, layered: bool) -> Bool[Array, ""]:
    position = jnp.arange(acts.shape[2], dtype=jnp.int32)
    tolerance = float(jnp.finfo(acts.dtype).eps) ** 0.5

    def differ(acts: Array, prompt: Array, layer: Array) -> Array:
        def edited(x: Array, position: Array) -> Array:
            rows = Sequence(position, prompt, prompt)
            return one(x, Place(rows, layer if layered else None))

        together = jnp.nan_to_num(edited(acts, position))
        alone = jax.vmap(lambda x, at: edited(x[None], at[None])[0])(acts, position)
        scale = 1 + jnp.abs(together).max()
        return jnp.abs(together - jnp.nan_to_num(alone)).max() > tolerance * scale

    def of_layer(inputs: Any) -> Array:
        acts, layer = inputs
        prompts = jnp.arange(acts.shape[0], dtype=jnp.int32)
        return jax.vmap(differ, in_axes=(0, 0, None))(acts, prompts, layer).any()

    layers = jnp.arange(acts.shape[0], dtype=jnp.int32)
    return jax.lax.map(of_layer, (acts, layers)).any()
