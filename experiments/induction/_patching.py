"""Where the information travels: clean activations patched into corrupt prompts.

In `... A B ... A` the model predicts B. Two corruptions change one token of the first
copy: its B, which is what is copied, or its A, by which the place is found.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax import core, viz
from mijax.core import (
    AbstractMetric,
    Patch,
    Site,
    interval,
    logit_difference,
    recovered,
)
from mijax.experiment import Run
from mijax.nn import Transformer

from ._heads import at
from ._repeats import VOCAB, Repeats

SITES = ("resid_pre", "resid_post", "z")
LAYERS = ("before layer 0", "before layer 1", "after layer 1")
Grid = Float[np.ndarray, "row column"]


class Pair(NamedTuple):
    """Clean and corrupt prompts, and what to measure on both.

    Attributes:
        clean: tokens of the clean prompts.
        corrupt: tokens of the corrupt ones, one token changed.
        metric: logit of B minus logit of the token that takes its place.
        positions: named positions, `[prompt]` each.
    """

    clean: Int[Array, "prompt seq"]
    corrupt: Int[Array, "prompt seq"]
    metric: AbstractMetric
    positions: dict[str, Int[np.ndarray, " prompt"]]


def make_pair(prompts: Repeats, *, replace: str) -> Pair:
    """Corrupts the first A or B by a token that the prompt does not have.

    A is the first token of the segment, so only it announces the second copy.

    Args:
        prompts: prompts of distinct tokens.
        replace: `"A"` or `"B"`.

    Returns:
        The pair.
    """
    tokens = np.asarray(prompts.tokens)
    first, second = np.asarray(prompts.first), np.asarray(prompts.second)
    rows = np.arange(len(tokens))
    unused = np.array([np.setdiff1d(np.arange(1, VOCAB), row)[0] for row in tokens])
    corrupt = tokens.copy()
    corrupt[rows, first + (replace == "B")] = unused
    answer = tokens[rows, first + 1]
    return Pair(
        jnp.asarray(tokens),
        jnp.asarray(corrupt),
        logit_difference(answer, unused, position=second),
        {
            "first A": first,
            "first B": first + 1,
            "after B": first + 2,
            "second A": second,
        },
    )


def patch_copies(model: Transformer, prompts: Repeats, run: Run) -> None:
    """Sweeps denoising patches over layers, positions and heads, for both corruptions.

    The model has two layers.
    """
    streams, heads, rows = {}, {}, []
    for replace in ("B", "A"):
        pair = make_pair(prompts, replace=replace)
        found = denoise(model, pair, replace, run)
        title = f"first {replace} replaced"
        names = list(pair.positions)
        grid = jnp.concatenate([found["resid_pre"], found["resid_post"]], axis=1)
        stream = interval(grid)
        streams[title] = np.asarray(stream.mean)
        heads[title] = np.asarray(found["z"].mean(0))
        rows += [
            [title, name, *(at(stream, (layer, place)) for layer in range(len(LAYERS)))]
            for place, name in enumerate(names)
        ]
        for layer in (0, 1):
            for name in ("first A", "first B"):
                where = name.replace(" ", "_").lower()
                key = f"replaced_{replace.lower()}_layer{layer}_{where}"
                run.number(key, at(stream, (layer, names.index(name))))
    columns = ("corruption", "patched at", *LAYERS)
    run.table("Share of the logit difference that a patch restores", columns, rows)
    draw(streams, heads, names=names, run=run)


def draw(
    streams: Mapping[str, Grid],
    heads: Mapping[str, Grid],
    *,
    names: Sequence[str],
    run: Run,
) -> None:
    """Draws both sweeps."""
    figure = viz.heatmaps(
        streams,
        x_labels=names,
        y_labels=LAYERS,
        title="Clean residual stream patched into the corrupt prompt",
        x="position",
        label="recovered logit difference",
    )
    caption = (
        "What is copied waits at B. The place is found by A, and layer 0 moves that "
        "from A to B: the previous-token heads."
    )
    run.figure("patching", figure, caption=caption)
    figure = viz.heatmaps(
        heads,
        title="One head's clean output patched into the corrupt prompt",
        x="head",
        y="layer",
        label="recovered logit difference",
    )
    run.figure("patching-heads", figure, caption="Every position of one head's z.")


def denoise(
    model: Transformer, pair: Pair, replaced: str, run: Run
) -> dict[str, Float[Array, "prompt layer place"]]:
    """Patches every place of the clean run into the corrupt one.

    Returns:
        The share of the clean metric that a patch restores, by site. Every prompt is
        measured by the mean difference between clean and corrupt.
    """
    acts = core.capture(model, pair.clean, {name: Site(name) for name in SITES})
    clean = pair.metric(core.run(model, pair.clean)).mean()
    last = model.n_layers - 1
    overs = {
        "resid_pre": {"layer": None, "position": pair.positions},
        "resid_post": {"layer": [last], "position": pair.positions},
        "z": {"layer": None, "head": None},
    }
    grids = {}
    for site, over in overs.items():
        with run.progress(f"patch {site}, first {replaced} replaced") as progress:
            swept = core.sweep(
                model,
                pair.corrupt,
                Patch(acts[site]).at(site),
                over=over,
                metric=pair.metric,
                progress=progress,
            )
        grids[site] = recovered(swept.values, clean, swept.base.mean())
    return grids
