"""Activations of the prompt patched into the run of its counterpart."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import mijax
import mijax.experiment
from mijax import viz
from mijax.nn import Transformer

from ._tasks import Problem, slots

Shares = Float[np.ndarray, "layer place"]


class Grid(NamedTuple):
    """Share of the logit difference that a patch brings back, with its interval."""

    share: Shares
    low: Shares
    high: Shares
    labels: tuple[str, ...]


def patched(
    model: Transformer,
    problem: Problem,
    site: str,
    *,
    memory: int,
    run: mijax.experiment.Run,
) -> Grid:
    """Patches a site everywhere: at named positions, or every head of `z`."""
    pairs = problem.train
    acts = mijax.capture(model, pairs.clean.tokens, mijax.Site(site))
    over: Any = ("layer", "head")
    if site != "z":
        over = {"layer": None, "position": slots(problem, pairs.clean)}
    scratch = str(run.scratch / f"{problem.name}-{site}.npz")
    with run.progress(f"{problem.label}: patch {site}") as progress:
        found = mijax.sweep(
            *(model, pairs.corrupt.tokens, mijax.Patch(acts).at(site)),
            over=over,
            metric=pairs.logit_difference(),
            progress=progress,
            chunks=mijax.Chunks(memory=memory, resume=scratch),
        )
    clean = float(pairs.logit_difference()(mijax.run(model, pairs.clean.tokens)).mean())
    corrupt = float(found.base.mean())
    within = found.interval()
    share, low, high = (
        (np.asarray(part) - corrupt) / (clean - corrupt)
        for part in (within.mean, within.low, within.high)
    )
    return Grid(share, low, high, tuple(map(str, found.axes[1].labels)))


def report(
    found: dict[str, tuple[Grid, Grid]], top: int, run: mijax.experiment.Run
) -> None:
    """Draws both grids of every behaviour, and lists the strongest heads."""
    one = next(iter(found.values()))[0]
    run.figure(
        "positions",
        viz.heatmaps(
            {label: grid.share for label, (grid, _) in found.items()},
            x_labels=one.labels,
            title="Residual stream patched: logit difference recovered",
            x="Position",
            y="Layer",
            label="Fraction recovered (0 corrupt, 1 clean)",
        ),
        caption="One activation of `resid_pre` of the prompt in the run of its "
        "counterpart. `changed` is the first token in which they differ (in induction, "
        "where all of the first run differs, the answer), `before` and `after` are "
        "beside it.",
    )
    run.figure(
        "heads",
        viz.heatmaps(
            {label: grid.share for label, (_, grid) in found.items()},
            title="Heads patched (z, all positions): logit difference recovered",
            x="Head",
            y="Layer",
            label="Fraction recovered (0 corrupt, 1 clean)",
        ),
        caption="The output of one head of the prompt in the run of its counterpart.",
    )
    rows = []
    for label, (places, heads) in found.items():
        key = label.lower().replace("-", "_")
        run.number(
            f"{key}_moved_by", moved_by(places), note="first layer from there on"
        )
        for layer, head in strongest(heads.share, top):
            at = (layer, head)
            ends = f"{heads.low[at]:+.2f} to {heads.high[at]:+.2f}"
            rows.append([label, f"{layer}.{head}", f"{heads.share[at]:+.2f}", ends])
        best = [f"{a}.{b}" for a, b in strongest(heads.share, top)]
        run.number(f"{key}_top_heads", best, note="by |recovered|, z patched")
    columns = ["behaviour", "head", "recovered", "95 % interval"]
    run.table("Heads that bring the behaviour back", columns, rows)


def moved_by(grid: Grid) -> int:
    """Returns the first layer from which on the last position carries more."""
    last = grid.share[:, grid.labels.index("last")]
    changed = grid.share[:, grid.labels.index("changed")]
    less = np.flatnonzero(last <= changed)
    return int(less[-1]) + 1 if len(less) else 0


def strongest(share: Shares, top: int) -> list[tuple[int, int]]:
    """Returns the cells with the largest effect of either sign."""
    order = np.argsort(-np.abs(share).ravel(), kind="stable")[:top]
    return [(int(i) // share.shape[1], int(i) % share.shape[1]) for i in order]
