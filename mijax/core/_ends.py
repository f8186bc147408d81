"""The last step of a forward pass, for the positions that are read.

Logits of a whole prompt take `seq * vocab` numbers, most of a small model's memory, so
a verb that reads few positions normalizes and unembeds only those.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.core._edits import edit
from mijax.core._metric import AbstractMetric, wide
from mijax.core._model import AbstractModel, scan_blocks
from mijax.core._rows import AbstractRows, Place, Sequence
from mijax.core._sites import Sites


def finish(
    model: AbstractModel,
    x: Float[Array, "rows embed"],
    edits: Sites[Any],
    rows: AbstractRows,
) -> tuple[Float[Array, "rows embed"], Float[Array, "rows vocab"]]:
    """Return `resid_final` and the logits at some rows.

    Args:
        model: the model.
        x: the residual stream after the last block, at these rows.
        edits: edits, of which those at `resid_final` and `logits` apply here.
        rows: position, prompt and lane of each row.

    Returns:
        The normalized residual stream, and the logits.
    """
    place = Place(rows)
    final = edit(edits.resid_final, model.normalise(x), place)
    return final, edit(edits.logits, model.unembed(final), place)


def score(
    model: AbstractModel,
    metric: AbstractMetric,
    x: Float[Array, "seq embed"],
    edits: Sites[Any],
    prompt: Int[Array, ""] | None,
) -> Float[Array, ""]:
    """Return the metric of one prompt, with logits only where the metric reads them.

    Args:
        model: the model.
        metric: the metric.
        x: the residual stream after the last block, at every position.
        edits: edits, of which those at `resid_final` and `logits` apply here.
        prompt: index of the prompt in its batch.

    Returns:
        The metric.
    """
    read = metric.reads(prompt, x.shape[0])
    logits = finish(model, x[read], edits, Sequence(read, prompt, prompt))[1]
    ids = metric.ids(prompt)
    return metric.score(wide(logits if ids is None else logits[:, ids]), prompt)


def metric_of(
    model: AbstractModel,
    metric: AbstractMetric,
    tokens: Int[Array, " seq"],
    edits: Sites[Any],
    prompt: Int[Array, ""] | None,
    *,
    length: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Run one prompt and return its metric.

    Args:
        model: the model.
        metric: the metric.
        tokens: token ids of the prompt.
        edits: edits of the run.
        prompt: index of the prompt in its batch.
        length: number of tokens before padding, where the model is not causal.

    Returns:
        The metric, as `metric.of(model(tokens, edits, prompt=prompt)[0], prompt)`.
    """
    position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    rows = Sequence(position, prompt, prompt, length)
    x = edit(edits.embed, model.embed(tokens, rows.position), Place(rows))
    nothing = lambda kept, acts, layer: (kept, None)  # noqa: E731
    x, _ = scan_blocks(model, x, edits.blocks, rows, want=(), select=nothing)
    return score(model, metric, x, edits, prompt)
