"""One layer with smeared keys forms induction heads; one without never does."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mijax import viz
from mijax.core import Interval, interval
from mijax.experiment import Run
from mijax.nn import SmearedKeys, Transformer

from ._phase import icl, steepest
from ._training import History, Training, fit, unchanged

KINDS = {"smeared": "smeared keys", "plain": "plain keys"}


def smear(config: Training, run: Run, *, seed: int, seeds: int) -> None:
    """Trains models of one layer with and without smeared keys, and reports them."""
    run.seed("training", seed)
    found: dict[str, list[History]] = {kind: [] for kind in KINDS}
    shares, began = [], time.perf_counter()
    for kind, histories in found.items():
        for one in range(seed, seed + seeds):
            with run.progress(f"train with {KINDS[kind]}, seed {one}") as progress:
                model, history = fit(
                    config,
                    layers=1,
                    seed=one,
                    folder=run.scratch / f"{kind}-{one}",
                    progress=progress,
                    change=with_smeared_keys if kind == "smeared" else unchanged,
                )
            histories.append(history)
            if kind == "smeared":
                shares.append(share_of_previous(model))
    took = time.perf_counter() - began
    updates = config.steps * seeds * len(KINDS)
    note = "all models after one another; measurements and compilation in it"
    run.number("updates_per_second", updates / took, note=note)
    report(found, np.stack(shares), run)
    draw(found, run)


def with_smeared_keys(model: Transformer) -> Transformer:
    """Mixes every key half and half with the one before, to begin with."""
    attention = getattr(model.blocks, "attention")  # noqa: B009
    alpha = jnp.zeros((model.n_layers, attention.w_k.shape[-2]))
    where = lambda model: model.blocks.attention.keys  # noqa: E731
    return eqx.tree_at(where, model, SmearedKeys(alpha))


def share_of_previous(model: Transformer) -> Float[np.ndarray, " heads"]:
    """How much of a key is that of the token before, in every head."""
    attention = getattr(model.blocks, "attention")  # noqa: B009
    return np.asarray(1 - jax.nn.sigmoid(attention.keys.alpha[0]))


def report(
    found: dict[str, list[History]], shares: Float[np.ndarray, "seed heads"], run: Run
) -> None:
    """Reports means and ranges over seeds; the gates are on the worst seed."""
    matching = {
        kind: [one.prefix_matching[-1].max() for one in histories]
        for kind, histories in found.items()
    }
    learned = {
        kind: [icl(one)[-1] for one in histories] for kind, histories in found.items()
    }
    windows = [steepest(one) for one in found["smeared"]]
    gained = [share for share, _, _ in windows]
    for kind in KINDS:
        run.number(f"prefix_matching_{kind}", over_seeds(matching[kind]))
        run.number(f"icl_{kind}", over_seeds(learned[kind]), note="nats")
    run.number("icl_in_window", over_seeds(gained), note="share, smeared keys")
    # Unlike min and max, numpy's keep a NaN: a seed that failed is the worst.
    run.number("prefix_matching_smeared_worst", np.min(matching["smeared"]))
    run.number("prefix_matching_plain_best", np.max(matching["plain"]))
    gap = np.min(learned["smeared"]) - np.max(learned["plain"])
    run.number("icl_above_plain_worst", gap, note="nats, worst smeared, best plain")
    run.number("icl_in_window_worst", np.min(gained))
    rows = [
        [
            KINDS[kind],
            seed,
            float(matching[kind][seed]),
            float(learned[kind][seed]),
            f"{windows[seed][1]} to {windows[seed][2]}" if kind == "smeared" else "",
            ", ".join(f"{x:.2f}" for x in shares[seed]) if kind == "smeared" else "",
        ]
        for kind in KINDS
        for seed in range(len(found[kind]))
    ]
    columns = (
        *("keys", "model", "prefix matching, best head", "ICL / nats"),
        *("steepest window / steps", "share of the key before, by head"),
    )
    run.table("One layer, every seed", columns, rows)


def over_seeds(values: list[float]) -> Interval:
    """Mean over seeds, between the least and the greatest."""
    return interval(jnp.asarray(values), method="range")


def draw(found: dict[str, list[History]], run: Run) -> None:
    """Draws loss, in-context learning and prefix matching during training."""
    rows = {
        KINDS[kind]: [
            {
                "step": int(histories[0].step[i]),
                "loss on copied tokens / nats": [float(h.copied[i]) for h in histories],
                "ICL score / nats": [float(icl(h)[i]) for h in histories],
                "prefix matching, best head": [
                    float(h.prefix_matching[i].max()) for h in histories
                ],
            }
            for i in range(len(histories[0].step))
        ]
        for kind, histories in found.items()
    }
    seeds = len(found["plain"])
    figure = viz.training_curves(
        rows,
        lanes=[f"seed {i}" for i in range(seeds)],
        title="One layer changes phase when its keys are smeared",
    )
    caption = "ICL score: loss on fresh tokens minus loss on tokens that can be copied."
    run.figure("smeared", figure, caption=caption)
