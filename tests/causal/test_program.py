"""Causal models against loops written by hand, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax._errors import ConfigError
from mijax.causal import CausalModel

EQUALITY = CausalModel(
    ("w", "x", "y", "z"),
    {
        # Out of order: the output comes before what it reads.
        "label": lambda left, right: left == right,
        "left": lambda w, x: jnp.all(w == x),
        "right": lambda y, z: jnp.all(y == z),
    },
    output="label",
)


def named(x):
    return dict(zip("wxyz", x, strict=True))


def drawn(key, n):
    objects = jax.random.normal(key, (n, 4, 3))
    pick = jax.random.bernoulli(key, 0.5, (n, 2))
    x = objects.at[:, 1].set(jnp.where(pick[:, :1], objects[:, 0], objects[:, 1]))
    return x.at[:, 3].set(jnp.where(pick[:, 1:], objects[:, 2], objects[:, 3]))


def test_interchange_is_a_loop_written_by_hand():
    base, one, two = (drawn(jax.random.key(i), 64) for i in range(3))
    swapped = jax.random.bernoulli(jax.random.key(3), 0.5, (64, 2))

    def run(base, one, two, swapped):
        sources = {"left": named(one), "right": named(two)}
        which = {"left": swapped[0], "right": swapped[1]}
        return EQUALITY.interchange(named(base), sources, which)

    found = jax.vmap(run)(base, one, two, swapped)
    assert EQUALITY.variables == ("left", "right", "label")
    given = (np.asarray(part) for part in (base, one, two, swapped))
    for i, (b, s, t, which) in enumerate(zip(*given, strict=True)):
        left = bool((s[0] == s[1]).all()) if which[0] else bool((b[0] == b[1]).all())
        right = bool((t[2] == t[3]).all()) if which[1] else bool((b[2] == b[3]).all())
        assert bool(found["left"][i]) == left
        assert bool(found["label"][i]) == (left == right)


def test_variables_and_inputs_can_be_set():
    base = {"w": 1, "x": 2, "y": 3, "z": 3}
    assert not EQUALITY(base)["label"]
    assert EQUALITY(base, {"left": True})["label"]
    assert EQUALITY(base, {"w": 2})["label"]
    assert EQUALITY.interchange(base, {"w": base | {"w": 2}})["left"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: CausalModel(("a",), {"b": lambda aa: aa}), "Did you mean 'a'"),
        (
            lambda: CausalModel(("a",), {"b": lambda c: c, "c": lambda b: b}),
            "circle: b, c",
        ),
        (lambda: CausalModel(("a",), {"a": lambda: 1}), "given twice"),
        (lambda: CausalModel(("a",), {}), "one variable"),
        (lambda: CausalModel(("a",), {"b": lambda a: a}, output="c"), "No variable"),
        (lambda: EQUALITY({"w": 1, "x": 1, "y": 1}), "input 'z'"),
        (lambda: EQUALITY(named(range(4)), {"lft": 1}), "Did you mean 'left'"),
        (
            lambda: EQUALITY.interchange(named(range(4)), {"rights": named(range(4))}),
            "Did you mean 'right'",
        ),
    ],
)
def test_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()
