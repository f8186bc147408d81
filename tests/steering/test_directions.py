"""Directions: against the references, from ragged prompts, with their conventions."""

from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import compiles

import mijax
from mijax import steering
from mijax.data import Prompts
from mijax.steering import Directions, FromEnd, LastOf, MeanOf, extract

with np.load(Path(__file__).parents[1] / "golden/steering/directions.npz") as _file:
    GOLDEN = dict(_file)
POSITIVE = [[5, 9, 2, 7], [1, 2, 3], [60, 50, 40, 30, 20]]
NEGATIVE = [[5, 9, 2, 8], [1, 2, 4], [60, 50, 40, 30, 21]]


@pytest.mark.parametrize(
    ("name", "method", "first"),
    [
        ("pca_diff", steering.CenteredPCA(), 1),
        ("pca_center", steering.PairCenteredPCA(), 1),
        ("mean", steering.CAA(), 0),
        ("mean", steering.MeanDifference(), 0),
        ("pca", steering.UncenteredPCA(), 0),
        ("logistic_float64", steering.PairedLogistic(), 0),
    ],
)
def test_methods_equal_the_references(name, method, first):
    positive, negative = (GOLDEN[side][first:] for side in ("positive", "negative"))
    found = jax.jit(jax.vmap(method))(positive, negative)
    np.testing.assert_allclose(found, GOLDEN[name], atol=1e-6)
    if "logistic" in name:
        cosine = (np.float64(found) * GOLDEN["logistic"]).sum(-1)
        assert (cosine > 1 - 1e-7).all()


def test_centering_removes_the_mean_difference():
    # The mean of the differences is along the first axis, the rest along the other.
    negative = jnp.zeros((4, 2))
    positive = jnp.array([[3.0, 1.0], [3.0, -1.0], [3.0, 1.0], [3.0, -1.0]])
    centered = steering.CenteredPCA()(positive, negative)
    np.testing.assert_allclose(centered, [0, 1], atol=1e-6)
    whole = steering.UncenteredPCA()(positive, negative)
    np.testing.assert_allclose(whole, [1, 0], atol=1e-6)
    np.testing.assert_allclose(
        steering.UncenteredPCA()(negative, positive), [-1, 0], atol=1e-6
    )


def test_the_signs_of_both_rules_differ():
    # One large positive difference and two small negative ones along one line.
    negative, positive = jnp.zeros((3, 1)), jnp.array([[5.0], [-1.0], [-1.0]])
    assert steering.UncenteredPCA()(positive, negative).tolist() == [1.0]
    assert steering.PairCenteredPCA()(positive, negative).tolist() == [-1.0]


def test_weights_of_a_probe_are_those_of_fit():
    positive, negative = GOLDEN["positive"][0], GOLDEN["negative"][0]
    probe = mijax.probes.Logistic(l2=0.1)
    found = steering.ProbeWeights(probe)(jnp.asarray(positive), jnp.asarray(negative))
    x, y = np.concatenate([negative, positive]), np.repeat([0, 1], 9)
    fitted = mijax.probes.fit(probe, x, y, x, y).direction()
    np.testing.assert_allclose(
        found, fitted / np.linalg.norm(fitted), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("reading", "read"),
    [
        (FromEnd(1), [[3], [2], [4]]),
        (FromEnd(2), [[2], [1], [3]]),
        (LastOf("mark"), [[1], [1], [3]]),
        (MeanOf("mark"), [[0, 1], [1], [2, 3]]),
        (MeanOf(), [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3, 4]]),
        (MeanOf(skip=1), [[1, 2, 3], [1, 2], [1, 2, 3, 4]]),
    ],
)
def test_ragged_prompts_equal_single_ones(reading, read):
    model = cases.model("llama")
    spans = {"mark": [(0, 2), (1, 2), (2, 4)]}
    sets = [Prompts.from_ids(ids, spans=spans) for ids in (POSITIVE, NEGATIVE)]
    found = extract(model, *sets, method=steering.CAA(), position=reading)
    each = []
    for i, (one, other) in enumerate(zip(POSITIVE, NEGATIVE, strict=True)):
        pair = []
        for ids in (one, other):
            acts = np.asarray(mijax.capture(model, jnp.array(ids), "resid_post"))
            pair.append(acts[:, read[i]].mean(1))
        each.append(pair[0] - pair[1])
    np.testing.assert_allclose(found.vectors, np.mean(each, 0), rtol=1e-4, atol=1e-5)
    assert found.layers == (0, 1, 2)
    assert (found.site, found.method, found.norm) == ("resid_post", "CAA", "raw")


def test_reading_in_parts_and_some_layers():
    model = cases.model("gpt2")
    sets = Prompts.from_ids(POSITIVE), Prompts.from_ids(NEGATIVE)
    every = extract(model, *sets)
    some = extract(model, *sets, layers=[2, 0], batch=4)
    np.testing.assert_allclose(some.vectors, every.vectors[np.array([2, 0])], rtol=1e-5)
    assert some.vector(0).shape == (32,)
    whole = extract(model, *sets, position=MeanOf(skip=1))
    parts = extract(model, *sets, position=MeanOf(skip=1), batch=2)
    np.testing.assert_allclose(whole.vectors, parts.vectors, rtol=1e-4, atol=1e-6)


def test_all_layers_are_one_program():
    model = cases.model("gpt2")
    sets = Prompts.from_ids(POSITIVE), Prompts.from_ids(NEGATIVE)
    extract(model, *sets)
    swapped = Prompts.from_ids(POSITIVE[::-1]), Prompts.from_ids(NEGATIVE[::-1])
    with compiles() as found:
        extract(model, *swapped)
    assert not [name for name in found if "_capture" in name or "_vectors" in name]


def test_norms():
    made = Directions(jnp.array([[3.0, 4.0], [0.0, 0.0]]), layers=[1, 3])
    assert made.norms().tolist() == [5.0, 0.0]
    unit = made.unit()
    np.testing.assert_allclose(unit.vectors, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert (unit.norm, unit.layers) == ("unit", (1, 3))
    assert made.scaled([2.0, 1.0]).norms().tolist() == [10.0, 0.0]
    drawn = made.random(jax.random.key(0))
    np.testing.assert_allclose(drawn.norms(), [5.0, 0.0], rtol=1e-6)
    assert drawn.method == "random"
    other = Directions(jnp.array([[1.0, 0.0], [0.0, 1.0]]), layers=[1, 3])
    shared = steering.share_norms([made, other])
    np.testing.assert_allclose(shared[0].vectors[0], [1.8, 2.4], rtol=1e-6)
    np.testing.assert_allclose(shared[1].vectors, [[3, 0], [0, 0.5]], rtol=1e-6)
    assert shared[0].norm == "shared"


def test_medians_leave_padding_and_first_tokens_out():
    model = cases.model("gpt2")
    found = steering.median_norms(model, Prompts.from_ids(POSITIVE), batch=2)
    each = [
        np.linalg.norm(
            mijax.capture(model, jnp.array(ids), "resid_post")[:, 1:], axis=2
        )
        for ids in POSITIVE
    ]
    expected = np.median(np.concatenate(each, axis=1), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: extract(m, POSITIVE[:1], POSITIVE[:1]), "are identical"),
        (
            lambda m: extract(m, [[1, 2], [3, 4]], [[5, 6]], method=steering.CAA()),
            "CAA takes pairs, got 2 positive and 1",
        ),
        (lambda m: extract(m, [[1, 2]], [[3, 4]], layers=[3]), "layers 0 to 2"),
        (lambda m: extract(m, [[1, 2]], [[3, 4]], site="z"), "without a head axis"),
        (
            lambda m: extract(m, [[1, 2]], [[3, 4]], position=FromEnd(3)),
            "shortest prompt",
        ),
        (
            lambda m: extract(m, [[1, 2]], [[3, 4]], position=LastOf("end")),
            "no place 'end'",
        ),
        (lambda m: Directions(jnp.ones((2, 3)), layers=[1, 1]), "2 different layers"),
        (lambda m: Directions(jnp.ones(3), layers=[1]), "layer, embed"),
        (lambda m: Directions(jnp.array([[jnp.nan]]), layers=[0]), "finite"),
        (
            lambda m: Directions(jnp.ones((1, 3)), layers=[1]).vector(2),
            "Layer 2 has no vector",
        ),
        (
            lambda m: Directions(jnp.ones((2, 4)), layers=[0, 1]).scaled(jnp.ones(3)),
            "each of 2 layers",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(mijax.MijaxError, match=message):
        call(cases.model("gpt2"))
