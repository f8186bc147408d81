"""Where the information travels: clean activations patched into corrupt prompts.

In `... A B ... A` the model predicts B. Two corruptions change one token of the first
copy: its B, which is what is copied, or its A, by which the place is found.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax import viz
from mijax.core import (
    AbstractMetric,
    Interval,
    Patch,
    interval,
    logit_difference,
    sweep,
)
from mijax.experiment import Progress, Run
from mijax.nn import Transformer

from ._heads import at
from ._repeats import VOCAB, Repeats

CORRUPTIONS: tuple[str, ...] = ("first B replaced", "first A replaced")
LAYERS = ("before layer 0", "before layer 1")


class Pairs(NamedTuple):
    """Every prompt twice, once for each corruption.

    Attributes:
        clean: tokens of the clean prompts.
        corrupt: tokens of the corrupt ones, one token changed.
        metric: logit of B minus logit of the token that takes a place.
        positions: named positions.
    """

    clean: Int[Array, "pair seq"]
    corrupt: Int[Array, "pair seq"]
    metric: AbstractMetric
    positions: dict[str, Int[np.ndarray, " pair"]]


def make_pairs(prompts: Repeats) -> Pairs:
    """Replaces the first B, then the first A, by a token that the prompt does not have.

    A is the first token of the segment, so only it announces the second copy.

    Args:
        prompts: prompts of distinct tokens.

    Returns:
        The pairs, in the order of `CORRUPTIONS`.
    """
    tokens = np.tile(np.asarray(prompts.tokens), (2, 1))
    first, second = (np.tile(p, 2) for p in (prompts.first, prompts.second))
    rows = np.arange(len(tokens))
    unused = np.array([np.setdiff1d(np.arange(1, VOCAB), row)[0] for row in tokens])
    corrupt = tokens.copy()
    corrupt[rows, first + (rows < len(rows) // 2)] = unused
    positions = {
        "first A": first,
        "first B": first + 1,
        "after B": first + 2,
        "second A": second,
    }
    metric = logit_difference(tokens[rows, first + 1], unused, position=second)
    return Pairs(jnp.asarray(tokens), jnp.asarray(corrupt), metric, positions)


def patch_copies(
    model: Transformer, prompts: Repeats, acts: Mapping[str, Array], *, run: Run
) -> None:
    """Sweeps denoising patches over layers and positions or heads.

    Args:
        model: a model of two layers.
        prompts: the clean prompts.
        acts: their activations by site.
        run: what to report to.
    """
    pairs = make_pairs(prompts)
    with run.progress("patch resid_pre of layer x position") as progress:
        over = {"layer": None, "position": pairs.positions}
        stream = denoise(model, pairs, acts, "resid_pre", over=over, progress=progress)
    with run.progress("patch z of layer x head") as progress:
        over = {"layer": None, "head": None}
        heads = denoise(model, pairs, acts, "z", over=over, progress=progress)
    names, rows = list(pairs.positions), []
    for which, corruption in enumerate(CORRUPTIONS):
        for place, name in enumerate(names):
            cells = [at(stream, (which, layer, place)) for layer in (0, 1)]
            rows.append([corruption, name, *cells])
            if place < 2:
                token, where = corruption[6].lower(), name[-1].lower()
                key = f"{token}_restored_before_layer1_at_{where}"
                run.number(key, cells[1], note=f"{corruption}, patched at {name}")
    columns = ("corruption", "patched at", *LAYERS)
    run.table("Share of the logit difference that a patch restores", columns, rows)
    draw(stream, heads, names=names, run=run)


def denoise(
    model: Transformer,
    pairs: Pairs,
    acts: Mapping[str, Array],
    site: str,
    *,
    over: Mapping[str, object],
    progress: Progress,
) -> Interval:
    """Patches every place of the clean run into the corrupt one.

    Returns:
        What a patch restores, `[corruption, layer, place]`: the change that it makes,
        in units of the mean difference between clean and corrupt.
    """
    source = jnp.asarray(np.tile(acts[site], (2,) + (1,) * (acts[site].ndim - 1)))
    swept = sweep(
        model,
        pairs.corrupt,
        Patch(source).at(site),
        over=over,
        metric=pairs.metric,
        progress=progress,
    )
    logits = jnp.asarray(np.tile(acts["logits"], (2, 1, 1)))
    split = lambda x: np.asarray(x).reshape(2, -1, *x.shape[1:])  # noqa: E731
    clean, corrupt = split(pairs.metric(logits)), split(swept.base)
    scale = (clean - corrupt).mean(1)[:, None, None, None]
    change = (split(swept.values) - corrupt[..., None, None]) / scale
    return interval(jnp.asarray(change.swapaxes(0, 1)))


def draw(stream: Interval, heads: Interval, *, names: list[str], run: Run) -> None:
    """Draws both sweeps."""
    panels = lambda found: dict(zip(CORRUPTIONS, np.asarray(found.mean), strict=True))  # noqa: E731
    figure = viz.heatmaps(
        panels(stream),
        x_labels=names,
        y_labels=LAYERS,
        title="Clean residual stream patched into the corrupt prompt",
        x="Position",
        label="Fraction recovered",
    )
    caption = (
        "What is copied waits at B. The place is found by A, and layer 0 moves that "
        "from A to B: the previous-token heads."
    )
    run.figure("patching", figure, caption=caption)
    figure = viz.heatmaps(
        panels(heads),
        title="One head's clean output patched into the corrupt prompt",
        x="Head",
        y="Layer",
        label="Fraction recovered",
    )
    run.figure("patching-heads", figure, caption="Every position of one head's z.")
