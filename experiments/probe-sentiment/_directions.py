"""What a direction does: removed, or added to neutral prompts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import mijax
from mijax.nn import Transformer
from mijax.probes import Fit

from ._reading import read
from ._sentences import Sentences


class Direction(NamedTuple):
    """A unit vector at one layer, and where the classes lie along it.

    Attributes:
        vector: `[embed]`.
        middle: mean of all examples along it.
        gap: distance between the means of both classes.
    """

    vector: Float[Array, " embed"]
    middle: float
    gap: float


class Prompts(NamedTuple):
    """Neutral prompts, and the two words that may follow.

    Attributes:
        tokens: `[prompt, seq]`, padded on the right.
        last: position of the last token, `[prompt]`.
        good: token id.
        bad: token id.
    """

    tokens: Int[np.ndarray, "prompt seq"]
    last: Int[np.ndarray, " prompt"]
    good: int
    bad: int


def directions(
    vectors: dict[str, Float[Array, " embed"]],
    x: Float[np.ndarray, "sentence embed"],
    labels: Int[np.ndarray, " sentence"],
    *,
    random: int,
    seed: int,
) -> dict[str, Direction]:
    """Adds random directions to given ones and measures the classes along all.

    Args:
        vectors: unit vectors by name.
        x: activations that they were learned from.
        labels: theirs.
        random: how many.
        seed: decides them.

    Returns:
        Directions by name. Along a random one the classes hardly differ, so the first
        direction's gap is used for it: it is as large a step.
    """
    drawn = np.random.default_rng(seed).normal(size=(random, x.shape[1]))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    given = vectors | {f"random {i + 1}": jnp.float32(v) for i, v in enumerate(drawn)}
    out: dict[str, Direction] = {}
    for name, vector in given.items():
        along = x @ np.asarray(vector)
        gap = float(along[labels == 1].mean() - along[labels == 0].mean())
        if name not in vectors:
            gap = next(iter(out.values())).gap
        out[name] = Direction(vector, float(along.mean()), gap)
    return out


def removal(direction: Direction, layer: int) -> list[Any]:
    """Sets the component along a direction to its mean at every token of a layer."""
    mean = direction.middle * direction.vector
    edits = mijax.Project(direction.vector), mijax.Add(mean)
    return [edit.at("resid_post", layer=layer) for edit in edits]


def without(
    model: Transformer,
    sentences: Sentences,
    probes: Fit,
    direction: Direction,
    place: tuple[int, int],
) -> Float[np.ndarray, " layers"]:
    """Measures all layers' probes after a direction is removed from one.

    Args:
        model: the model.
        sentences: held-out ones.
        probes: of every layer and position.
        direction: what is removed.
        place: the layer, and which position's probes are measured.

    Returns:
        Accuracy by layer, the embedding first.
    """
    layer, position = place
    x = read(model, sentences, removal(direction, layer))
    right = np.asarray(probes.predict(x)) == sentences.labels
    return right.mean(-1)[:, position]


def steer(
    model: Transformer,
    prompts: Prompts,
    direction: Direction,
    layer: int,
    sizes: tuple[float, ...],
) -> Float[np.ndarray, "prompt size"]:
    """Adds a direction at every token of a layer.

    Args:
        model: the model.
        prompts: neutral ones.
        direction: what is added.
        layer: where.
        sizes: how much of it, in distances between the means of the classes.

    Returns:
        Logit of the good word minus that of the bad one.
    """
    found = mijax.sweep(
        model,
        prompts.tokens,
        mijax.Add(direction.gap * direction.vector).at("resid_post", layer=layer),
        over={"coefficient": list(sizes)},
        metric=mijax.logit_difference(
            *(np.full(len(prompts.last), word) for word in (prompts.good, prompts.bad)),
            position=prompts.last,
        ),
    )
    return np.asarray(found.values)


def shuffled(model: Transformer, seed: int) -> Transformer:
    """Shuffles the numbers within every weight array."""
    rng = np.random.default_rng(seed)

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        flat = rng.permutation(np.asarray(leaf).reshape(-1))
        return jnp.asarray(flat.reshape(leaf.shape))

    return jax.tree.map(one, model)
