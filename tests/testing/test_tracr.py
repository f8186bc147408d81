"""Compiled models compute their programs, and their edges are those that matter."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from oracle import circuit as masked
from oracle import edges_of

import mijax
from mijax._errors import LoadError, TokenError
from mijax.testing import tracr
from mijax.testing._tracr import FOLDER, SHIPPED
from mijax.testing._tracr_compile import PROGRAMS

GOLDEN = Path(__file__).parent.parent / "golden" / "acdc" / "roc.json"
needs_tracr = pytest.mark.skipif(
    importlib.util.find_spec("tracr") is None, reason="needs the tracr extra"
)
# What the weights read although no input makes a difference of it: of `reverse`, the
# first head scores all keys alike; for the rest, a default where nothing matches.
IDLE = {
    "reverse": {
        ("token", "a0.h0<q>"),
        ("token", "a0.h0<k>"),
        ("token", "a3.h0<q>"),
        ("token", "a3.h0<k>"),
    },
    "xproportion": {("token", "a1.h0<q>"), ("token", "a1.h0<k>")},
}
# The published set of `xproportion` was found on inputs that have the beginning of the
# sequence anywhere or nowhere, and there that default matters.
UNPUBLISHED = {"reverse": IDLE["reverse"], "xproportion": set()}
# MLPs approximate functions of numbers.
TOLERANCE = {"pair_balance": 1e-3}


@jax.jit
def run(model, tokens):
    return model(tokens)[0]


circuit = functools.partial(masked, split=True)


def agree(compiled, valid=lambda values: True):
    """Runs the program and the model on inputs and requires the same."""
    inputs = [values for values in compiled.inputs() if valid(values)]
    atol = TOLERANCE.get(compiled.name, 1e-6)
    for values in inputs:
        want = compiled.program(values)
        got = compiled.decode(run(compiled.model, compiled.encode(values)))
        assert len(got) == len(want)
        for ours, theirs in zip(got, want, strict=True):
            if theirs is None:
                continue
            if compiled.outputs is None:
                assert ours == pytest.approx(float(theirs), abs=atol), values
            else:
                assert ours == theirs, values
    return len(inputs)


@pytest.mark.parametrize(
    ("name", "count"), [("reverse", 3 + 9 + 27 + 81 + 243), ("xproportion", 1364)]
)
def test_shipped_models_compute_their_programs(name, count):
    assert agree(tracr(name)) == count


def test_programs_on_plain_values():
    assert tracr("reverse").program((1, 2, 2)) == [2, 2, 1]
    assert tracr("xproportion").program("xwxy") == [1, 1 / 2, 2 / 3, 2 / 4]


@pytest.mark.parametrize("name", SHIPPED)
def test_edges_are_the_published_ones_and_some_idle(name):
    published = json.loads(GOLDEN.read_text())["edges"][name]["stream"]
    published = {tuple(edge) for edge in published}
    assert not published & UNPUBLISHED[name]
    assert tracr(name).edges == published | UNPUBLISHED[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_other_edges_do_nothing(name):
    compiled = tracr(name)
    model, edges = compiled.model, compiled.edges
    for values in list(compiled.inputs())[::17]:
        tokens = compiled.encode(values)
        everything, _ = circuit(model, tokens, edges_of(model, split=True))
        np.testing.assert_allclose(everything, run(model, tokens), atol=1e-5)
        alone, _ = circuit(model, tokens, edges)
        np.testing.assert_allclose(alone, everything, atol=1e-12)


@pytest.mark.parametrize("name", SHIPPED)
def test_edges_that_are_not_idle_do_something(name):
    compiled = tracr(name)
    model, edges = compiled.model, compiled.edges
    tokens = [compiled.encode(v) for v in list(compiled.inputs())[::17]]
    before = [circuit(model, t, edges)[0] for t in tokens]
    for edge in edges:
        after = [circuit(model, t, edges - {edge})[0] for t in tokens]
        moved = max(abs(a - b)[1:].max() for a, b in zip(after, before, strict=True))
        assert (moved < 1e-6) == (edge in IDLE[name]), edge


@pytest.mark.parametrize("name", SHIPPED)
def test_record(name):
    compiled = tracr(name)
    model = compiled.model
    assert len(compiled.labels) == model.embedding.weight.shape[1]
    assert compiled.tokens[int(compiled.encode(compiled.vocab[:1])[0])] == "BOS"
    assert not model.causal
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 100_000


def test_errors():
    with pytest.raises(LoadError, match="Did you mean 'reverse'"):
        tracr("revers")
    with pytest.raises(TokenError, match="4 is not a value of 'reverse'"):
        tracr("reverse").encode([4])
    with pytest.raises(TokenError, match="compiled for 5 values, got 6"):
        tracr("reverse").encode([1] * 6)


@pytest.mark.skipif(
    importlib.util.find_spec("tracr") is not None, reason="the tracr extra is there"
)
def test_without_tracr():
    with pytest.raises(LoadError, match=r"pip install 'mijax\[tracr\]'"):
        tracr("hist")
    with pytest.raises(LoadError, match=r"tracr\('reverse'\)"):
        tracr("reverse", max_seq_len=4)


@needs_tracr
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_programs(name):
    distinct = name == "sort_unique"
    compiled = tracr(name, max_seq_len=4)
    valid = lambda v: not distinct or len(set(v)) == len(v)  # noqa: E731
    assert agree(compiled, valid) > 25
    model, edges = compiled.model, compiled.edges
    for values in [v for v in compiled.inputs() if valid(v)][::29]:
        tokens = compiled.encode(values)
        logits, _ = circuit(model, tokens, edges_of(model, split=True))
        alone, _ = circuit(model, tokens, edges)
        np.testing.assert_allclose(alone, logits, atol=1e-9)


@needs_tracr
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_what_tracr_compiles(name):
    ours, theirs = tracr(name), tracr(name, max_seq_len=5)
    assert (ours.tokens, ours.outputs) == (theirs.tokens, theirs.outputs)
    # Tracr numbers the variables of all programs of a process.
    plain = [[re.sub(r"_\d+", "", x) for x in c.labels] for c in (ours, theirs)]
    assert plain[0] == plain[1]
    for a, b in zip(
        jax.tree.leaves(ours.model), jax.tree.leaves(theirs.model), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@needs_tracr
def test_any_program():
    from tracr.rasp import rasp  # noqa: PLC0415

    program = rasp.Map(lambda x: 10 - x, rasp.tokens).named("ten_minus")
    compiled = mijax.testing.tracr(program, vocab={1, 2, 3}, max_seq_len=2)
    assert agree(compiled) == 12
    with pytest.raises(LoadError, match="Give the values of 'ten_minus'"):
        tracr(program)
