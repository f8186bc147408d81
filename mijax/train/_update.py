"""One update, on one device or on a mesh, of one objective or of lanes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from mijax.data import AbstractSource
from mijax.train._mesh import DATA, MODEL, Step
from mijax.train._objective import AbstractObjective
from mijax.train._shard import constrained, place, specs_of, spread
from mijax.train._state import State


def begin(
    objective: AbstractObjective,
    source: AbstractSource,
    *,
    several: bool,
    mesh: Mesh | None,
    given: Any = None,
) -> State:
    """Return the state before the first update, with given parameters if any."""
    params, memory, optimiser = start(objective, several, given)
    state = State(params, memory, optimiser, jnp.int32(0), source.start())
    return place(state, objective, mesh, several=several)


@eqx.filter_jit
def start(objective: AbstractObjective, several: bool, given: Any) -> Any:
    """Return parameters, memory and the state of the optimizer."""

    def one(objective: AbstractObjective, given: Any) -> Any:
        found = objective.start(objective.key()) if given is None else given
        params, memory = found
        return params, memory, objective.optimiser().init(learned(params))

    return jax.vmap(one)(objective, given) if several else one(objective, given)


def learned(params: Any) -> Any:
    """Returns the parameters but for integers, such as the windows of attention."""
    return eqx.filter(params, eqx.is_inexact_array)


def update(
    objective: AbstractObjective,
    state: State,
    source: Any,
    batch: Any,
    several: bool,
    mesh: Mesh | None,
) -> tuple[State, dict[str, Any]]:
    """Updates the parameters once.

    Args:
        objective: what is minimised.
        state: before; its buffers are used again.
        source: state of the source after the batch.
        batch: examples.
        several: whether the objective is lanes.
        mesh: devices.

    Returns:
        The state after, and the numbers of this update: what the objective reports,
        its `"loss"`, and the norm of the `"update"` of the parameters.
    """
    core = (state.params, state.memory, state.optimiser, state.step)
    if mesh is not None:
        batch = spread(batch, mesh)
    (params, memory, optimiser, step), info = _update(
        (objective, batch, several, mesh), core
    )
    return State(params, memory, optimiser, step, source), info


@eqx.filter_jit(donate="all-except-first")
def _update(shared: Any, core: Any) -> tuple[Any, dict[str, Any]]:
    objective, batch, several, mesh = shared
    return apply(objective, core, batch, several, mesh)


def apply(
    objective: AbstractObjective, core: Any, batch: Any, several: bool, mesh: Any
) -> tuple[Any, dict[str, Any]]:
    """Updates once, inside of a program.

    Args:
        objective: what is minimised.
        core: parameters, memory, optimiser and step before.
        batch: examples, as they lie on the mesh.
        several: whether the objective is lanes.
        mesh: devices.

    Returns:
        The core after, and the numbers of this update.
    """
    params, memory, optimiser, index = core

    def keys(objective: AbstractObjective) -> PRNGKeyArray:
        return jax.random.fold_in(objective.key(), index)

    key = jax.vmap(keys)(objective) if several else keys(objective)
    gradient, info, memory = _gradient(
        objective, params, memory, batch, (index, key), several, mesh
    )

    def one(objective: Any, params: Any, given: Any, key: Any) -> Any:
        gradient, optimiser, memory = given
        rule = objective.optimiser()
        values = learned(params)
        change, optimiser = rule.update(gradient, optimiser, values)
        params = eqx.combine(optax.apply_updates(values, change), params)
        step = Step(index, jax.random.fold_in(key, 1))
        after = objective.after(params, optimiser, memory, batch, step)
        return after, optax.tree.norm(change)

    change = jax.vmap(one) if several else one
    found, size = change(objective, params, (gradient, optimiser, memory), key)
    params, optimiser, memory = constrained(found, objective, mesh, several=several)
    return (params, memory, optimiser, index + 1), {**info, "update": size}


def _gradient(
    objective: Any,
    params: Any,
    memory: Any,
    batch: Any,
    at: tuple[Any, Any],
    several: bool,
    mesh: Mesh | None,
) -> tuple[Any, dict[str, Any], Any]:
    """Returns the gradient, numbers to report, and the memory after the batch."""
    split = mesh is not None

    def one(objective: Any, params: Any, memory: Any, batch: Any, at: Any) -> Any:
        step = Step(*at, data=split, model=split)
        value = eqx.filter_value_and_grad(objective.loss, has_aux=True)
        (loss, (info, memory)), gradient = value(params, memory, batch, step)
        return gradient, {"loss": loss, **info}, memory

    run = jax.vmap(one, in_axes=(0, 0, 0, None, (None, 0))) if several else one
    if mesh is None:
        return run(objective, params, memory, batch, at)
    of_params, of_memory = specs_of(objective, (params, memory), several=several)
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(P(), of_params, of_memory, P(DATA), P()),
        out_specs=(of_params, P(), of_memory),
        axis_names={DATA, MODEL},
    )(objective, params, memory, batch, at)
