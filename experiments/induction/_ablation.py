"""Which heads the prediction of repeated tokens needs: every head ablated in turn."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax import viz
from mijax.core import Patch, cross_entropy, interval, sweep
from mijax.experiment import Run
from mijax.nn import Transformer

from ._heads import Head, Roles, at
from ._repeats import Repeats


def ablate_heads(
    model: Transformer,
    prompts: Repeats,
    acts: Mapping[str, Array],
    *,
    roles: Roles,
    run: Run,
) -> None:
    """Sweeps zero and mean ablation over heads and reports the change of the loss.

    The loss is that on the second copy but for its first token, which nothing tells.
    """
    metric = cross_entropy(prompts.labels, position=prompts.queries)
    z = np.asarray(acts["z"])
    # As patches of such sources, both ablations share one compiled program.
    kinds = {
        "zero": 0 * z,
        "mean": np.broadcast_to(z.mean((0, 2), keepdims=True), z.shape),
    }
    found = {}
    for name, source in kinds.items():
        with run.progress(f"{name} ablation of every head") as progress:
            swept = sweep(
                model,
                prompts.tokens,
                Patch(jnp.asarray(source)).at("z"),
                over=("layer", "head"),
                metric=metric,
                progress=progress,
            )
        change = np.asarray(swept.values) - np.asarray(swept.base)[:, None, None]
        found[name] = interval(jnp.asarray(change))
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
        x="Head",
        y="Layer",
        label="Change in loss (nats)",
    )
    run.figure("ablation", figure, caption="Mean change over prompts.")
