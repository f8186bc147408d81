"""The metric under gates on nodes: the one forward pass that every method uses."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._progress import Progress
from mijax.circuits._task import example_of
from mijax.circuits.methods._fit import mean_of
from mijax.circuits.nodes._nodes import NodeSite
from mijax.circuits.nodes._task import NodeTask, blocks
from mijax.core import Patch
from mijax.core.internal import (
    Piece,
    bucket,
    harvest_parts,
    peak_bytes,
    run_pieces,
    score,
    spot_of,
)

# Most examples of one call; more only make programs larger.
MOST = 64


def gated(task: NodeTask, prompt: Any) -> Callable[[Array], Float[Array, ""]]:
    """Return a function from gates to the metric of one example.

    A gate of 1 leaves a node as it is, 0 replaces it, and numbers between mix both:
    `gate * value + (1 - gate) * replacement`. Nodes are computed from what the gates
    before them leave.

    Args:
        task: the task.
        prompt: which example.

    Returns:
        The function of gates `[node]`, booleans or numbers.
    """
    example = example_of(task.clean, prompt)
    new, fn = _replacements(task, prompt), task.model.fn

    def run(gates: Array) -> Float[Array, ""]:
        edits = {
            part.site: _edit(task, part, new[part.site], gates, prompt)
            for part in task.nodes.sites
        }
        output = harvest_parts(fn, (), edits, {})(example)[0]
        return score(task.metric, output, example, prompt)

    return run


def _replacements(task: NodeTask, prompt: Any) -> dict[str, Any]:
    """Return for each site the edit that replaces its nodes."""
    if task.corrupt is None:
        return task.edits
    names = [part.site for part in task.nodes.sites]
    corrupt = example_of(task.corrupt, prompt)
    acts = harvest_parts(task.model.fn, names, {}, {})(corrupt)[1]
    return {name: Patch(acts[name]) for name in names}


def _edit(task: NodeTask, part: NodeSite, new: Any, gates: Array, prompt: Any) -> Any:
    """Return the function that `harvest` applies at a site."""
    info = task.sites[part.site]

    def edit(x: Array, at: Any) -> Array:
        spot = spot_of(at, info, prompt)
        gate, other = part.gate(gates, spot, x.shape), new(x, spot)
        if gate.dtype == bool:
            return jnp.where(gate, x, other)
        return (gate * x + (1 - gate) * other).astype(x.dtype)

    return edit


def mean_metric(
    task: NodeTask, gates: Array, prompts: Int[Array, " example"], chunk: int
) -> Float[Array, ""]:
    """Return the mean of the metric over examples, of which `chunk` run at once."""
    one = lambda prompt: gated(task, prompt)(gates)  # noqa: E731
    # XLA runs convolutions in a loop on one core of a CPU: no loop where all fit.
    if len(prompts) <= chunk:
        return jax.vmap(one)(prompts).mean()
    # Recomputed in a backward pass, so that its memory is that of one chunk.
    once = jax.checkpoint(one)
    return mean_of(lambda i: once(prompts[i]), len(prompts), chunk)


def run_masks(
    task: NodeTask,
    masks: Bool[np.ndarray, "circuit node"],
    *,
    progress: Progress,
    memory: int,
) -> Float[np.ndarray, "circuit example"]:
    """Measure circuits given as masks, in one compiled program; equal ones once."""
    unique, which = np.unique(masks, axis=0, return_inverse=True)
    lanes = max(1, memory // example_bytes(task))
    rows = min(len(task), lanes, MOST)
    width = bucket(min(len(unique), max(1, lanes // rows)))
    values = np.zeros((len(unique), len(task)), np.float32)
    pieces = [
        _piece(task, unique, ids[:rows], count, start, width)
        for ids, count in blocks(task, rows)
        for start in range(0, len(unique), width)
    ]
    run_pieces(pieces, values, None, progress, None)
    return values[which.reshape(-1)]


def _piece(
    task: NodeTask, masks: np.ndarray, ids: np.ndarray, count: int, at: int, width: int
) -> Piece:
    """Return one call: some circuits on some examples."""
    own = np.arange(at, min(at + width, len(masks)))
    padded = np.pad(own, (0, width - len(own)), mode="edge")

    def store(out: np.ndarray, values: np.ndarray) -> None:
        values[np.ix_(own, ids[:count])] = out[: len(own), :count]

    call = lambda: _measure(task, jnp.asarray(ids), jnp.asarray(masks[padded]))  # noqa: E731
    return Piece(len(own) * count, call, store)


@eqx.filter_jit
def _measure(
    task: NodeTask, ids: Int[Array, " example"], masks: Bool[Array, "circuit node"]
) -> Float[Array, "circuit example"]:
    """Return the metric of every circuit on every example."""
    each = jax.vmap(lambda prompt: jax.vmap(gated(task, prompt))(masks))(ids)
    return each.T


def example_bytes(task: NodeTask) -> int:
    """Estimate the memory of one run of one example."""
    gates = jax.ShapeDtypeStruct((len(task.nodes),), bool)
    one = jax.ShapeDtypeStruct((), jnp.int32)
    made = jax.make_jaxpr(lambda prompt, gates: gated(task, prompt)(gates))(one, gates)
    return max(1, peak_bytes(made.jaxpr))
