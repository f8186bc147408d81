"""Patchscopes: a hidden state is explained by a prompt that it is put into."""

from typing import Any

import jax
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
    r"""Put every layer's state of one prompt into every layer of another.

    $(S, i, l) \to (T, i^*, l^*)$: the output of block $l$ at position $i$ of the source
    replaces that of block $l^*$ at position $i^*$ of the target, whose next token is
    measured (Ghandeharioun et al. 2024, arXiv:2401.06102). Both layers are axes of one
    sweep. The target may be few-shot identity, `cat -> cat\n1135 -> 1135\nhello ->
    hello\n?`, patched at its last token. Controls are the unpatched target (`base`) and
    a source about something else.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        source: token ids of a batch, `mijax.data.Prompts`, or a list of texts.
        target: one target prompt for all, or one for each source.
        answer: the token that the target should give, one or one per prompt.
        source_position: position that is read, one or one per prompt; by default the
            last token.
        target_position: position that is replaced, likewise; not 0, which attends to
            itself alone.
        source_model: model of the source prompts; the same by default.
        mapping: map of source states `[..., embed]` into the target model's stream,
            such as an `AffineMap` fitted on pairs of states.
        progress: as of `sweep`.
        chunks: as of `sweep`.

    Returns:
        `"accuracy"` (the answer is the most likely token), `"surprisal"` in nats and
        `"probability"`, each `[prompt, source_layer, layer]`.

    Raises:
        PositionError: position 0 of the target, or a position beyond the prompts.
        ShapeError: numbers of prompts or widths that differ.

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
        raise ShapeError("The source is a batch: give [tokens] for one prompt.")
    goal_ids = np.asarray(as_tokens(goal))
    if goal_ids.ndim == 2 and len(goal_ids) != len(ids):
        raise ShapeError(
            f"{len(ids)} sources and {len(goal_ids)} targets: give one target, or one "
            "for each."
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
            f"target_position is from 1 to the last token of the target, got {write}."
        )
    acts = capture(reader, given, "resid_post")
    rows = jnp.take_along_axis(acts, jnp.asarray(read)[:, None, None, None], axis=2)
    rows = rows if mapping is None else mapping(rows)
    if goal_ids.ndim == 1:
        goal_ids = np.broadcast_to(goal_ids, (len(ids), len(goal_ids)))
    last = jnp.asarray(ends - 1)
    answers = jnp.broadcast_to(jnp.asarray(answer, jnp.int32), (len(ids),))
    metric = {
        "accuracy": accuracy(answers, position=last),
        "surprisal": cross_entropy(answers[:, None], position=last[:, None]),
        "probability": probability(answers, position=last),
    }
    return sweep(
        model,
        jax.device_put(goal_ids.astype(np.int32)),
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
        raise PositionError(f"{name} is within each prompt, from 0, got {found}.")
    return found
