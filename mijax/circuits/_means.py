"""Mean ablation: what each sender writes on average."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError
from mijax.circuits._task import Fixed, batch
from mijax.circuits.forward._connected import connected, enter
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model, StreamModel
from mijax.core.internal import Padded, checked, masked_lengths


@checked
def mean_ablation(
    model: Model,
    prompts: Any,
    *,
    graph: Graph | None = None,
    per: Literal["token", "position", "template"] = "token",
    group: Any = None,
) -> Fixed:
    """Averages what every sender writes over prompts; padding does not count.

    Args:
        model: the model.
        prompts: what to average over, `Prompts` or tokens `[batch, seq]`.
        graph: senders; `Graph.of(model)` by default.
        per: one mean over all tokens, one per position, or one per template.
        group: template of each prompt, `[batch]`, with `per="template"`; the task must
            have the same prompts in the same order.

    Returns:
        The ablation.

    Raises:
        ShapeError: templates are asked for and not given, or padding that the model
            does not mask.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> mean_ablation(model, [[1, 2, 3], [4, 5, 6]]).values.shape
        (16, 32)
    """
    graph = Graph.of(model) if graph is None else graph
    tokens, lengths = batch(prompts)
    if not isinstance(model, StreamModel):
        masked_lengths(model, Padded(tokens, lengths), tokens.shape[1])
    if per == "template":
        if group is None or np.shape(group) != (tokens.shape[0],):
            raise ShapeError(
                f"Means per template need the template of each of {tokens.shape[0]} "
                f"prompts, got {np.shape(group) if group is not None else None}."
            )
        group = jnp.asarray(group, jnp.int32)
        size = int(group.max()) + 1
        sums, counts = _sums(model, graph, tokens, lengths, group, size)
        sums, counts = sums.sum(2), counts.sum(1)[:, None, None]
        return Fixed(sums / jnp.maximum(counts, 1), group)
    one = jnp.zeros(tokens.shape[0], jnp.int32)
    (sums,), (counts,) = _sums(model, graph, tokens, lengths, one, 1)
    if per == "position":
        return Fixed(sums / jnp.maximum(counts, 1)[:, None])
    return Fixed(sums.sum(1) / counts.sum())


@eqx.filter_jit
def _sums(
    model: Model,
    graph: Graph,
    tokens: Array,
    lengths: Array,
    group: Array,
    size: int,
) -> tuple[Float[Array, "group sender seq embed"], Float[Array, "group seq"]]:
    """Sums what senders write, and counts tokens, by group and position."""

    def add(carry: Any, prompt: Any) -> tuple[Any, None]:
        sums, counts = carry
        tokens, length, group = prompt
        here = jnp.arange(tokens.shape[0]) < length
        out = connected(model, graph, enter(model, graph, tokens, length)).senders
        sums = sums.at[group].add(jnp.where(here[:, None], out, 0))
        return (sums, counts.at[group].add(here.astype(counts.dtype))), None

    like = enter(model, graph, tokens[0]).senders
    wide = jnp.promote_types(like.dtype, jnp.float32)
    sums = jnp.zeros((size, len(graph.senders), *like.shape[1:]), wide)
    counts = jnp.zeros((size, tokens.shape[1]), wide)
    return jax.lax.scan(add, (sums, counts), (tokens, lengths, group))[0]
