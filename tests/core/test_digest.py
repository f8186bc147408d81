"""Digests of jobs: another job is another digest, the same job never is."""

import dataclasses
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax._errors import OutputError
from mijax.core import AbstractEdit, Chunks
from mijax.core._digest import digest


class Judged(eqx.Module):
    judge: Callable = eqx.field(static=True, default=jnp.square)


def scaled(factor):
    return lambda e: factor * jnp.abs(e)


def recursive(n):
    def down(i):
        return n if i == 0 else down(i - 1)

    return down


class Gain:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


@dataclasses.dataclass
class Table:
    values: object


def words(middle):
    """So many that numpy does not print them all."""
    return np.array(["x"] * 1500 + [middle] + ["x"] * 1500, object)


TOLD = {
    "closures": lambda: (scaled(1.0), scaled(2.0), scaled(jnp.ones(2))),
    "bodies": lambda: (lambda e: e + 1, lambda e: e + 2, lambda e: e - 1),
    "globals": lambda: (lambda e: 2 * jnp.sin(e), lambda e: 2 * jnp.cos(e)),
    "inner": lambda: (lambda e: [i + 1 for i in e], lambda e: [i + 2 for i in e]),
    "defaults": lambda: (lambda e, k=1: e, lambda e, k=2: e, lambda e, *, k=1: e),
    "partial": lambda: (functools.partial(pow, 2), functools.partial(pow, 3)),
    "wrapped": lambda: (jax.nn.relu, jax.nn.silu, jax.jit(scaled(3.0))),
    "recursive": lambda: (recursive(1), recursive(2)),
    "captured": lambda: (scaled(scaled(1.0)), scaled(scaled(2.0)), scaled(jnp)),
    "static": lambda: (Judged(judge=scaled(1.0)), Judged(judge=scaled(2.0))),
    "called": lambda: (Judged(judge=Gain(1.0)), Judged(judge=Gain(2.0))),
    "bound": lambda: (Gain(1.0).__call__, Gain(2.0).__call__, [].append, len),
    "slots": lambda: (Slots(1.0), Slots(2.0)),
    "long": lambda: (Table(words("a")), Table(words("b"))),
    "random": lambda: tuple(Table(np.random.default_rng(i)) for i in range(3)),
    "objects": lambda: (words("a"), words("b")),
    "sets": lambda: (lambda e: e in {"a", "b"}, lambda e: e in {"a", "c"}),
    "keys": lambda: ({"a": 1, "b": 2}, {"a": 2, "b": 1}, {1: "a", 2: "b"}),
    "plain": lambda: (1, 1.0, True, "1", b"1", None, np.float32(1), jnp.ones(())),
    "nested": lambda: ([[1], [2]], [[1, 2]], [1, [2]], ((1,), (2,)), [[1], 2]),
}


@pytest.mark.parametrize("name", TOLD)
def test_digests_tell_values_apart(name):
    """Made anew, each is what it was; lines and places in memory do not count."""
    first, second = ([digest(one) for one in TOLD[name]()] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)


def test_digests_are_those_of_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests/core'); import test_digest as t;"
        "print(*(t.digest(t.TOLD[n]()) for n in sys.argv[1:]))"
    )
    # Pytest gives this module, and so the classes in it, another name.
    own = ("static", "called", "bound", "slots", "long", "random")
    names = [name for name in TOLD if name not in own]
    here = [digest(TOLD[name]()) for name in names]
    random = digest(np.random.default_rng(0))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"{code}; print(t.digest(t.np.random.default_rng(0)))",
            *names,
        ],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.split() == [*here, random]


def test_the_order_of_keys_does_not_count():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_what_comes_often_is_hashed_once():
    """Unless it were, this would take the age of the universe."""

    def nested(function):
        for _ in range(100):
            function = functools.partial(pow, function, function)
        return digest(function)

    assert nested(scaled(1.0)) == nested(scaled(1.0)) != nested(scaled(2.0))


def test_what_nothing_is_known_of_is_refused():
    with pytest.raises(OutputError, match="lock cannot be told"):
        digest(Judged(judge=threading.Lock()))


class By(AbstractEdit):
    how: Callable = eqx.field(static=True)

    def __call__(self, x, place):
        return self.how(x)


def test_a_sweep_of_another_object_is_not_resumed(tmp_path):
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    chunks = Chunks(resume=tmp_path / "sweep.npz")
    for factor in (2.0, 2.0, 5.0):
        edit = By(Gain(factor)).at("z")
        given = (model, jnp.array([[5, 6, 7]]), edit)
        options = {"over": "layer", "metric": mijax.logit_difference(3, 4)}
        if factor == 5.0:
            with pytest.raises(OutputError, match="another sweep"):
                mijax.sweep(*given, chunks=chunks, **options)
        else:
            mijax.sweep(*given, chunks=chunks, **options)
