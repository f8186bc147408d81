"""Metrics and intervals against values worked out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LAST, METRICS

import mijax
from mijax._errors import ShapeError

LOGITS = jax.random.normal(jax.random.key(0), (3, 7, 64)) * 3


def test_values_by_hand():
    rows = np.asarray(LOGITS)[np.arange(3), np.asarray(LAST)]
    p = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    answer, wrong = np.array([4, 5, 6]), np.array([7, 8, 9])
    take = lambda a, i: a[np.arange(3), i]  # noqa: E731
    expected = {
        "logit_difference": take(rows, answer) - take(rows, wrong),
        "probability": take(p, answer),
        "accuracy": rows.argmax(-1) == answer,
    }
    for name, value in expected.items():
        chex.assert_trees_all_close(METRICS[name](LOGITS), value * 1.0, atol=1e-5)
    log_p = np.asarray(jax.nn.log_softmax(LOGITS, -1))
    pairs = [(0, (4, 6), (1, 2)), (1, (2, 4), (3, 4)), (2, (4, 6), (5, 6))]
    loss = [-(log_p[i, a, x] + log_p[i, b, y]) / 2 for i, (a, b), (x, y) in pairs]
    chex.assert_trees_all_close(
        METRICS["cross_entropy"](LOGITS), jnp.array(loss), atol=1e-5
    )
    other = np.asarray(jax.random.normal(jax.random.key(9), (3, 7, 64)))
    q = np.asarray(jax.nn.log_softmax(other, -1))[np.arange(3), np.asarray(LAST)]
    divergence = (p * (np.log(p) - q)).sum(-1)
    found = mijax.kl(LOGITS, position=LAST)(jnp.asarray(other))
    chex.assert_trees_all_close(found, divergence, atol=1e-5)
    chex.assert_trees_all_close(
        mijax.kl(LOGITS, position=LAST)(LOGITS), jnp.zeros(3), atol=1e-6
    )


def test_sets_of_answers_by_hand():
    rows = np.asarray(LOGITS)[np.arange(3), np.asarray(LAST)]
    p = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    answers, wrong = [[4, 7], [5, -1], [6, 8]], [[1, -1, -1], [2, 3, 9], [63, 0, -1]]
    sets = [
        ([a for a in xs if a >= 0], [w for w in ys if w >= 0])
        for xs, ys in zip(answers, wrong, strict=True)
    ]
    best = [rows[i, a].max() - rows[i, w].max() for i, (a, w) in enumerate(sets)]
    found = mijax.logit_difference(answers, wrong, position=LAST)(LOGITS)
    chex.assert_trees_all_close(found, jnp.array(best), atol=1e-6)
    more = [p[i, a].sum() - p[i, w].sum() for i, (a, w) in enumerate(sets)]
    found = mijax.probability_difference(answers, wrong, position=LAST)(LOGITS)
    chex.assert_trees_all_close(found, jnp.array(more), atol=1e-6)
    everything = jnp.tile(jnp.arange(1, 64), (3, 1))
    found = mijax.probability_difference(everything, 0, position=LAST)(LOGITS)
    chex.assert_trees_all_close(found, jnp.asarray(1 - 2 * p[:, 0]), atol=1e-6)


@pytest.mark.parametrize("make", [mijax.kl, mijax.l2])
def test_one_reference_serves_prompts_that_read_at_their_own_positions(make):
    shared = LOGITS[0]
    found = make(shared, position=LAST)(LOGITS)
    each = make(jnp.stack([shared] * 3), position=LAST)(LOGITS)
    chex.assert_trees_all_close(found, each, atol=1e-6)
    last = make(LOGITS)(LOGITS + jnp.linspace(0, 1, 64))
    at = make(LOGITS, position=6)(LOGITS + jnp.linspace(0, 1, 64))
    chex.assert_trees_all_equal(last, at)


def test_l2_by_hand():
    other = jax.random.normal(jax.random.key(9), (3, 7, 64))
    squared = (np.asarray(LOGITS) - np.asarray(other)) ** 2
    everywhere = jnp.tile(jnp.arange(7), (3, 1))
    found = mijax.l2(LOGITS, position=everywhere)(other)
    chex.assert_trees_all_close(found, jnp.asarray(squared.mean((1, 2))), atol=1e-4)
    chex.assert_trees_all_close(
        mijax.l2(LOGITS)(other), jnp.asarray(squared[:, -1].mean(-1)), atol=1e-4
    )
    one = mijax.l2(LOGITS[0], position=[[0, 2]])(other[0])
    chex.assert_trees_all_close(one, jnp.asarray(squared[0, [0, 2]].mean()), atol=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_does_not_depend_on_the_batch(name):
    metric = METRICS[name]
    whole = metric(LOGITS)
    twice = jax.vmap(metric.of)(
        jnp.tile(LOGITS, (2, 1, 1)), jnp.array([0, 1, 2, 0, 1, 2])
    )
    chex.assert_trees_all_equal(twice, jnp.tile(whole, 2))
    for i in range(3):
        alone = metric.of(LOGITS[i], jnp.asarray(i))
        chex.assert_trees_all_close(alone, whole[i], atol=1e-6)


def test_recovered():
    found = mijax.recovered(jnp.array([3.0, -1.0, 1.0]), clean=3.0, corrupt=-1.0)
    chex.assert_trees_all_close(found, jnp.array([1.0, 0.0, 0.5]))


def test_intervals_cover_and_shrink():
    draws = 2 + jax.random.normal(jax.random.key(1), (200, 50, 20))
    for method in ("bootstrap", "normal"):
        covered = 0
        for i in range(20):
            found = mijax.interval(draws[:, :, i], method=method, resamples=500)
            covered += int(((found.low <= 2) & (found.high >= 2)).sum())
        assert 0.92 < covered / 1000 < 0.98
    few = mijax.interval(draws[:20, 0, 0])
    many = mijax.interval(draws[:, 0, 0])
    assert many.high - many.low < few.high - few.low
    assert many.low < many.mean < many.high
    normal = mijax.interval(draws[:, 0, 0], method="normal")
    chex.assert_trees_all_close(normal.high, many.high, atol=0.03)
    one = mijax.interval(jnp.ones(1), method="normal")
    assert jnp.isinf(one.high)


def test_a_range_is_from_the_least_to_the_greatest():
    found = mijax.interval(
        jnp.array([[3.0, 1.0], [5.0, 1.0], [4.0, 4.0]]), method="range"
    )
    ends = (found.low, found.mean, found.high)
    expected = ([3.0, 1.0], [4.0, 2.0], [5.0, 4.0])
    chex.assert_trees_all_close(ends, tuple(map(jnp.array, expected)))
    assert (found.n, found.level) == (3, 1.0)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: mijax.interval(jnp.zeros((0, 3))), "one value per prompt"),
        (lambda: mijax.interval(jnp.ones(3), method="t"), "'t'"),
        (lambda: mijax.logit_difference(" Mary", 3), "tokenizer.token"),
        (lambda: METRICS["logit_difference"](LOGITS[0]), "3 prompts"),
        (lambda: mijax.kl(jnp.ones(4)), "seq, vocab"),
        (lambda: mijax.l2(jnp.ones(4)), "seq, vocab"),
        (lambda: mijax.logit_difference([[3, 1], [-1, -1]], 3), "Prompt 1"),
        (lambda: mijax.probability_difference(3, [[[1]]]), "tokenizer.token"),
    ],
)
def test_refuses(bad, says):
    with pytest.raises(ShapeError, match=says):
        bad()
