"""Where each array of a state lies on a mesh."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mijax._errors import ConfigError
from mijax.train._mesh import DATA, MODEL
from mijax.train._objective import AbstractObjective
from mijax.train._state import State


def specs_of(objective: AbstractObjective, tree: Any, *, several: bool) -> Any:
    """Returns the spec of every array of parameters and memory; lanes lie together."""
    if not several:
        return objective.specs(tree)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)
    return jax.tree.map(
        lambda spec: P(None, *spec), objective.specs(shapes), is_leaf=is_spec
    )


def place(
    state: State, objective: AbstractObjective, mesh: Mesh | None, *, several: bool
) -> State:
    """Puts a state on a mesh.

    Raises:
        ConfigError: the mesh does not divide an array.
    """
    if mesh is None:
        return state
    specs = specs_of(objective, (state.params, state.memory), several=several)
    jax.tree.map(
        lambda spec, leaf: check(spec, leaf.shape, mesh),
        specs,
        (state.params, state.memory),
        is_leaf=is_spec,
    )
    given = (state.params, state.optimiser, state.memory)
    params, optimiser, memory = jax.tree.map(
        lambda spec, leaf: jax.device_put(leaf, NamedSharding(mesh, spec)),
        layout(given, objective, several=several),
        given,
        is_leaf=is_spec,
    )
    step = jax.device_put(state.step, NamedSharding(mesh, P()))
    return State(params, memory, optimiser, step, state.source)


def constrained(
    found: Any, objective: AbstractObjective, mesh: Mesh | None, *, several: bool
) -> Any:
    """Keeps parameters, optimiser and memory where they lie, inside `jit`."""
    if mesh is None:
        return found
    return jax.tree.map(
        lambda spec, leaf: jax.lax.with_sharding_constraint(
            leaf, NamedSharding(mesh, spec)
        ),
        layout(found, objective, several=several),
        found,
        is_leaf=is_spec,
    )


def spread(batch: Any, mesh: Mesh) -> Any:
    """Splits the examples of a batch over the devices that share them.

    Raises:
        ConfigError: the mesh does not divide the examples.
    """
    for leaf in jax.tree.leaves(batch):
        check(P(DATA), leaf.shape, mesh)
    return jax.device_put(batch, NamedSharding(mesh, P(DATA)))


def is_spec(leaf: Any) -> bool:
    """True if a node of a tree is a spec."""
    return isinstance(leaf, P)


def check(spec: P, shape: tuple[int, ...], mesh: Mesh) -> None:
    """Refuses an array that a mesh does not divide."""
    for axis, size in zip(spec, shape, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            close = [n for n in range(1, mesh.size + 1) if size % n == 0]
            raise ConfigError(
                f"The axis {axis!r} of the mesh has {mesh.shape[axis]} devices, which "
                f"do not divide {size} {'latents' if axis == MODEL else 'examples'}: "
                f"give one of {close}."
            )


def layout(given: Any, objective: AbstractObjective, *, several: bool) -> Any:
    """Returns specs of parameters, optimiser and memory; moments lie as parameters."""
    params, optimiser, memory = given
    of_params, of_memory = specs_of(objective, (params, memory), several=several)
    rule = objective.optimiser()
    of_optimiser = optax.tree_utils.tree_map_params(
        rule,
        lambda _, spec: spec,
        optimiser,
        of_params,
        transform_non_params=lambda _: P(),
        is_leaf=is_spec,
    )
    return of_params, of_optimiser, of_memory
