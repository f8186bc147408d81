"""Laws of `fit`, over every kind of probe."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import mijax
from mijax.probes import (
    LDA,
    AttentionPooled,
    Hidden,
    Logistic,
    Means,
    Ridge,
    Sequences,
    _fit,
    _layout,
    _program,
    fit,
)

PROBES, N, HELD, FEATURES, SEQ = (2, 2), 64, 40, 5, 3
KINDS = {
    "logistic": Logistic(l2=(1e-2, 1.0)),
    "ridge": Ridge(l2=(1e-2, 1.0)),
    "means": Means(),
    "lda": LDA(shrinkage=(1e-2, 0.5)),
    "hidden": Hidden(width=4, l2=1e-2, steps=200),
    "pooled": AttentionPooled(l2=1e-1, steps=200),
}
# The direction that the labels follow; stronger in later probes.
PLANTED = jnp.array([3.0, -1.0, 0.0, 2.0, 0.5]) / 14.25**0.5


def examples(kind, seed=0):
    """The arguments of `fit` after the probe."""
    total = N + HELD
    keys = jax.random.split(jax.random.key(seed), 3)
    sign = jax.random.rademacher(keys[0], (total,), jnp.float32)
    strength = jnp.array([[0.2, 0.8], [1.5, 3.0]])[..., None, None]
    x = jax.random.normal(keys[1], (*PROBES, total, FEATURES))
    x = x + strength * sign[:, None] * PLANTED
    y = np.asarray(sign if kind == "ridge" else (sign + 1).astype(int))
    if kind != "pooled":
        return x[..., :N, :], y[:N], x[..., N:, :], y[N:]
    noise = jax.random.normal(keys[2], (*PROBES, total, SEQ, FEATURES))
    x = jnp.concatenate([x[..., None, :], noise[..., 1:, :]], axis=-2)
    mask = jnp.arange(SEQ) < (2 + jnp.arange(total) % 2)[:, None]
    parts = (slice(None, N), slice(N, None))
    one, two = (Sequences(x[..., at, :, :], mask[at]) for at in parts)
    return one, y[:N], two, y[N:]


def part(x, index):
    """Inputs of one probe."""
    if isinstance(x, Sequences):
        return Sequences(x.x[index], x.mask)
    return x[index]


@pytest.fixture(scope="module")
def together():
    return {kind: fit(probe, *examples(kind)) for kind, probe in KINDS.items()}


@pytest.mark.parametrize("kind", ["hidden", "pooled"])
def test_probes_do_not_see_each_other(kind, together):
    """In another order, beside other probes, in the same program."""
    x, y, x_held, y_held = examples(kind)
    turned = [
        jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim > 3 else leaf, one)
        for one in (x, x_held)
    ]
    found = fit(KINDS[kind], turned[0], y, turned[1], y_held)
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[::-1], found.params),
        together[kind].params,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["logistic", "ridge", "means", "lda"])
def test_together_is_one_by_one(kind, together):
    x, y, x_held, y_held = examples(kind)
    for index in ((0, 1), (1, 1)):
        alone = fit(KINDS[kind], part(x, index), y, part(x_held, index), y_held)
        found = together[kind]
        assert found.strength[index] == alone.strength
        chex.assert_trees_all_close(
            found.logits(x_held)[index],
            alone.logits(part(x_held, index)),
            rtol=1e-3,
            atol=2e-3,
        )
        np.testing.assert_allclose(found.values[index], alone.values, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_record(kind, together):
    """Predictions, accuracy, intervals and the table say the same."""
    found = together[kind]
    _, _, x_held, y_held = examples(kind)
    predicted = np.asarray(found.predict(x_held))
    if found.classes:
        accuracy = (predicted == y_held).mean(-1)
        assert found.chance == 0.5
        assert found.baseline >= 0.4
    else:
        assert found.baseline <= 0
        accuracy = 1 - ((predicted - y_held) ** 2).mean(-1) / y_held.var()
    np.testing.assert_allclose(found.held_out.mean, accuracy, atol=1e-5)
    assert np.all(found.held_out.low <= found.held_out.mean + 1e-6)
    rows = found.table()
    assert [row.probe for row in rows] == list(np.ndindex(PROBES))
    assert rows[3].held_out == pytest.approx(accuracy[1, 1], abs=1e-5)
    assert rows[3].held_out > max(rows[0].held_out, rows[0].baseline)
    assert found.converged.all()


@pytest.mark.parametrize("kind", ["logistic", "ridge", "means", "lda"])
def test_direction_is_the_planted_one(kind, together):
    direction = together[kind].direction()
    assert direction.shape == (*PROBES, FEATURES)
    np.testing.assert_allclose(jnp.linalg.norm(direction, axis=-1), 1.0, atol=1e-5)
    assert direction[1, 1] @ PLANTED > 0.9
    x = examples(kind)[2]
    # Logits grow along it, on activations as they came.
    moved = together[kind].logits(x + direction[..., None, :])
    change = moved - together[kind].logits(x)
    change = change[..., 1] - change[..., 0] if change.ndim > 3 else change
    assert (change > 0).all()


def test_intervals_of_accuracy_are_wilsons():
    """At 18 of 20; and all right is not certainly all right."""
    found = _fit._interval(jnp.stack([jnp.arange(20) < 18, jnp.ones(20)]) * 1.0, True)
    np.testing.assert_allclose(found.low, [0.69897, 0.83887], atol=1e-4)
    np.testing.assert_allclose(found.high, [0.97213, 1.0], atol=1e-4)


def test_what_is_not_linear_has_no_direction(together):
    with pytest.raises(mijax.MijaxError, match="not linear"):
        together["hidden"].direction()
    with pytest.raises(mijax.MijaxError, match="give no class"):
        together["ridge"].direction(1)


@pytest.mark.parametrize("kind", ["logistic", "ridge", "means", "lda"])
def test_order_of_examples_means_nothing(kind, together):
    x, y, x_held, y_held = examples(kind)
    probe = KINDS[kind]
    order = np.random.default_rng(0).permutation(N)
    one = fit(probe, x[1, 0], y, x_held[1, 0], y_held)
    two = fit(probe, x[1, 0][order], y[order], x_held[1, 0], y_held)
    if one.strength == two.strength:
        np.testing.assert_allclose(one.values, two.values, atol=5e-3)
        np.testing.assert_allclose(
            one.logits(x_held[1, 0]), two.logits(x_held[1, 0]), atol=1e-2
        )


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_units_of_features_mean_nothing(kind):
    """Kinds that standardise do not see the unit or origin of a feature."""
    x, y, x_held, y_held = (a[1, 0] if a.ndim > 1 else a for a in examples(kind))
    unit, origin = 2.0 ** jnp.array([-6, 0, 3, 5, 1]), jnp.array([0, 2, 0, -1, 4.0])
    one = fit(KINDS[kind], x, y, x_held, y_held)
    two = fit(KINDS[kind], x * unit + origin, y, x_held * unit + origin, y_held)
    one, two = one.logits(x_held), two.logits(x_held * unit + origin)
    np.testing.assert_allclose(one, two, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["means", "lda"])
def test_rotation_means_nothing(kind):
    """Kinds that keep angles turn with the activations."""
    x, y, x_held, y_held = (a[1, 0] if a.ndim > 1 else a for a in examples(kind))
    turn, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (FEATURES, FEATURES)))
    one = fit(KINDS[kind], x, y, x_held, y_held)
    two = fit(KINDS[kind], 3 * x @ turn, y, 3 * x_held @ turn, y_held)
    np.testing.assert_allclose(one.values, two.values, atol=1e-5)
    np.testing.assert_allclose(one.direction() @ turn, two.direction(), atol=1e-4)


def test_a_mesh_changes_nothing(together):
    """Examples do not divide by three: the rest is filled up and counts nothing."""
    mesh = Mesh(np.array(jax.devices()[:6]).reshape(3, 2), ("data", "model"))
    found, alone = fit(KINDS["logistic"], *examples("logistic"), mesh=mesh), together
    alone = alone["logistic"]
    assert (found.strength == alone.strength).all()
    np.testing.assert_array_equal(found.values, alone.values)
    for one in ("params", "train", "selection"):
        chex.assert_trees_all_close(
            getattr(found, one), getattr(alone, one), atol=1e-5, rtol=1e-5
        )


def test_chunks_change_nothing(monkeypatch, together):
    """Five probes in two chunks of three: one lane is filled up with a copy."""
    floats = 3 * N * FEATURES + 8 * 2 * N + FEATURES**2
    monkeypatch.setattr(
        _layout, "MEMORY", dict.fromkeys(_layout.MEMORY, 3 * 4 * floats)
    )
    x, y, x_held, y_held = examples("means")
    five = [jnp.concatenate([a.reshape(4, -1, 5), a[0, :1]]) for a in (x, x_held)]
    layout = _layout.lay_out(five[0], 2, None)
    assert (layout.chunks, layout.lanes) == (2, 3)
    found = fit(KINDS["means"], five[0], y, five[1], y_held)
    expected = together["means"].values.reshape(4, -1)
    np.testing.assert_array_equal(found.values[:4], expected)
    np.testing.assert_array_equal(found.values[4], expected[0])


def test_the_strength_is_the_best_on_what_was_set_aside(together):
    for kind in ("logistic", "ridge", "lda"):
        found = together[kind]
        best = np.asarray(found.probe.strengths)[np.argmin(found.selection, axis=-1)]
        np.testing.assert_allclose(found.strength, best)
        assert np.isfinite(found.selection).all()


def test_held_out_labels_choose_nothing():
    """Strength and parameters do not depend on held-out examples."""
    x, y, x_held, y_held = examples("logistic")
    one = fit(KINDS["logistic"], x, y, x_held, y_held)
    two = fit(KINDS["logistic"], x, y, -x_held, np.roll(y_held, 1))
    chex.assert_trees_all_equal(one.params, two.params)
    chex.assert_trees_all_equal(one.selection, two.selection)


def test_noise_wants_more_regularisation_than_signal():
    """Few examples of many features that mean nothing: the strongest wins."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, y = jax.random.normal(keys[0], (80, 40)), jax.random.normal(keys[1], (80,))
    found = fit(Ridge(l2=(1e-3, 10.0)), x[:60], y[:60], x[60:], y[60:], folds=3)
    assert found.strength == 10
    assert found.selection.shape == (2,)
    assert found.train > max(0, found.held_out.mean)


def test_again_with_other_data_compiles_nothing(monkeypatch):
    traced = chex.assert_max_traces(_program._fit_chunk.__wrapped__, n=1)
    monkeypatch.setattr(_program, "_fit_chunk", eqx.filter_jit(traced))
    chex.clear_trace_counter()
    for seed in (0, 1):
        fit(KINDS["means"], *examples("means", seed), key=jax.random.key(seed))


def test_attention_finds_the_token_and_ignores_padding(together):
    """Only the first token of each sequence carries the label."""
    found = together["pooled"]
    x, _, x_held, _ = examples("pooled")
    padded = jnp.where(x_held.mask[..., None], x_held.x, jnp.nan)
    np.testing.assert_array_equal(
        found.logits(Sequences(padded, x_held.mask)), found.logits(x_held)
    )
    params = jax.tree.map(lambda leaf: leaf[1, 1], found.params)
    frame = jax.tree.map(lambda leaf: leaf[1, 1], found.frame)
    inside = frame.enter(part(x, (1, 1)))
    share = found.probe.attention(params, inside)
    np.testing.assert_allclose(share.sum(-1), 1, atol=1e-5)
    assert (np.asarray(share)[~np.asarray(inside.mask)] == 0).all()


def test_a_hidden_layer_learns_what_no_line_can():
    """Exclusive or."""
    x = jax.random.normal(jax.random.key(0), (*PROBES, N + HELD, FEATURES))
    x = x * (jnp.arange(FEATURES) < 2)
    y = np.asarray((x[0, 0, :, 0] * x[0, 0, :, 1] > 0).astype(int))
    rest = (x[..., :N, :], y[:N], x[..., N:, :], y[N:])
    line, curve = (fit(KINDS[kind], *rest) for kind in ("logistic", "hidden"))
    assert line.held_out.mean[0, 0] < 0.7
    assert curve.held_out.mean[0, 0] > 0.8


def test_three_classes_have_directions():
    x = jax.random.normal(jax.random.key(0), (90, 4))
    y = np.arange(90) % 3 + 10
    x = x + 4 * jax.nn.one_hot(y - 10, 4)
    found = fit(Means(), x[:60], y[:60], x[60:], y[60:])
    assert found.classes == (10, 11, 12)
    assert found.held_out.mean > 0.9
    assert set(np.asarray(found.predict(x)).tolist()) == {10, 11, 12}
    for label in found.classes:
        assert jnp.argmax(found.direction(label)) == label - 10
    one = found.direction(10, against=11)
    assert one[0] > 0.5
    assert one[1] < -0.5
    assert abs(float(jnp.linalg.norm(found.direction(10, against=12))) - 1) < 1e-5
