"""Arrays spread over devices with explicit axes, which `jax.make_mesh` makes."""

import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mijax._errors import ShapeError

T = TypeVar("T")


def automatic(tree: T) -> T:
    """Return a tree whose arrays leave the layout of results to the compiler.

    With explicit axes every product of two sharded arrays needs the sharding of its
    result; a forward pass does not say that. The arrays stay where they are.

    Args:
        tree: a model, tokens or edits.

    Returns:
        The tree; arrays on a mesh with explicit axes are on the same mesh with
        automatic ones.

    Raises:
        ShapeError: `jax.set_mesh` sets a mesh with explicit axes.
    """
    return jax.tree.map(_automatic, tree)


def _automatic(leaf: T) -> T:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return leaf
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding):
        return leaf
    mesh = sharding.mesh
    if not isinstance(mesh, Mesh) or AxisType.Explicit not in mesh.axis_types:
        return leaf
    if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        raise ShapeError(
            "Arrays with explicit sharding cannot be run while jax.set_mesh sets "
            "explicit axes: call this outside of it, or make the mesh with "
            "axis_types=(AxisType.Auto,)."
        )
    types = (AxisType.Auto,) * len(mesh.axis_names)
    same = Mesh(mesh.devices, mesh.axis_names, axis_types=types)
    return jax.device_put(leaf, NamedSharding(same, sharding.spec))


def spare_axes(tree: Any, mesh: Mesh) -> tuple[str, ...]:
    """Return the axes of a mesh along which no array of a model is split.

    Args:
        tree: the model.
        mesh: the devices.

    Returns:
        Names of axes, over which other work can be spread.
    """
    taken = {
        name for spec in _specs(tree, mesh) for name in jax.tree.leaves(tuple(spec))
    }
    return tuple(name for name in mesh.axis_names if name not in taken)


def everywhere(tree: T) -> T:
    """Return results of which each of several processes holds the whole.

    Each process must call it at the same point, since it communicates.

    Args:
        tree: arrays, spread over a mesh of several processes or not.

    Returns:
        The tree; with one process as it was given.
    """
    return tree if jax.process_count() == 1 else jax.tree.map(_everywhere, tree)


def _everywhere(leaf: T) -> T:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    return _copied(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=1)
def _copied(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, sharding)


def on_mesh(tree: Any, mesh: Mesh) -> bool:
    """Return whether the arrays of a model are on the devices of a mesh."""
    return any(True for _ in _specs(tree, mesh))


def _specs(tree: Any, mesh: Mesh) -> Iterator[PartitionSpec]:
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and (
            sharding.mesh.axis_names == mesh.axis_names
            and sharding.device_set == set(mesh.devices.flat)
        ):
            yield sharding.spec
