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
from mijax.core._place import Place
from mijax.core._rows import AbstractRows, Sequence
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
    seen: tuple[Array, ...] = (),
) -> Float[Array, ""]:
    """Return the metric of one prompt, with logits only where the metric reads them.

    Args:
        model: the model.
        metric: the metric.
        x: the residual stream after the last block, at every position.
        edits: edits, of which those at `resid_final` and `logits` apply here.
        prompt: index of the prompt in its batch.
        seen: activations that the metric looks at, at the positions that it reads.

    Returns:
        The metric.
    """
    read = metric.reads(prompt, x.shape[0])
    logits = finish(model, x[read], edits, Sequence(read, prompt, prompt))[1]
    ids = metric.ids(prompt)
    logits = wide(logits if ids is None else logits[:, ids])
    return metric.score_seen(logits, metric.picked(seen, prompt), prompt)


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
    looks, read = metric.looks(), metric.reads(prompt, tokens.shape[0])

    def select(kept: Any, acts: Any, layer: Array) -> Any:
        return kept, tuple(getattr(acts, look.site.name)[read] for look in looks)

    want = {look.site.name for look in looks}
    x, (_, out) = scan_blocks(model, x, edits.blocks, rows, want=want, select=select)
    seen = tuple(a[k.site.layer] for a, k in zip(out, looks, strict=True))
    return score(model, metric, x, edits, prompt, seen)
