"""Control tasks and codelengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.probes import (
    Logistic,
    Ridge,
    auroc,
    codelength,
    control_labels,
    fit,
    selectivity,
)

N, TRAIN, TYPES, FEATURES = 400, 300, 25, 30


def embedded(seed=0):
    """Inputs that are an embedding of the type and noise; the label is of the type."""
    keys = jax.random.split(jax.random.key(seed), 4)
    types = np.asarray(jax.random.randint(keys[0], (N,), 0, TYPES))
    of_type = np.asarray(jax.random.bernoulli(keys[1], 0.4, (TYPES,)).astype(int))
    x = jax.random.normal(keys[2], (TYPES, FEATURES))[types]
    x = x + 0.3 * jax.random.normal(keys[3], x.shape)
    return x, of_type[types], types


def split(x, y):
    return x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]


def test_control_labels_are_one_per_type_with_the_same_frequencies():
    _, y, types = embedded()
    key = jax.random.key(3)
    found = control_labels(types, y, key=key)
    for kind in range(TYPES):
        assert len(set(found[types == kind].tolist())) == 1
    # Which examples are asked about makes no difference.
    np.testing.assert_array_equal(control_labels(types[::-3], y, key=key), found[::-3])
    many = np.arange(4000)
    share = control_labels(many, [5, 5, 5, 9], key=key)
    assert set(share.tolist()) == {5, 9}
    assert abs((share == 5).mean() - 0.75) < 0.03
    assert (control_labels(types, y, key=jax.random.key(4)) != found).any()


def test_a_probe_that_can_memorise_types_has_no_selectivity():
    """Inputs know the type and nothing else: control labels are as easy."""
    x, y, types = embedded()
    control = control_labels(types, y[:TRAIN], key=jax.random.key(7))
    probe = Logistic(l2=1e-2)
    found, other = fit(probe, *split(x, y)), fit(probe, *split(x, control))
    gap = selectivity(found, other)
    assert found.held_out.mean > 0.9
    assert abs(float(gap.mean)) < 0.1
    noise = jax.random.normal(jax.random.key(1), x.shape)
    gap = selectivity(fit(probe, *split(noise, y)), fit(probe, *split(noise, control)))
    assert gap.low - 0.05 < 0 < gap.high + 0.05
    with pytest.raises(mijax.MijaxError, match="same examples"):
        selectivity(found, fit(probe, x[:TRAIN], y[:TRAIN], x[:50], y[:50]))


@pytest.fixture(scope="module")
def codes():
    x, y, _ = embedded()
    inputs = jnp.stack([x, jax.random.normal(jax.random.key(8), x.shape)])
    return codelength(Logistic(l2=(1e-2, 1.0)), inputs, y), y


def test_codelength_of_what_can_be_read_is_much_shorter(codes):
    found, y = codes
    assert found.uniform == N
    signal, noise = found.bits
    assert signal < 0.6 * noise
    assert noise > 0.9 * found.labels_only
    np.testing.assert_allclose(found.compression, N / found.bits, rtol=1e-5)
    np.testing.assert_allclose(found.portions.sum(-1), found.bits, rtol=1e-5)
    assert found.ends == (4, 7, 13, 25, 50, 100, 200, 400)
    np.testing.assert_allclose(found.portions[:, 0], 4)
    assert (found.strength[:, 0] == 1.0).all()  # nothing seen: the strongest
    # Laplace's rule, one label after another.
    counts, bits = np.ones(2), 0.0
    for label in y:
        bits -= np.log2(counts[label] / counts.sum())
        counts[label] += 1
    np.testing.assert_allclose(found.labels_only, bits, rtol=1e-5)


def test_codelength_by_hand(codes):
    """The last portion: a probe fitted to the half before it, in float64."""
    found, y = codes
    x, _, _ = embedded()
    shuffle, _ = jax.random.split(jax.random.key(0))
    order = np.asarray(jax.random.permutation(shuffle, N))
    x, y = np.asarray(x, np.float64)[order], y[order]
    z = (x - x.mean(0)) / x.std(0)
    l2 = float(found.strength[0, -1])
    z = np.c_[z, np.ones(N)]
    penalty = np.r_[np.full(FEATURES, l2), 0]
    w = np.zeros(FEATURES + 1)
    for _ in range(60):
        p = 1 / (1 + np.exp(-z[:200] @ w))
        gradient = z[:200].T @ (p - y[:200]) / 200 + penalty * w
        hessian = (z[:200].T * (p * (1 - p))) @ z[:200] / 200 + np.diag(penalty)
        w -= np.linalg.solve(hessian, gradient)
    p = 1 / (1 + np.exp(-z[200:] @ w))
    bits = -np.log2(np.where(y[200:] == 1, p, 1 - p)).sum()
    np.testing.assert_allclose(found.portions[0, -1], bits, rtol=1e-3)


BAD = [
    (lambda x, y: fit(Logistic(), x, 0 * y, x, y), "label 0 only"),
    (lambda x, y: fit(Logistic(), x, y[:-1], x, y), "one label per example"),
    (lambda x, y: fit(Logistic(), x, y, x, y[:-1]), "one label per example"),
    (lambda x, y: fit(Logistic(), x, y * 1.0, x, y), "integer labels"),
    (lambda x, y: fit(Logistic(), x, y, x, y + 5), "class 5"),
    (lambda x, y: fit(Logistic(), x, np.arange(20), x, y), "20 classes in 20"),
    (lambda x, y: fit(Logistic(), x, y, x, y, folds=21), "folds=21"),
    (lambda x, y: fit(Logistic(), x, y, x, y, folds=0), "folds=0"),
    (lambda x, y: fit(Logistic(), x, y, x[:, :2], y), "3 features"),
    (lambda x, y: fit(Logistic(), x, y, x[None], y), "leading axes"),
    (lambda x, y: fit(Logistic(), x[:, 0], y, x, y), "expected"),
    (lambda x, y: fit(Logistic(), x[:0], y[:0], x, y), "empty"),
    (lambda x, y: fit(Logistic(l2=-1.0), x, y, x, y), ">= 0"),
    (lambda x, y: fit(Logistic(l2=()), x, y, x, y), "at least one"),
    (lambda x, y: fit(mijax.probes.LDA(shrinkage=2.0), x, y, x, y), "from 0 to 1"),
    (lambda x, y: fit(mijax.probes.AttentionPooled(), x, y, x, y), "Sequences"),
    (lambda x, y: fit(Ridge(), x, y * np.nan, x, y), "finite"),
    (lambda x, y: fit(Ridge(), x, y, x, 0 * y), "R\\^2"),
    (
        lambda x, y: fit(
            Logistic(), jnp.stack([x, x.at[3].set(jnp.nan)]), y, jnp.stack([x, x]), y
        ),
        r"x_train has NaN .* probe \(1,\) of \(2,\)",
    ),
    (
        lambda x, y: fit(
            Logistic(),
            *(x[None].repeat(3, 0), y, x[None].repeat(3, 0), y),
            mesh=jax.sharding.Mesh(np.array(jax.devices()[:2]), ("model",)),
        ),
        "3 probes do not divide among 2",
    ),
    (
        lambda x, y: fit(
            *(Logistic(), x, y, x, y),
            mesh=jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",)),
        ),
        "'data'",
    ),
    (
        lambda x, y: fit(
            mijax.probes.AttentionPooled(),
            mijax.probes.Sequences(x[:, None], jnp.ones((20, 2), bool)),
            *(y, x, y),
        ),
        "mask",
    ),
    (lambda x, y: codelength(Ridge(), x, y), "no classes"),
    (lambda x, y: codelength(Logistic(), x[:6], y[:6]), "too few"),
    (lambda x, y: control_labels(y * 1.0, y, key=jax.random.key(0)), "integers"),
    (lambda x, y: control_labels(y[None], y, key=jax.random.key(0)), "vectors"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input(call, message):
    x = jax.random.normal(jax.random.key(0), (20, 3))
    with pytest.raises(mijax.MijaxError, match=message) as error:
        call(x, np.arange(20) % 2)
    assert "\n" not in str(error.value)


def test_bad_directions():
    x = jax.random.normal(jax.random.key(0), (20, 3))
    y = np.arange(20) % 3
    several = fit(mijax.probes.Means(), x, y, x, y)
    with pytest.raises(mijax.MijaxError, match="Which of the classes"):
        several.direction()
    with pytest.raises(mijax.MijaxError, match="No class 7"):
        several.direction(7)
    with pytest.raises(mijax.MijaxError, match="these probes are"):
        several.logits(x[:, :2])


def test_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = rng.integers(0, 9, (2, 3, 60)).astype(float)  # with many ties
    over = scores[..., labels == 1, None] - scores[..., None, labels == 0]
    expected = ((over > 0) + 0.5 * (over == 0)).mean((-2, -1))
    np.testing.assert_allclose(auroc(scores, labels), expected, atol=1e-6)
    np.testing.assert_allclose(auroc(-scores, labels), 1 - expected, atol=1e-6)
    with pytest.raises(mijax.MijaxError, match="one label per example"):
        auroc(scores, labels[:-1])
    with pytest.raises(mijax.MijaxError, match="both of them"):
        auroc(scores, np.zeros(60, int))


def test_an_area_needs_finite_scores():
    with pytest.raises(mijax.MijaxError, match="1 of 4 scores are NaN"):
        auroc([float("nan"), 0.2, 0.3, 0.1], [1, 0, 1, 0])
    assert auroc([-np.inf, -1, 0, np.inf], [0, 0, 1, 1]) == 1
