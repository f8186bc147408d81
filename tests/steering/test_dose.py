"""Effect and cost over layers and strengths: equal to runs, one program, controls."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import compiles

import mijax
from mijax import steering
from mijax.data import Prompts
from mijax.steering import Directions, Doses

PROMPTS = Prompts.from_ids([[5, 9, 2, 7], [1, 2, 3], [60, 50, 40, 30]])
NEUTRAL = Prompts.from_ids([[11, 12, 13, 14, 15], [21, 22, 23]])
MADE = Directions(jax.random.normal(jax.random.key(0), (3, 32)), layers=[0, 1, 2])
EFFECT = mijax.logit_difference(4, 5, position=PROMPTS.last)
DOSES = Doses([-1.0, 0.0, 2.0], layers=[2, 0], scale=steering.TokenNorm(), controls=2)


@pytest.fixture(scope="module")
def found():
    return steering.dose_response(
        cases.model("gpt2"), PROMPTS, MADE, effect=EFFECT, neutral=NEUTRAL, doses=DOSES
    )


def test_cells_are_runs(found):
    model = cases.model("gpt2")
    loss = steering.next_token_loss(NEUTRAL)
    assert found.layers == (2, 0)
    assert found.effect.shape == (3, 2, 3)
    assert found.random_cost.shape == (2, 2, 2, 3)
    keys = jax.random.split(jax.random.key(0), 2)
    random = MADE.at_layers([2, 0]).random(keys[1])
    for row, layer in enumerate((2, 0)):
        for column, strength in enumerate(DOSES.strengths):
            for made, effect, cost in (
                (MADE, found.effect, found.cost),
                (random, found.random_effect[1], found.random_cost[1]),
            ):
                edits = made.at_layers([layer]).add(strength, scale=DOSES.scale)
                np.testing.assert_allclose(
                    effect[:, row, column],
                    EFFECT(mijax.run(model, PROMPTS, edits)),
                    rtol=1e-4,
                    atol=1e-4,
                )
                before = loss(mijax.run(model, NEUTRAL))
                np.testing.assert_allclose(
                    cost[:, row, column],
                    loss(mijax.run(model, NEUTRAL, edits)) - before,
                    rtol=1e-4,
                    atol=1e-4,
                )


def test_strength_0_costs_nothing(found):
    assert not np.asarray(found.cost[..., 1]).any()
    np.testing.assert_array_equal(
        found.effect[..., 1], np.repeat(found.base_effect[:, None], 2, 1)
    )


def test_other_directions_and_strengths_share_the_programs(found):
    other = Doses([-3.0, 0.0, 1.0], layers=[2, 0], scale=DOSES.scale, controls=1)
    with compiles() as new:
        steering.dose_response(
            cases.model("gpt2"),
            PROMPTS,
            MADE.unit(),
            effect=EFFECT,
            neutral=NEUTRAL,
            doses=other,
        )
    assert not [name for name in new if "chunk" in name or "base" in name]


def test_one_token_has_no_loss():
    with pytest.raises(mijax.MijaxError, match="1 token has no next"):
        steering.next_token_loss(Prompts.from_ids([[1, 2, 3], [4]]))


def test_the_loss_leaves_padding_out():
    logits = jax.random.normal(jax.random.key(1), (2, 5, 64))
    found = steering.next_token_loss(NEUTRAL)(logits)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    expected = [
        -np.mean([log_p[i, t, row[t + 1]] for t in range(len(row) - 1)])
        for i, row in enumerate([[11, 12, 13, 14, 15], [21, 22, 23]])
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_best_cell_is_bounded_by_its_cost(found):
    effect, cost = (np.asarray(x).mean(0) for x in (found.effect, found.cost))
    row, column = np.unravel_index(effect.argmax(), effect.shape)
    assert found.best(1e9) == (found.layers[row], found.strengths[column])
    layer, strength = found.best(0.0)
    cell = found.layers.index(layer), found.strengths.index(strength)
    assert effect[cell] == effect[cost <= 0].max()
    with pytest.raises(mijax.MijaxError, match="costs more than -100"):
        found.best(-100.0)
    assert found.effects().mean.shape == found.costs().low.shape == (2, 3)


def test_steering_some_positions_only():
    span = steering.after_prompt(PROMPTS, last=1)
    doses = Doses([2.0], layers=[1], controls=0)
    model = cases.model("gpt2")
    options = {"effect": EFFECT, "neutral": NEUTRAL, "doses": doses}
    found = steering.dose_response(model, PROMPTS, MADE, position=span, **options)
    edits = MADE.at_layers([1]).add(2.0, position=span)
    np.testing.assert_allclose(
        found.effect[:, 0, 0],
        EFFECT(mijax.run(model, PROMPTS, edits)),
        rtol=1e-4,
        atol=1e-4,
    )
    assert found.random_effect.shape == (0, 3, 1, 1)


def test_curves_are_means_with_the_range_of_random_directions(found):
    figure = mijax.viz.steering_curves(found)
    for axes, values, random in (
        (figure.axes[0], found.effect, found.random_effect),
        (figure.axes[1], found.cost, found.random_cost),
    ):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        np.testing.assert_allclose(lines["layer 0"], values.mean(0)[1])
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        means = np.asarray(random).mean(1)
        np.testing.assert_allclose(band.max(), means.max(), rtol=1e-6)
        np.testing.assert_allclose(band.min(), means.min(), rtol=1e-6)


def test_bad_input():
    model = cases.model("gpt2")
    options = {"effect": EFFECT, "neutral": NEUTRAL}
    with pytest.raises(mijax.MijaxError, match="Layer 5 has no vector"):
        steering.dose_response(
            model, PROMPTS, MADE, doses=Doses([1.0], layers=[5]), **options
        )
    narrow = Directions(jnp.ones((1, 16)), layers=[0])
    with pytest.raises(mijax.MijaxError, match="site width 32"):
        steering.dose_response(model, PROMPTS, narrow, doses=Doses([1.0]), **options)
