"""Sampling limits equal a separate NumPy version and distributions worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS, model
from compiles import compiles

import mijax
from mijax.core._sampling import Sampling, limited

KEY = jax.random.key(4)
SAMPLE = {"temperature": 1.0, "key": KEY}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(logits, temperature, top_k=None, top_p=None, min_p=None):
    """Processors of Hugging Face transformers, in their order, for one row."""
    x = np.asarray(logits, np.float64) / temperature
    if top_k is not None:
        x = np.where(x < np.sort(x)[::-1][min(top_k, x.size) - 1], -np.inf, x)
    if top_p is not None and top_p < 1:
        ascending = np.argsort(x)
        removed = np.cumsum(softmax(x[ascending])) <= 1 - top_p
        removed[-1] = False
        x[ascending[removed]] = -np.inf
    if min_p is not None:
        p = softmax(x)
        x = np.where(p < min_p * p.max(), -np.inf, x)
    return softmax(x)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 1e-6},
        {"top_p": 0.4},
        {"top_p": 0.95},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.1},
        {"top_k": 3, "top_p": 0.9, "min_p": 0.5},
    ],
)
def test_limits_equal_the_reference(limits):
    every = {"top_k": None, "top_p": None, "min_p": None} | limits
    apply = jax.jit(jax.vmap(limited, in_axes=(0, None)))
    for temperature in (0.5, 1.0, 1.7):
        logits = np.random.default_rng(0).normal(0, 2, (40, 64)).astype(np.float32)
        sampling = Sampling.of(temperature, **every)
        found = jax.nn.softmax(apply(jnp.asarray(logits) / temperature, sampling))
        wanted = np.stack([reference(row, temperature, **limits) for row in logits])
        assert ((np.asarray(found) > 0) == (wanted > 0)).all()
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        # 0.4 + 0.3 reach 0.7 before the third; of the whole, 0.69 needs two too.
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 3}, [4 / 9, 3 / 9, 2 / 9, 0]),
        # Of 4/9, 3/9, 2/9 the first two reach 0.77: renormalized after top-k.
        ({"top_k": 3, "top_p": 0.75}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        # 3/4 of the largest is less than 0.8 of it.
        ({"min_p": 0.8}, [1, 0, 0, 0]),
        ({"min_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_limits_by_hand(limits, wanted):
    every = {"top_k": None, "top_p": None, "min_p": None} | limits
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    found = jax.nn.softmax(limited(logits, Sampling.of(1.0, **every)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_generate_draws_from_the_limited_distribution():
    tokens = jnp.tile(CLEAN[:1], (4000, 1))
    limits = {"top_k": 8, "top_p": 0.9, "min_p": 0.05}
    found = mijax.generate(
        model("gpt2"), tokens, steps=1, temperature=1.5, key=KEY, **limits
    )
    logits = mijax.run(model("gpt2"), CLEAN[0])[-1]
    wanted = reference(logits, 1.5, **limits)
    counts = np.bincount(np.asarray(found[:, 0]), minlength=64) / 4000
    assert (counts[wanted == 0] == 0).all()
    assert np.abs(counts - wanted).max() < 0.03


def test_several_stop_tokens():
    plain = mijax.generate(model("llama"), CLEAN, steps=12, lengths=LENGTHS, **SAMPLE)
    ends = [int(plain[0, 3]), int(plain[1, 5])]
    found = mijax.generate(
        model("llama"), CLEAN, steps=12, lengths=LENGTHS, stop=ends, **SAMPLE
    )
    for row, whole in zip(found.tolist(), plain.tolist(), strict=True):
        at = next((i for i, token in enumerate(whole) if token in ends), 12)
        assert row == whole[:at] + whole[at : at + 1] * (12 - at)


def test_a_batch_that_has_stopped_is_filled_up():
    plain = mijax.generate(model("gpt2"), CLEAN[0], steps=20)
    end = int(plain[2])
    found = mijax.generate(model("gpt2"), CLEAN[0], steps=20, stop=[end]).tolist()
    at = plain.tolist().index(end)
    assert found == plain[:at].tolist() + [end] * (20 - at)


def test_sizes_and_limits_share_a_program():
    every = {"top_k": 5, "top_p": 0.9, "key": KEY, "temperature": 1.0}
    first = mijax.generate(model("gpt2"), CLEAN, steps=2, stop=1, **every)
    shorter = CLEAN[:, :5]
    with compiles() as found:
        for steps in (1, 3, 9, 14):
            other = every | {"top_k": steps, "top_p": 0.8, "temperature": 0.5}
            mijax.generate(model("gpt2"), CLEAN, steps=steps, stop=[1, 2, 3], **other)
        mijax.generate(model("gpt2"), shorter, steps=5, **every)
    assert not found
    more = mijax.generate(model("gpt2"), CLEAN, steps=9, stop=1, **every)
    assert (more[:, :2] == first).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 0, **SAMPLE}, "top_k is a number of tokens"),
        ({"top_k": True, **SAMPLE}, "`top_k` must be an integer"),
        ({"top_p": 0.0, **SAMPLE}, "top_p is above 0"),
        ({"top_p": 1.5, **SAMPLE}, "top_p is a number from 0 to 1"),
        ({"min_p": -0.1, **SAMPLE}, "min_p is a number from 0 to 1"),
        ({"min_p": float("nan"), **SAMPLE}, "`min_p` must be finite"),
        ({"temperature": float("inf"), "key": KEY}, "`temperature` must be finite"),
        ({"top_p": 0.9}, "temperature above 0"),
        ({"temperature": 1.0}, "needs a key"),
        ({"stop": [[1]]}, "stop is a token id"),
        ({"stop": [-1]}, "stop is a token id"),
        ({"stop": "the"}, "must be an integer"),
        ({"stop": 2**32}, "fit in 32 bits"),
    ],
)
def test_refused(options, says):
    with pytest.raises(mijax.MijaxError, match=says):
        mijax.generate(model("gpt2"), CLEAN, steps=2, **options)
