"""Digests hold the code of a user's classes, and of everything that it uses."""

import subprocess
import sys
import types

import pytest

from mijax.core._digest import digest

SOURCE = """
import functools
import equinox as eqx
import jax.numpy as jnp
from mijax.core import AbstractEdit

FACTOR = 1.5
TABLE = {"a": jnp.arange(3)}


def helper(x):
    return inner(x)


def inner(x):
    return x + 1


@functools.lru_cache
def cached(x):
    return x * 4


class Base(AbstractEdit):
    power = 2

    def changed(self, x):
        return helper(x) ** self.power


class Mine(Base):
    gain: float = 1.0

    def __call__(self, x, place):
        shift = lambda e: e + TABLE["a"].sum()
        return shift(self.changed(x)) * self.scale * FACTOR + cached(3) + self.one()

    @property
    def scale(self):
        return 3.0

    @staticmethod
    def one():
        return 1


def metric(x):
    return helper(x)
"""
CHANGES = {
    "constant": ("FACTOR = 1.5", "FACTOR = 100.0"),
    "array": ("jnp.arange(3)", "jnp.arange(4)"),
    "function of a function": ("x + 1", "x + 2"),
    "cached": ("x * 4", "x * 5"),
    "class attribute of the base": ("power = 2", "power = 3"),
    "method of the base": ("** self", "* self"),
    "method": ("* FACTOR +", "/ FACTOR +"),
    "nested function": ("e + TABLE", "e - TABLE"),
    "property": ("3.0", "4.0"),
    "static method": ("return 1", "return 2"),
    "called": ("jnp.arange(3)", "jnp.ones(3)"),
}
SAME = {
    "nothing": ("", ""),
    "comment": ("FACTOR = 1.5", "# Corrected.\nFACTOR = 1.5"),
    "lines": ("\n\n\n", "\n\n\n\n"),
    "unused": ("def metric", "UNUSED = 3\n\n\ndef metric"),
}


def built(change=("", "")):
    assert change[0] in SOURCE
    module = types.ModuleType("mine")
    sys.modules["mine"] = module
    try:
        code = SOURCE.replace(*change) if change[0] else SOURCE
        exec(compile(code, "mine.py", "exec"), vars(module))
        return digest([module.Mine(), module.Mine.changed])
    finally:
        del sys.modules["mine"]


@pytest.mark.parametrize("name", CHANGES)
def test_corrected_code_is_another_job(name):
    assert built(CHANGES[name]) != built()


@pytest.mark.parametrize("name", SAME)
def test_the_same_code_is_the_same_job(name):
    assert built(SAME[name]) == built()


def test_another_process_finds_the_same_digest(tmp_path):
    script = tmp_path / "mine.py"
    show = "\nfrom mijax.core._digest import digest\nprint(digest([Mine(), metric]))\n"
    script.write_text(SOURCE + show)
    found = {
        subprocess.run(
            [sys.executable, str(script)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1
