"""Sinks of attention: what the pattern is, and what assumes that it sums to 1."""

import functools
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from family_weights import golden, write

import mijax
from mijax import Site, models, nn
from mijax._errors import ConfigError, FrameError
from mijax.attribution import AtPStar, attribute

METRIC = mijax.logit_difference(3, 4, position=9)


@functools.cache
def gpt_oss():
    with tempfile.TemporaryDirectory() as folder:
        model = models.load(write(Path(folder), "gpt_oss")).model
    return model, jnp.asarray(golden("gpt_oss")["tokens"], jnp.int32)


def test_a_pattern_is_the_softmax_of_scores_and_the_sink():
    model, tokens = gpt_oss()
    scores, pattern = mijax.capture(model, tokens, ["scores", "pattern"])
    sink = model.blocks.attention.softmax.sink
    reads = pattern[0, 9, 0] > 0
    # The first layer reads a window of three tokens.
    assert reads.tolist() == [False] * 7 + [True] * 3
    weights = jnp.exp(scores[0, 9])
    total = jnp.where(reads, weights, 0).sum(-1) + jnp.exp(sink[0])
    expected = jnp.where(reads, weights, 0) / total[:, None]
    chex.assert_trees_all_close(pattern[0, 9], expected, atol=1e-6)
    assert float(pattern.sum(-1).max()) < 0.999


def test_a_temperature_of_the_gradient_is_that_of_the_sink_too():
    def gradients(temperature):
        model, tokens = gpt_oss()
        ruled = nn.apply(model, nn.TemperedSoftmax(temperature))
        assert ruled.coverage["TemperedSoftmax"] == {"SinkSoftmax": 3}
        found = mijax.gradients(
            ruled.model,
            tokens,
            METRIC,
            {"s": Site("scores", layer=2), "p": Site("pattern", layer=2)},
        )
        scores = mijax.capture(model, tokens, Site("scores", layer=2))
        return found, scores, model.blocks.attention.softmax.sink[2]

    found, scores, sink = gradients(2.0)
    # The last layer reads a window of three tokens.
    scores, given = scores[9, :, 7:], found["p"][9, :, 7:]
    both = jnp.concatenate([scores, sink[:, None]], -1)
    p = jax.nn.softmax(both / 2, -1)[:, :-1]
    expected = p * (given - (p * given).sum(-1, keepdims=True))
    chex.assert_trees_all_close(found["s"][9, :, 7:], expected, atol=1e-6)
    assert jnp.abs(expected).max() > 1e-3
    # A temperature of 1 is the plain gradient.
    model, tokens = gpt_oss()
    plain = mijax.gradients(model, tokens, METRIC, Site("scores", layer=2))
    chex.assert_trees_all_close(gradients(1.0)[0]["s"], plain, atol=1e-6)


def test_what_needs_rows_that_sum_to_one_is_refused():
    model, tokens = gpt_oss()
    with pytest.raises(FrameError, match="SinkSoftmax"):
        nn.fold_value_biases(model)
    with pytest.raises(ConfigError, match="sinks"):
        attribute(
            model, tokens[None], tokens[None, ::-1], METRIC, Site("q"), method=AtPStar()
        )


def test_folded_norms_leave_logits_as_they_are():
    model, tokens = gpt_oss()
    folded = nn.fold_norm(model)
    expected = mijax.run(model, tokens)
    chex.assert_trees_all_close(mijax.run(folded, tokens), expected, atol=1e-4)
