"""Interchange at a place of each example: against a loop over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import model

import mijax
from mijax import Set, Site, causal
from mijax._errors import PositionError, ShapeError
from mijax.data import Prompts

MODEL = model("gpt2")
RANDOM = np.random.default_rng(3)
LENGTHS, OTHERS = (6, 3, 5, 4, 6, 5), (5, 6, 3, 6, 4, 5)
BASE, FIRST, SECOND = (
    Prompts.from_ids([RANDOM.integers(1, 60, n).tolist() for n in lengths])
    for lengths in (LENGTHS, OTHERS, OTHERS)
)
SITE = Site("resid_post", layer=1)
AT = np.array(LENGTHS) - 1
FROM = np.array([[4, 0], [1, 5], [2, 1], [5, 5], [0, 3], [4, 2]])
# Two ways to give each of two variables half of the numbers.
WAYS = causal.blocks(32, (16, 16))
HALVES = causal.stated(WAYS, SITE)


def answer(i, at, source, way):
    """Set the two halves of one base to what they are in its two sources."""
    parts = [
        mijax.capture(MODEL, prompts.tokens[i, :n], SITE.replace(position=int(p)))
        for prompts, n, p in zip(
            (FIRST, SECOND), (OTHERS[i], OTHERS[i]), source, strict=True
        )
    ]
    parts = parts if way == 0 else parts[::-1]
    new = jnp.concatenate([parts[0][:16], parts[1][16:]])
    edit = Set(new).at("resid_post", layer=1, position=int(at))
    return mijax.run(MODEL, BASE.tokens[i, : LENGTHS[i]], edit)[-1].argmax()


def answers(at, source, way):
    return jnp.stack([answer(i, at[i], source[i], way) for i in range(6)])


def data(label, **places):
    on = jnp.ones((6, 2), bool)
    return causal.Counterfactuals(BASE, [FIRST, SECOND], on, label, **places)


def test_each_example_has_its_own_places():
    label = answers(AT, FROM, 0)
    given = data(label, position=AT, source_position=FROM)
    found = causal.agreement(MODEL, HALVES, given)
    assert found[0].all()
    other = answers(AT, FROM, 1) == label
    np.testing.assert_array_equal(found[1], other)
    # One position for both sources gives other answers, as by hand.
    same = np.minimum(np.array(OTHERS) - 1, AT)
    given = data(label, position=AT, source_position=same)
    expected = answers(AT, np.stack([same, same], 1), 0) == label
    np.testing.assert_array_equal(causal.agreement(MODEL, HALVES, given)[0], expected)
    assert not expected.all()


def test_a_search_over_places_of_examples():
    batch = data(jnp.arange(6), position=AT, source_position=FROM)
    source = causal.Drawn(
        lambda key: jax.tree.map(lambda a: a[jax.random.randint(key, (), 0, 6)], batch),
        batch=4,
    )
    search = causal.Search(causal.DAS((2, 2)), SITE)
    found = causal.align(MODEL, [search], source, steps=2)
    assert causal.agreement(MODEL, found, batch).shape == (1, 6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("places", "site", "says"),
    [
        ({"source_position": AT}, SITE, "Give position= of the bases"),
        ({"position": [1, 2]}, SITE, "one position for each"),
        ({"position": AT + 1}, SITE, "Position 6 is not in its base"),
        ({"position": AT, "source_position": AT}, SITE, "not in its source"),
        ({"position": AT * 1.0}, SITE, "integer"),
        (
            {"position": 0, "source_position": 0},
            SITE.replace(position=1),
            "a site without a position",
        ),
    ],
)
def test_places_that_do_not_fit_are_refused(places, site, says):
    hypothesis = causal.stated(WAYS, site)
    with pytest.raises((PositionError, ShapeError), match=says):
        causal.agreement(MODEL, hypothesis, data(jnp.zeros(6, int), **places))
