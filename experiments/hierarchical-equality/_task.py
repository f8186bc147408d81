"""Hierarchical equality: is the first pair equal just as the second one is?"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mijax.causal import CausalModel, Counterfactuals

OBJECTS = ("w", "x", "y", "z")
Objects = Float[Array, "4 object"]


class Examples(NamedTuple):
    """Inputs and their labels.

    Attributes:
        x: four objects, one after the other.
        label: 1 if both pairs are equal or both are not.
    """

    x: Float[Array, "*batch input"]
    label: Int[Array, "*batch"]


class Hypothesis(NamedTuple):
    """A causal model, and which of its variables are looked for.

    Attributes:
        program: the causal model.
        variables: two at most.
        draw: makes a base, two sources, and which variables are set, of numbers drawn
            between 0 and 1.
    """

    program: CausalModel
    variables: tuple[str, ...]
    draw: Callable[[Float[Array, "input drawn"], Float[Array, " 2"]], tuple[Any, Any]]


def examples(key: PRNGKeyArray, size: int) -> Examples:
    """Draws an input and its label."""
    objects = _objects(jax.random.uniform(key, (4 * size + 2,)))
    label = BOTH(_named(objects))["label"]
    return Examples(objects.reshape(-1), label.astype(jnp.int32))


def questions(key: PRNGKeyArray, size: int) -> tuple[Counterfactuals, ...]:
    """Draws an interchange intervention for every hypothesis."""
    # One draw for all: every call of a generator takes half a second to compile.
    count = 3 * (4 * size + 2)
    drawn = jax.random.uniform(key, (len(HYPOTHESES), count + 2))
    return tuple(
        _question(one, numbers[:-2].reshape(3, -1), numbers[-2:])
        for one, numbers in zip(HYPOTHESES.values(), drawn, strict=True)
    )


def _question(
    hypothesis: Hypothesis, drawn: Float[Array, "3 drawn"], rest: Float[Array, " 2"]
) -> Counterfactuals:
    """Makes an intervention, and what the causal model says of it."""
    (base, *sources), swapped = hypothesis.draw(drawn, rest)
    names = hypothesis.variables
    found = hypothesis.program.interchange(
        _named(base),
        {name: _named(of) for name, of in zip(names, sources, strict=False)},
        {name: swapped[i] for i, name in enumerate(names)},
    )
    flat = jnp.stack([one.reshape(-1) for one in sources])
    label = found["label"].astype(jnp.int32)
    return Counterfactuals(base.reshape(-1), flat, swapped, label)


def _objects(drawn: Float[Array, " drawn"]) -> Objects:
    """Makes four objects, each pair equal or not by the toss of a coin."""
    w, x, y, z = 2 * drawn[:-2].reshape(4, -1) - 1
    left, right = drawn[-2:] < 0.5
    return jnp.stack([w, jnp.where(left, w, x), y, jnp.where(right, y, z)])


def _named(objects: Objects) -> Mapping[str, Array]:
    return dict(zip(OBJECTS, objects, strict=True))


def _relations(
    drawn: Float[Array, "3 drawn"], rest: Float[Array, " 2"]
) -> tuple[Any, Bool[Array, " 2"]]:
    """Makes three inputs, and sets one of two relations or both."""
    ways = jnp.array([[True, False], [False, True], [True, True]])
    return jax.vmap(_objects)(drawn), ways[(3 * rest[0]).astype(jnp.int32)]


def _relation(
    drawn: Float[Array, "3 drawn"], rest: Float[Array, " 2"]
) -> tuple[Any, Bool[Array, " 2"]]:
    """Makes two inputs, and sets the first variable."""
    base, source, _ = jax.vmap(_objects)(drawn)
    return [base, source, jnp.zeros_like(base)], jnp.array([True, False])


def _identity(
    drawn: Float[Array, "3 drawn"], rest: Float[Array, " 2"]
) -> tuple[Any, Bool[Array, " 2"]]:
    """Makes two inputs; in half of them the source begins as the base goes on."""
    (base, source, none), swapped = _relation(drawn, rest)
    # Else a first object from elsewhere would never equal the second one.
    first = jnp.where(rest[0] < 0.5, base[1], source[0])
    second = jnp.where(rest[1] < 0.5, first, source[1])
    return [base, source.at[:2].set(jnp.stack([first, second])), none], swapped


BOTH = CausalModel(
    OBJECTS,
    {
        "left": lambda w, x: jnp.all(w == x),
        "right": lambda y, z: jnp.all(y == z),
        "label": lambda left, right: left == right,
    },
)
LEFT = CausalModel(
    OBJECTS,
    {
        "left": lambda w, x: jnp.all(w == x),
        "label": lambda left, y, z: left == jnp.all(y == z),
    },
)
FIRST = CausalModel(
    OBJECTS,
    {
        "first": lambda w: w,
        "label": lambda first, x, y, z: jnp.all(first == x) == jnp.all(y == z),
    },
)
HYPOTHESES = {
    "both equality relations": Hypothesis(BOTH, ("left", "right"), _relations),
    "left equality": Hypothesis(LEFT, ("left",), _relation),
    "identity of first argument": Hypothesis(FIRST, ("first",), _identity),
}
