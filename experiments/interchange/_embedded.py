"""The embedded model: which token came before, and the token itself."""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import mijax
import mijax.experiment
from mijax import viz
from mijax.causal import (
    DAS,
    Alignment,
    Drawn,
    Search,
    Subspaces,
    agreement,
    align,
    blocks,
    iia,
    stated,
)
from mijax.core import Interval, Site
from mijax.nn import Transformer

from ._previous import PLACES, VARIABLES, Tasks, draw

MODEL = "induction-2l"
TEST, TRAIN = 1, 2
DEPTHS = ("embedding", "after layer 0", "after layer 1")


class Embedded(mijax.experiment.Config):
    """What is searched in the embedded model."""

    length: int = 16
    "Tokens of a prompt."
    place: int = 7
    "Position of the token whose predecessor, and itself, are the variables."
    sizes: tuple[int, ...] = (8, 32)
    "Dimensions of a variable; the last is what numbers are of."
    rotations: int = 3
    "Rotations of each size at each place."
    steps: int = 200
    "Updates of the rotations."
    batch: int = 32
    "Interventions of an update."
    learning_rate: float = 3e-2
    "Of the rotations, at the start."
    test: int = 512
    "Interventions to measure with."

    @property
    def positions(self) -> tuple[int, int, int]:
        """Positions of `PLACES`."""
        return self.place - 1, self.place, self.length - 1


class Found(NamedTuple):
    """Interchange-intervention accuracies."""

    learned: Float[np.ndarray, "size variable layer place rotation"]
    random: Float[np.ndarray, "size variable layer place rotation"]
    whole: Interval
    heads: Interval


def search(config: Embedded, run: mijax.experiment.Run, *, seed: int) -> None:
    """Searches and reports."""
    loaded = mijax.models.load(MODEL)
    run.weights(MODEL, loaded.digest)
    run.seed("data", seed)
    one = partial(
        draw,
        vocab=len(loaded.model.embedding.weight),
        length=config.length,
        place=config.place,
    )
    test: Tasks = Drawn(one, batch=config.test, seed=10 * seed + TEST).batch(
        jnp.int32(0)
    )[1]
    source = Drawn(one, batch=config.batch, seed=10 * seed + TRAIN)
    nothing = stated(_all_of(loaded.model, 1), Site("resid_post", layer=0, position=0))
    plain = iia(loaded.model, nothing, test[2])
    accuracy = jax.tree.map(lambda leaf: leaf[0], plain)
    run.number("accuracy", accuracy, note="of the model, without a swap")
    with run.progress("rotations"):
        began = time.perf_counter()
        searches, found = _searched(loaded.model, source, config, seed=seed)
        took = time.perf_counter() - began
        learned, random = _measured(
            loaded.model, searches, found, test, config, seed=seed
        )
    note = f"of {len(searches)} rotations at once; compilation in it"
    run.number("updates_per_second", config.steps / took, note=note)
    with run.progress("whole vectors"):
        whole = _whole(loaded.model, test, config)
        heads = _heads(loaded.model, test, config)
    report(Found(learned, random, whole, heads), config, run)


def _all_of(model: Transformer, count: int, site: str = "resid_post") -> Subspaces:
    """The whole activation as one variable, several times."""
    embed = model.embedding.weight.shape[1]
    attention = getattr(model.blocks, "attention")  # noqa: B009
    width = attention.w_q.shape[-1] if site == "z" else embed
    return jax.tree.map(lambda x: jnp.repeat(x, count, 0), blocks(width, (width,)))


def _searched(
    model: Transformer, source: Drawn, config: Embedded, *, seed: int
) -> tuple[list[Search], Alignment]:
    """Fits rotations of every size, variable, layer and place."""
    methods = [DAS((size,), rows=max(config.sizes)) for size in config.sizes]
    searches = [
        Search(method, Site("resid_post", layer=layer, position=position), task)
        for method in methods
        for task in range(len(VARIABLES))
        for layer in range(model.n_layers)
        for position in config.positions
        for _ in range(config.rotations)
    ]
    found = align(
        *(model, searches, source),
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=seed,
    )
    return searches, found


def _measured(
    model: Transformer,
    searches: list[Search],
    found: Alignment,
    test: Tasks,
    config: Embedded,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Measures rotations, and as many random ones."""
    width = model.embedding.weight.shape[1]
    keys = jax.random.split(jax.random.key(seed), len(searches))
    drawn = [
        search.method.found(search.method.start(key, width))
        for search, key in zip(searches, keys, strict=True)
    ]
    random = stated(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn),
        [search.site for search in searches],
        [search.task for search in searches],
    )
    shape = (len(config.sizes), len(VARIABLES), model.n_layers, len(PLACES), -1)
    learned, control = (
        np.asarray(agreement(model, one, test)).mean(-1).reshape(shape)
        for one in (found, random)
    )
    return learned, control


def _whole(model: Transformer, test: Tasks, config: Embedded) -> Interval:
    """Swaps whole vectors, `[variable, depth, place]`."""
    tasks = range(len(VARIABLES))
    parts = []
    for name, layers in (("embed", (None,)), ("resid_post", range(model.n_layers))):
        cells = [
            (Site(name, layer=layer, position=position), task)
            for task in tasks
            for layer in layers
            for position in config.positions
        ]
        sites, of_task = zip(*cells, strict=True)
        places = stated(_all_of(model, len(cells)), sites, of_task)
        right = agreement(model, places, test)
        parts.append(right.reshape(len(tasks), -1, len(PLACES), right.shape[-1]))
    right = jnp.concatenate(parts, axis=1)
    return mijax.core.interval(jnp.moveaxis(right, -1, 0).astype(jnp.float32))


def _heads(model: Transformer, test: Tasks, config: Embedded) -> Interval:
    """Swaps what a head reads: of layer 0 here, of layer 1 at the query."""
    _, here, query = config.positions
    attention = getattr(model.blocks, "attention")  # noqa: B009
    heads = range(attention.w_q.shape[-2])
    cells = [
        (Site("z", layer=layer, position=position, head=head), task)
        for task in range(len(VARIABLES))
        for layer, position in ((0, here), (1, query))
        for head in heads
    ]
    sites, of_task = zip(*cells, strict=True)
    places = stated(_all_of(model, len(cells), "z"), sites, of_task)
    right = agreement(model, places, test).reshape(len(VARIABLES), 2, len(heads), -1)
    return mijax.core.interval(jnp.moveaxis(right, -1, 0).astype(jnp.float32))


def report(found: Found, config: Embedded, run: mijax.experiment.Run) -> None:
    """Reports tables, numbers and pictures."""
    here = PLACES.index("here")
    learned, random = found.learned[-1], found.random[-1]
    for variable, name in enumerate(("previous", "content")):
        cell = learned[variable, 0, here]
        run.number(f"{name}_subspace", _over(cell), note="after layer 0, here")
        run.number(f"{name}_subspace_worst", float(cell.min()), note="rotation")
        run.number(f"{name}_random", _over(random[variable, 0, here]), note="the same")
        run.number(f"{name}_whole_vector", _at(found.whole, variable, 1, here))
        where = (0, PLACES.index("before") if variable == 0 else here)
        run.number(f"{name}_embedding", _at(found.whole, variable, *where))
        late = learned[variable, 1, here]
        run.number(f"{name}_after_last_layer", float(late.max()), note="here")
    _report_heads(found, run)
    rows = [
        [VARIABLES[variable], f"after layer {layer}", place]
        + [_over(of[variable, layer, at]) for of in (*found.learned, random)]
        + [_at(found.whole, variable, layer + 1, at)]
        for variable, layer in np.ndindex(len(VARIABLES), learned.shape[1])
        for at, place in enumerate(PLACES)
    ]
    sizes = [f"{size} dimensions" for size in config.sizes]
    columns = ["variable", "stream", "token", *sizes, "random", "whole vector"]
    run.table("Interchange-intervention accuracy", columns, rows)
    _draw(found, config, run)


def _report_heads(found: Found, run: mijax.experiment.Run) -> None:
    """Reports swaps of the output of single heads."""
    mean = np.asarray(found.heads.mean)
    order = np.argsort(-mean[0, 0])
    note = f"L0H{order[0]}, here"
    run.number("previous_head", _at(found.heads, 0, 0, int(order[0])), note=note)
    run.number("previous_other_heads", float(mean[0, 0, order[1]]), note="the best")
    columns = ["head", "token", *VARIABLES]
    rows = [
        [f"L{layer}H{head}", token]
        + [_at(found.heads, variable, layer, head) for variable in (0, 1)]
        for layer, token in enumerate(("here", "query"))
        for head in range(mean.shape[-1])
    ]
    run.table("Accuracy when the output of one head is swapped", columns, rows)


def _draw(found: Found, config: Embedded, run: mijax.experiment.Run) -> None:
    """Draws accuracies by layer and place."""
    size = config.sizes[-1]
    whole, learned = np.asarray(found.whole.mean), found.learned[-1].mean(-1)
    for kind, values in (("whole", whole), (f"{size} dimensions", learned)):
        depths = DEPTHS if kind == "whole" else DEPTHS[1:]
        figure = viz.heatmaps(
            {name: values[i] for i, name in enumerate(VARIABLES)},
            x_labels=PLACES,
            y_labels=depths,
            title="Interchange-intervention accuracy, "
            + ("whole vector" if kind == "whole" else kind),
            x="Token",
            centre=None,
            label="Accuracy",
        )
        caption = "Without any effect it is one half: then labels stay as they are."
        name = "whole-vector" if kind == "whole" else "subspace"
        run.figure(name, figure, caption=caption)
    here = PLACES.index("here")
    labels, cells = [], []
    for variable, name in enumerate(("before", "itself")):
        parts = {
            "learned": found.learned[-1, variable, 0, here],
            "random": found.random[-1, variable, 0, here],
        }
        for kind, cell in parts.items():
            labels.append(f"{name}: {kind}")
            cells.append((cell.mean(), cell.min(), cell.max()))
        labels.append(f"{name}: whole")
        swap = _at(found.whole, variable, 1, here)
        cells.append((float(swap.mean), float(swap.low), float(swap.high)))
    mean, low, high = np.array(cells).T
    figure = viz.bars(
        mean,
        labels=labels,
        low=low,
        high=high,
        title="Swaps between the layers, at the token itself",
        y="Accuracy",
    )
    caption = (
        f"Subspaces of {size} dimensions: mean and range of rotations; whole vector: "
        "95 % interval over prompts."
    )
    run.figure("between-layers", figure, caption=caption)


def _over(values: Float[np.ndarray, " rotation"]) -> Interval:
    """Mean over rotations, between the least and the greatest."""
    return mijax.core.interval(jnp.asarray(values), method="range")


def _at(found: Interval, *index: int) -> Interval:
    """One cell of an interval of arrays."""
    return jax.tree.map(lambda leaf: leaf[index], found)
