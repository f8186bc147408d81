"""Gradients of a metric at every receiver and sender, and what they make of an edge."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.circuits._scores import Level
from mijax.circuits._task import Task
from mijax.circuits.forward._connected import connected, score
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate, Inputs, Ran, Taps
from mijax.circuits.forward._streams import Model


def gradients(
    model: Model,
    graph: Graph,
    task: Task,
    inputs: Inputs,
    prompt: Int[Array, ""],
    *,
    level: Level = "edge",
    gate: Gate | None = None,
    reference: Float[Array, "sender seq embed"] | None = None,
) -> tuple[Float[Array, "port seq embed"], Ran]:
    """Takes the gradient of a task's metric in one prompt.

    Args:
        model: the model.
        graph: its graph.
        task: what is measured.
        inputs: what enters the first block.
        prompt: which prompt.
        level: `"edge"` for the gradient at what each receiver reads, else at what each
            sender writes.
        gate: what passes.
        reference: what senders are replaced by; needed with a gate.

    Returns:
        The gradients, one per receiver or per sender, and the run.
    """

    def value(taps: Array) -> tuple[Array, Ran]:
        ran = connected(
            model,
            graph,
            inputs,
            prompt=prompt,
            gate=gate,
            reference=reference,
            taps=Taps(receivers=taps) if level == "edge" else Taps(senders=taps),
        )
        return score(model, task.metric, ran.final, prompt), ran

    ports = graph.receivers if level == "edge" else graph.senders
    zeros = jnp.zeros((len(ports), *inputs.senders.shape[1:]), inputs.senders.dtype)
    return jax.grad(value, has_aux=True)(zeros)


def attributed(
    graph: Graph,
    level: Level,
    difference: Float[Array, "sender seq embed"],
    gradient: Float[Array, "port seq embed"],
) -> Float[Array, "..."]:
    """Multiplies what senders change by the gradient where it is read.

    Args:
        graph: the graph.
        level: of the scores.
        difference: what each sender writes minus what replaces it.
        gradient: at every receiver for edges, else at every sender.

    Returns:
        Scores of one prompt: `[sender, receiver]`, `[sender]` or `[sender, embed]`.
    """
    if level == "edge":
        return summed("snd,rnd->sr", difference, gradient) * graph.edges
    return summed(f"snd,snd->{'s' if level == 'node' else 'sd'}", difference, gradient)


def summed(spec: str, one: Array, other: Array) -> Array:
    """Multiplies and sums, in float32 at least."""
    wide = jnp.promote_types(jnp.result_type(one, other), jnp.float32)
    return jnp.einsum(spec, one, other, preferred_element_type=wide)
