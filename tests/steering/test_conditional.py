"""Conditional steering: rows that meet a condition are steered, others are not."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import steering
from mijax.data import Prompts
from mijax.steering import Condition, Directions

C = jax.random.normal(jax.random.key(5), (32,))
PROMPTS = Prompts.from_ids([[5, 9, 2, 7, 11], [1, 2, 3], [60, 50, 40, 30]])


def by_hand(model, layer, c, reading):
    """Compute the similarity of every prompt alone, in float64."""
    found = []
    for row, n in zip(PROMPTS.tokens, PROMPTS.lengths, strict=True):
        acts = mijax.capture(model, row[:n], mijax.Site("resid_pre", layer=layer))
        x = np.float64(acts).mean(0) if reading == "mean" else np.float64(acts)[-1]
        c = np.float64(c)
        y = np.tanh(np.outer(c, c) @ x / (c @ c))
        found.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "reading"),
    [("mean", steering.MeanOf()), ("last", steering.FromEnd(1))],
)
def test_similarity_is_its_formula(name, reading):
    model = cases.model("gpt2")
    condition = Condition(C, layer=1, threshold=0.1, reading=reading)
    found = condition.similarity(model, PROMPTS)
    np.testing.assert_allclose(found, by_hand(model, 1, C, name), rtol=1e-4, atol=1e-6)
    # The direction's length and sign do not matter.
    other = Condition(-3 * C, layer=1, threshold=0.1, reading=reading)
    assert (found >= 0).all()
    np.testing.assert_allclose(
        np.asarray(other.similarity(model, PROMPTS)) > 0, np.asarray(found) > 0
    )


def test_rows_are_switched_on_and_off():
    model = cases.model("gpt2")
    similarity = np.asarray(
        Condition(C, layer=1, threshold=0.0).similarity(model, PROMPTS)
    )
    middle = float(np.sort(similarity)[1:].mean())
    above = Condition(C, layer=1, threshold=middle)
    met = above.met(model, PROMPTS)
    assert met.sum() == 1
    below = Condition(C, layer=1, threshold=middle, above=False).met(model, PROMPTS)
    assert (below == ~met).all()
    vector = Directions(jnp.ones((1, 32)), layers=[2])
    gate = vector.add(steering.gated(3.0, met))
    plain, every = mijax.run(model, PROMPTS), mijax.run(model, PROMPTS, vector.add(3.0))
    found = np.asarray(mijax.run(model, PROMPTS, gate))
    for i in range(3):
        expected = every if met[i] else plain
        np.testing.assert_array_equal(found[i], expected[i])
    new = mijax.generate(model, PROMPTS, steps=4, edits=gate)
    whole = {
        True: mijax.generate(model, PROMPTS, steps=4, edits=vector.add(3.0)),
        False: mijax.generate(model, PROMPTS, steps=4),
    }
    for i in range(3):
        assert new[i].tolist() == whole[bool(met[i])][i].tolist()


def test_grid_search_finds_the_largest_f1():
    model = cases.model("gpt2")
    rng = np.random.default_rng(0)
    positive = Prompts.from_ids(rng.integers(0, 20, (6, 4)).tolist())
    negative = Prompts.from_ids(rng.integers(30, 60, (5, 4)).tolist())
    made = steering.extract(
        model,
        positive,
        negative,
        site="resid_pre",
        position=steering.MeanOf(),
    )
    random = [made.random(jax.random.key(i)) for i in range(3)]
    found = steering.find_condition(model, positive, negative, made, random=random)
    best = found.condition
    met = np.r_[best.met(model, positive), best.met(model, negative)]
    truth = np.arange(11) < 6
    precision, recall = (met & truth).sum() / met.sum(), (met & truth).sum() / 6
    np.testing.assert_allclose(found.f1, 2 * precision * recall / (precision + recall))
    assert found.f1 == found.grid.max()
    assert found.grid.shape == (3, 101, 2)
    # Everything met: precision 6/11, recall 1.
    always = 2 * (6 / 11) / (1 + 6 / 11)
    assert found.f1 > always
    np.testing.assert_allclose(found.grid.min(), 0)
    assert found.control.shape == (3,)
    for layer in range(3):
        for at, side in ((7, 0), (30, 1)):
            one = Condition(
                made.vector(layer), layer=layer, threshold=at / 100, above=side == 0
            )
            met = np.r_[one.met(model, positive), one.met(model, negative)]
            both = (met & truth).sum()
            f1 = 0 if not both else 2 * both / (met.sum() + 6)
            np.testing.assert_allclose(found.grid[layer, at, side], f1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: steering.gated(1.0, jnp.ones(3)), "one boolean per prompt"),
        (
            lambda m: Condition(C[:16], layer=1, threshold=0.1).met(m, PROMPTS),
            "site width 32",
        ),
        (
            lambda m: Condition(C, layer=3, threshold=0.1).met(m, PROMPTS),
            "layers 0 to 2",
        ),
        (lambda m: Condition(0 * C, layer=1, threshold=0.1), "got zeros only"),
        (
            lambda m: steering.find_condition(
                m, PROMPTS, PROMPTS[0], Directions(C[None], layers=[1])
            ),
            "give directions at resid_pre",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(mijax.MijaxError, match=message):
        call(cases.model("gpt2"))
