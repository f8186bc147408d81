"""SmolLM2: is it the position or the token of the repeated name that travels?"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

import mijax
import mijax.experiment
from mijax import core, viz
from mijax.causal import (
    DAS,
    Counterfactuals,
    Drawn,
    Prefix,
    Search,
    Subspaces,
    Tail,
    agreement,
    align,
    blocks,
    prefix,
    stated,
)
from mijax.core import Interval, Site, interval
from mijax.nn import Transformer

from ._names import KINDS, VARIABLES, Chosen, Questions, questions

SHORT = {"position": "pos", "token": "token"}
PLACES = ("repeated name", "last token")
# The kinds of sources about which the programs disagree.
TELLING = 2


class Names(mijax.experiment.Config):
    """What is searched in SmolLM2."""

    model: str = "smollm2-135m-instruct"
    "Name or folder of the model."
    train: int = 40
    "Prompts whose interventions rotations are fitted to."
    test: int = 32
    "Prompts to measure with."
    every: int = 3
    "Whole vectors are swapped after every so many layers, the last one included."
    layers: tuple[int, ...] = (16, 19, 22)
    "Layers after which subspaces are searched, at the last token."
    size: int = 16
    "Dimensions of a subspace."
    rotations: int = 3
    "Rotations of each variable at each layer."
    steps: int = 50
    "Updates of the rotations."
    batch: int = 24
    "Interventions of an update."
    learning_rate: float = 3e-2
    "Of the rotations, at the start."


class Searched(NamedTuple):
    """Accuracies after one layer, at the last token; prompts with both their sources.

    Attributes:
        learned: of rotations, on the prompts to measure with.
        trained: of rotations, on the prompts that they were fitted to.
        random: of random subspaces of the same size.
        whole: of whole vectors.
        seconds: that the fit took.
    """

    learned: Float[np.ndarray, "variable rotation prompt"]
    trained: Float[np.ndarray, "variable rotation prompt"]
    random: Float[np.ndarray, "variable rotation prompt"]
    whole: Float[np.ndarray, "variable 1 prompt"]
    seconds: float


def ask_names(config: Names, run: mijax.experiment.Run, *, seed: int) -> None:
    """Swaps whole vectors, then subspaces, and reports both."""
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("data", seed)
    asked = [
        questions(loaded.tokenizer, n, seed=10 * seed + kind)
        for kind, n in ((1, config.test), (2, config.train))
    ]
    every = range(config.every - 1, loaded.model.n_layers, config.every)
    layers = sorted({*every, loaded.model.n_layers - 1})
    whole, right = whole_vectors(loaded.model, asked[0], layers, run)
    report_whole(whole, layers, run)
    with run.progress("ends of prompts"):
        kept = ends(loaded.model, asked)
    found, took = {}, 0.0
    for layer in config.layers:
        with run.progress(f"rotations after layer {layer}"):
            tail = Tail.of(loaded.model, kept, layer)
            found[layer] = searched(tail, asked, config, seed=seed)
            took += found[layer].seconds
    updates = config.steps * len(config.layers) / took
    note = f"of {2 * config.rotations} rotations at once; compilation in it"
    run.number("updates_per_second", updates, note=note)
    report_subspaces(found, right, run)


def whole_vectors(
    model: Transformer,
    asked: Questions,
    layers: Sequence[int],
    run: mijax.experiment.Run,
) -> tuple[Float[np.ndarray, "prompt row layer place"], np.ndarray]:
    """Swaps whole vectors of the residual stream after layers.

    Returns:
        Accuracy of the programs, and of swaps about which they agree, on prompts that
        the model completes correctly; and which those are.
    """
    n = len(asked.base)
    again = lambda x: jnp.concatenate([x] * len(KINDS))  # noqa: E731
    sources = asked.sources.reshape(-1, asked.base.shape[1])
    with run.progress("run the sources"):
        acts = core.capture(model, sources, Site("resid_post"))
    with run.progress("swap whole vectors") as progress:
        swept = core.sweep(
            model,
            again(asked.base),
            core.Patch(acts).at("resid_post"),
            over={
                "layer": list(layers),
                "position": dict(
                    zip(PLACES, map(again, (asked.second, asked.last)), strict=True)
                ),
            },
            metric=Chosen(again(asked.names), again(asked.last)),
            progress=progress,
        )
    right = np.asarray(swept.base)[:n] == 0
    run.number(
        "accuracy",
        interval(jnp.asarray(right, jnp.float32)),
        note="base prompts whose indirect object is the likeliest of the names",
    )
    said = np.asarray(swept.values).reshape(len(KINDS), n, len(layers), len(PLACES))
    agrees = said[None] == asked.labels[..., None, None]
    rows = [*agrees[:, :TELLING].mean(1), agrees[0, TELLING]]
    return np.stack(rows, 1)[right], right


def ends(model: Transformer, asked: Sequence[Questions]) -> Prefix:
    """Runs all prompts, those of each part with its bases first, then its sources."""
    widest = max(one.base.shape[1] for one in asked)
    tokens, last = [], []
    for one in asked:
        parts = [one.base, *one.sources[:TELLING]]
        wide = ((0, 0), (0, widest - one.base.shape[1]))
        tokens += [jnp.pad(part, wide) for part in parts]
        last += [one.last] * len(parts)
    return prefix(model, jnp.concatenate(tokens), jnp.concatenate(last))


def table(
    asked: Sequence[Questions], part: int
) -> tuple[
    Int[Array, "pair input"], Int[Array, "pair input"], Int[Array, "variable pair"]
]:
    """Inputs of `Tail` for bases and sources of one part, and labels."""
    start = (1 + TELLING) * sum(len(one.base) for one in asked[:part])
    one = asked[part]
    n = len(one.base)
    index = start + jnp.arange(n)
    inputs = [
        jnp.concatenate([(index + shift * n)[:, None], one.names], 1)
        for shift in range(1 + TELLING)
    ]
    base = jnp.concatenate([inputs[0]] * TELLING)
    labels = one.labels[:, :TELLING].reshape(len(VARIABLES), -1)
    return base, jnp.concatenate(inputs[1:]), jnp.asarray(labels, jnp.int32)


def interventions(
    asked: Sequence[Questions], part: int, pairs: Array
) -> tuple[Counterfactuals, ...]:
    """Interventions on each variable, for one pair or many."""
    base, source, labels = table(asked, part)
    swapped = jnp.ones((*jnp.shape(pairs), 1), bool)
    x, y = base[pairs], source[pairs][..., None, :]
    return tuple(Counterfactuals(x, y, swapped, label[pairs]) for label in labels)


def searched(
    tail: Tail, asked: Sequence[Questions], config: Names, *, seed: int
) -> Searched:
    """Fits rotations after one layer and measures them."""
    count = TELLING * len(asked[1].base)

    def one(key: PRNGKeyArray) -> tuple[Counterfactuals, ...]:
        return interventions(asked, 1, jax.random.randint(key, (), 0, count))

    method = DAS((config.size,), rows=config.size)
    tasks = [t for t in range(len(VARIABLES)) for _ in range(config.rotations)]
    began = time.perf_counter()
    found = align(
        tail,
        [Search(method, Site("embed"), task) for task in tasks],
        Drawn(one, batch=config.batch, seed=seed),
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=seed,
    )
    took = time.perf_counter() - began
    width = tail.stream.shape[1]
    keys = jax.random.split(jax.random.key(seed), len(tasks))
    drawn = jax.vmap(lambda key: method.found(method.start(key, width)))(keys)
    random = stated(drawn, Site("embed"), tasks)
    every: Subspaces = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, len(VARIABLES), 0), blocks(width, (width,))
    )
    whole = stated(every, Site("embed"), list(range(len(VARIABLES))))

    def measured(alignment: object, part: int) -> np.ndarray:
        pairs = jnp.arange(TELLING * len(asked[part].base))
        data = interventions(asked, part, pairs)
        right = np.asarray(agreement(tail, alignment, data))  # pyright: ignore[reportArgumentType]
        return right.reshape(len(VARIABLES), -1, TELLING, len(asked[part].base)).mean(2)

    return Searched(
        *(measured(found, part) for part in (0, 1)),
        *(measured(one, 0) for one in (random, whole)),
        seconds=took,
    )


def report_whole(
    whole: Float[np.ndarray, "prompt row layer place"],
    layers: Sequence[int],
    run: mijax.experiment.Run,
) -> None:
    """Reports swaps of whole vectors."""
    found = interval(jnp.asarray(whole, jnp.float32))
    mean = np.asarray(found.mean)
    last = PLACES.index("last token")
    for row, name in enumerate(VARIABLES):
        best = int(mean[row, :, last].argmax())
        note = f"last token, after layer {layers[best]}, best of {len(layers)}"
        run.number(f"{name}_whole_best", _at(found, row, best, last), note=note)
        end = _at(found, row, len(layers) - 1, last)
        run.number(f"{name}_whole_end", end, note="last token, after the last layer")
        first = _at(found, row, 0, PLACES.index("repeated name"))
        note = f"repeated name, after layer {layers[0]}"
        run.number(f"{name}_whole_start", first, note=note)
    names = [*VARIABLES, "both agree"]
    columns = ["after layer", *(f"{n}, {place}" for place in PLACES for n in names)]
    rows = [
        [layer]
        + [_at(found, r, i, at) for at in range(len(PLACES)) for r in range(len(names))]
        for i, layer in enumerate(layers)
    ]
    run.table("Accuracy when the whole vector is swapped", columns, rows)
    figure = viz.heatmaps(
        {name: mean[row].T for row, name in enumerate(names)},
        x_labels=layers,
        y_labels=PLACES,
        title="Interchange-intervention accuracy, whole vector",
        x="After layer",
        centre=None,
        label="Accuracy",
    )
    caption = (
        "Programs: 0.5 without any effect, 0 where the source's answer is copied. "
        "Where both agree that the answer changes: 0 without any effect."
    )
    run.figure("whole-vector", figure, caption=caption)


def report_subspaces(
    found: dict[int, Searched], right: np.ndarray, run: mijax.experiment.Run
) -> None:
    """Reports subspaces, on prompts that the model completes correctly."""
    rows, labels, cells = [], [], []
    over_prompts = lambda x: interval(jnp.asarray(x.mean(0)[right], jnp.float32))  # noqa: E731
    for variable, name in enumerate(VARIABLES):
        trained = {layer: of.trained[variable].mean() for layer, of in found.items()}
        best = max(trained, key=lambda layer: trained[layer])
        for layer, of in found.items():
            learned, random, whole = (
                over_prompts(x[variable]) for x in (of.learned, of.random, of.whole)
            )
            each = of.learned[variable][:, right].mean(1)
            spread = f"{each.min():.3f} to {each.max():.3f}"
            row = [name, layer, learned, spread, float(trained[layer]), random, whole]
            rows.append(row)
            for kind, cell in (("learned", learned), ("random", random)):
                labels.append(f"{SHORT[name]} {layer} {kind}")
                cells.append([float(x) for x in (cell.mean, cell.low, cell.high)])
            labels.append(f"{SHORT[name]} {layer} whole")
            cells.append([float(x) for x in (whole.mean, whole.low, whole.high)])
            if layer == best:
                note = f"after layer {layer}, best on the prompts of the fit"
                run.number(f"{name}_subspace", learned, note=note)
                run.number(f"{name}_subspace_worst", float(each.min()), note="rotation")
                run.number(f"{name}_random", random, note="the same place")
                run.number(f"{name}_whole", whole, note="the same place")
    columns = (
        *("variable", "after layer", "subspace, held out", "rotations"),
        *("the prompts of the fit", "random subspace", "whole vector"),
    )
    run.table("Accuracy of subspaces at the last token", columns, rows)
    mean, low, high = np.array(cells).T
    figure = viz.bars(
        mean,
        labels=labels,
        low=low,
        high=high,
        title="Subspaces at the last token",
        y="Accuracy",
    )
    caption = "Held-out prompts, mean of rotations, 95 % intervals over prompts."
    run.figure("subspaces", figure, caption=caption)


def _at(found: Interval, *index: int) -> Interval:
    """One cell of an interval of arrays."""
    return jax.tree.map(lambda leaf: leaf[index], found)
