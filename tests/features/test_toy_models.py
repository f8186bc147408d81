"""Toy models: their data, training, geometry and the theory of phases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mijax import train
from mijax._errors import ConfigError, ShapeError
from mijax.features import (
    Phase,
    SparseFeatures,
    Squeeze,
    ToyModel,
    absent_loss,
    antipodal_loss,
    count_lines,
    dimensionality,
    dimensions_per_feature,
    phase_of,
    phase_theory,
    squeeze,
    toy_losses,
)
from mijax.features._phases import pair_loss


def test_features_have_the_distribution_that_is_promised():
    density = np.array([[1.0, 0.5, 0.05], [0.3, 0.5, 0.9]])
    source = SparseFeatures(density, batch=50_000, seed=3)
    state, batch = source.batch(source.start())
    x = np.asarray(batch.x)
    assert x.shape == (50_000, 2, 3)
    there = x > 0
    np.testing.assert_allclose(there.mean(0), density, atol=0.01)
    sizes = [[x[:, i, k][there[:, i, k]] for k in range(3)] for i in range(2)]
    for row in sizes:
        for drawn in row:
            tail = np.quantile(drawn, [0.1, 0.5, 0.9])
            np.testing.assert_allclose(tail, [0.1, 0.5, 0.9], atol=0.03)
            assert drawn.min() > 0
            assert drawn.max() <= 1
    flat = np.corrcoef(x.reshape(50_000, 6).T)
    inside = [flat[i, j] for i, j in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))]
    assert np.abs(inside).max() < 0.02
    # Angles of two instances differ from batch to batch: no correlation on the whole.
    many = SparseFeatures(np.full((2, 1), 0.5), batch=16, seed=0)
    states = jnp.arange(4000)
    pairs = jax.jit(jax.vmap(lambda i: many.batch(i)[1].x))(states)
    pairs = np.asarray(pairs).reshape(-1, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.02
    _, other = source.batch(state)
    assert np.abs(x - other.x).max() > 0.5
    with pytest.raises(ConfigError, match="probability above 0"):
        SparseFeatures(np.zeros((1, 1)), batch=2)


def test_instances_restore_as_models_of_their_own_do(key):
    one, two, three = jax.random.split(key, 3)
    model = ToyModel(jax.random.normal(one, (3, 5, 2)), jax.random.normal(two, (3, 5)))
    x = jax.random.uniform(three, (7, 3, 5))
    importance = jnp.arange(15.0).reshape(3, 5)
    losses, restored = toy_losses(model, x, importance), model.restore(x)
    for i in range(3):
        w, b = np.asarray(model.weights[i]).T, np.asarray(model.bias[i])
        for j in range(2):
            alone = ToyModel(model.weights[i], model.bias[i])(x[j, i])
            np.testing.assert_allclose(
                alone, np.maximum(w.T @ w @ np.asarray(x[j, i]) + b, 0), atol=1e-5
            )
            np.testing.assert_allclose(restored[j, i], alone, atol=1e-5)
        off = np.asarray(x[:, i] - restored[:, i])
        np.testing.assert_allclose(
            losses[i], (np.asarray(importance[i]) * off**2).mean(), rtol=1e-5
        )


def test_training_is_adamw_on_the_summed_losses():
    importance, density = jnp.full((4, 5), 0.7), jnp.full((4, 5), 0.3)
    objective = Squeeze(importance, 2, seed=1)
    model, _ = objective.start(objective.key())
    wide, _ = Squeeze(jnp.ones((20, 200)), 20).start(jax.random.key(0))
    assert wide.weights.std() == pytest.approx((2 / (20 * 220)) ** 0.5, rel=0.02)
    source = SparseFeatures(density, batch=16, seed=1)
    rule = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
    state, optimiser = source.start(), rule.init(model)
    slope = jax.jit(jax.grad(lambda m, x: toy_losses(m, x, importance).sum()))
    for _ in range(3):
        state, batch = source.batch(state)
        change, optimiser = rule.update(slope(model, batch.x), optimiser, model)
        model = optax.apply_updates(model, change)
    found = squeeze(importance, density, embed=2, steps=3, batch=16, seed=1, scan=2)
    np.testing.assert_allclose(found.weights, model.weights, atol=1e-6)
    np.testing.assert_allclose(found.bias, model.bias, atol=1e-6)


def test_trained_pairs_are_where_theory_says():
    """Dense and unimportant, dense and important, sparse: the best of three each."""
    p = jnp.array([0.9, 0.9, 0.05])
    relative = jnp.array([0.3, 3.0, 1.0])
    importance = jnp.tile(jnp.stack([jnp.ones(3), relative], axis=1), (3, 1))
    density = jnp.tile(p[:, None], (3, 2))
    told = train.Memory()
    found = squeeze(
        importance, density, embed=1, steps=3000, batch=256, seed=0, sinks=[told]
    )
    phases, losses = phase_theory(p, relative)
    assert phases.tolist() == [Phase.ABSENT, Phase.OWN, Phase.SHARED]
    _, batch = SparseFeatures(density, batch=20_000, seed=9).batch(jnp.int32(0))
    measured = 2 * toy_losses(found, batch.x, importance).reshape(3, 3)
    best = jnp.argmin(measured, 0)
    trained = phase_of(found.weights).reshape(3, 3)[best, jnp.arange(3)]
    assert trained.tolist() == phases.tolist()
    # Lengths are free in training, and examples are drawn.
    np.testing.assert_allclose(measured.min(0), losses.min(0), rtol=0.2)
    assert told.rows[-1]["step"] == 3000


def test_dimensions_of_shapes_are_those_of_geometry():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    turns = 2 * np.pi * np.arange(5) / 5
    pentagon = np.stack([np.cos(turns), np.sin(turns)], 1)
    shapes = {3 / 4: corners, 2 / 5: pentagon, 2 / 3: pentagon[:0]}
    third = 2 * np.pi * np.arange(3) / 3
    shapes[2 / 3] = np.stack([np.cos(third), np.sin(third)], 1)
    for fraction, rows in shapes.items():
        found = dimensionality(jnp.asarray(rows, jnp.float32))
        np.testing.assert_allclose(found, fraction, atol=1e-6)
        assert dimensions_per_feature(jnp.asarray(rows, jnp.float32)) == pytest.approx(
            fraction
        )
    assert dimensionality(jnp.zeros((2, 2))).tolist() == [0, 0]


def test_lines_are_counted_by_hand():
    def row(*groups):
        flat = np.concatenate([np.full(n, at) for at, n in groups])
        return np.concatenate([flat, np.zeros(80 - len(flat))])

    dimensions = np.stack(
        [
            # Ten at 1/2 with five below: a line. Nine at 3/8: too few.
            row((0.504, 10), (0.4875, 5), (0.375, 9)),
            # Twenty at 2/3, but eleven just above: a crowd, no line. Ten at 3/4, and
            # thirty that are neither there nor beside.
            row((0.6667, 20), (0.6792, 11), (0.746, 10), (0.7561, 30)),
            # Dense instances do not count.
            row((0.4, 50)),
        ]
    )
    found = count_lines(dimensions, np.array([0.5, 0.6, 0.96]))
    assert found.counts.tolist() == [10, 20, 10, 0, 9]
    assert found.below.tolist() == [0, 0, 5, 0, 0]
    assert found.above.tolist() == [0, 11, 0, 0, 0]
    assert found.present.tolist() == [True, False, True, False, False]


def test_lines_of_other_instances_are_refused(unchecked):
    with pytest.raises(ShapeError, match="one for each instance"):
        count_lines(np.ones((2, 3)), np.array([0.5]))


@pytest.mark.parametrize("p", [0.05, 0.4, 1.0])
def test_expected_losses_are_integrals(p):
    grid = (np.arange(800) + 0.5) / 800
    x, y = np.meshgrid(grid, grid, indexing="ij")

    def measured(b):
        there = ((x - np.maximum(x - y + b, 0)) ** 2).mean()
        alone = ((grid - np.maximum(grid + b, 0)) ** 2).mean()
        other = (np.maximum(b - grid, 0) ** 2).mean()
        none = max(b, 0) ** 2
        return p**2 * there + p * (1 - p) * (alone + other) + (1 - p) ** 2 * none

    for b in (0.0, 0.2, 0.7):
        assert pair_loss(p, b) == pytest.approx(measured(b), abs=2e-6)
    biases = np.linspace(-0.3, 0.9, 241)
    assert antipodal_loss(p) == pytest.approx(min(map(measured, biases)), rel=2e-3)
    constant = p * ((grid - p / 2) ** 2).mean() + (1 - p) * (p / 2) ** 2
    assert absent_loss(p) == pytest.approx(constant, abs=2e-6)


def test_theory_of_three_features_adds_a_pair_of_the_others():
    p, importance = np.array([0.05, 0.05, 1.0, 1.0]), np.array([0.5, 5.0, 0.5, 5.0])
    found, losses = phase_theory(p, importance, embed=2)
    assert found.tolist() == [Phase.SHARED, Phase.OWN, Phase.ABSENT, Phase.OWN]
    np.testing.assert_allclose(losses[3], 2 * antipodal_loss(p))
