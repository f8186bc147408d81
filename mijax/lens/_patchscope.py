"""Patchscopes: patch a hidden state into a prompt that explains it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mijax._errors import PositionError, ShapeError
from mijax._progress import Progress
from mijax.core import (
    Chunks,
    Patch,
    Sweep,
    accuracy,
    capture,
    cross_entropy,
    probability,
    sweep,
)
from mijax.core.internal import ModelLike, as_tokens, checked, opened, padded_lengths


@checked
def patchscope(  # noqa: PLR0913 - every one of them is a choice of the user
    model: ModelLike,
    source: Any,
    target: Any,
    *,
    answer: Any,
    source_position: Any = None,
    target_position: Any = None,
    source_model: ModelLike | None = None,
    mapping: Any = None,
    progress: Progress = None,
    chunks: Chunks | None = None,
) -> dict[str, Sweep]:
    r"""Patch the state at every layer of one prompt into every layer of another.

    $(S, i, l) \to (T, i^*, l^*)$: the output of block $l$ at position $i$ in the source
    replaces the output of block $l^*$ at position $i^*$ in the target, and the target's
    next token is measured (Ghandeharioun et al. 2024, arXiv:2401.06102). One sweep
    covers both layers. The target may be a few-shot identity prompt, `cat -> cat\n1135
    -> 1135\nhello -> hello\n?`, patched at its last token. Controls are the unpatched
    target (`base`) and an unrelated source.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        source: token ids of a batch, `mijax.data.Prompts`, or a list of texts.
        target: one target prompt for all sources, or one for each.
        answer: the expected next token of the target, one or one per prompt.
        source_position: position to read, one or one per prompt; by default the last
            token.
        target_position: position to replace, one or one per prompt; by default the last
            token. It cannot be 0, which attends only to itself.
        source_model: model for the source prompts; the same model by default.
        mapping: map from source states `[..., embed]` to the target model's stream,
            such as an `AffineMap` fitted on pairs of states.
        progress: as in `sweep`.
        chunks: as in `sweep`.

    Returns:
        `"accuracy"` (the answer is the most likely token), `"surprisal"` in nats and
        `"probability"`, each `[prompt, source_layer, layer]`.

    Raises:
        PositionError: position 0 in the target, or a position beyond the prompts.
        ShapeError: the numbers of prompts or the widths differ.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> grid = patchscope(model, [[5, 6, 7]], [8, 9, 10, 11], answer=7)
        >>> grid["accuracy"].values.shape  # prompt, source layer, layer
        (1, 3, 3)
    """
    model, goal = opened(model, target)
    reader, given = opened(model if source_model is None else source_model, source)
    ids = np.asarray(as_tokens(given))
    if ids.ndim == 1:
        raise ShapeError("The source must be a batch: give [tokens] for one prompt.")
    goal_ids = np.asarray(as_tokens(goal))
    if goal_ids.ndim == 2 and len(goal_ids) != len(ids):
        raise ShapeError(
            f"Got {len(ids)} sources and {len(goal_ids)} targets: give one target, or "
            "one for each source."
        )
    read = _place(source_position, given, ids.shape, "source_position")
    lengths = padded_lengths(goal, goal_ids.shape[-1])
    ends = np.full(len(ids), goal_ids.shape[-1])
    ends = ends if lengths is None else np.broadcast_to(np.asarray(lengths), len(ids))
    write = ends - 1
    if target_position is not None:
        write = np.broadcast_to(np.asarray(target_position), len(ids))
    if (write < 1).any() or (write >= ends).any():
        raise PositionError(
            f"target_position must be 1 to the target's last token, got {write}."
        )
    acts = capture(reader, given, "resid_post")
    rows = jnp.take_along_axis(acts, jnp.asarray(read)[:, None, None, None], axis=2)
    rows = rows if mapping is None else mapping(rows)
    if goal_ids.ndim == 1:
        goal = np.broadcast_to(goal_ids, (len(ids), len(goal_ids))).astype(np.int32)
    last = jnp.asarray(ends - 1)
    answers = jnp.broadcast_to(jnp.asarray(answer, jnp.int32), (len(ids),))
    metric = {
        "accuracy": accuracy(answers, position=last),
        "surprisal": cross_entropy(answers[:, None], position=last[:, None]),
        "probability": probability(answers, position=last),
    }
    return sweep(
        model,
        # With the lengths of prompts: a model may read both ways.
        goal,
        Patch(rows).from_place(position=0).at("resid_post", position=write),
        over=("source_layer", "layer"),
        metric=metric,
        progress=progress,
        chunks=chunks,
    )


def _place(
    position: Any, given: Any, shape: tuple[int, ...], name: str
) -> Int[np.ndarray, " prompt"]:
    """Return one position per prompt; the last token by default."""
    lengths = padded_lengths(given, shape[1])
    ends = np.full(shape[0], shape[1]) if lengths is None else np.asarray(lengths)
    if position is None:
        return ends - 1
    found = np.broadcast_to(np.asarray(position), shape[0])
    if found.dtype.kind not in "iu" or (found < 0).any() or (found >= ends).any():
        raise PositionError(f"{name} must be inside each prompt, got {found}.")
    return found
