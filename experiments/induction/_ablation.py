"""Which heads the prediction of repeated tokens needs: every head ablated in turn."""

from typing import Any

import numpy as np

from mijax import viz
from mijax.core import Mean, Site, Zero, capture, cross_entropy, interval, sweep
from mijax.experiment import Run
from mijax.nn import Transformer

from ._heads import Head, Roles, at
from ._repeats import Repeats


def ablate_heads(
    model: Transformer, prompts: Repeats, *, roles: Roles, run: Run
) -> None:
    """Sweeps zero and mean ablation over heads and reports the change of the loss.

    The loss is that on the second copy but for its first token, which nothing tells.
    """
    metric = cross_entropy(prompts.labels, position=prompts.queries)
    acts = capture(model, prompts.tokens, Site("z"))
    kinds: dict[str, Any] = {"zero": Zero(), "mean": Mean(acts)}
    found = {}
    for name, edit in kinds.items():
        with run.progress(f"{name} ablation of every head") as progress:
            swept = sweep(
                model,
                prompts.tokens,
                edit.at("z"),
                over=("layer", "head"),
                metric=metric,
                progress=progress,
            )
        found[name] = interval(swept.values - swept.base[:, None, None])
    rows = [
        [str(Head(*cell)), *(at(change, cell) for change in found.values())]
        for cell in np.ndindex(*found["zero"].mean.shape)
    ]
    columns = ("head", "zero ablation / nats", "mean ablation / nats")
    run.table("Loss on the second copy without a head", columns, rows)
    for role, heads in roles._asdict().items():
        change = at(found["mean"], heads[0])
        run.number(f"loss_without_{role}", change, note=f"nats, {heads[0]}, mean")
    figure = viz.heatmaps(
        {f"{name} ablation": np.asarray(c.mean) for name, c in found.items()},
        title="Loss on the second copy when one head is ablated",
        x="head",
        y="layer",
        label="change of the loss / nats",
    )
    run.figure("ablation", figure, caption="Mean change over prompts.")
