"""Arrays spread over devices with explicit axes, which `jax.make_mesh` makes."""

from typing import TypeVar

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding

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
