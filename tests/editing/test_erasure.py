"""Concept erasure: goldens, laws, and erasure in weights."""

from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.editing import (
    INLP,
    LEACE,
    Eraser,
    MeanProjection,
    OracleLEACE,
    Quadratic,
    fit_eraser,
    scrub,
)

with np.load(
    Path(__file__).parent.parent / "golden" / "editing" / "erasure.npz"
) as _file:
    GOLDEN = dict(_file)
X, LABELS = GOLDEN["x"], GOLDEN["labels"]
ERASURES = {
    "leace": LEACE(),
    "plain": LEACE(shrinkage=False),
    "linear": LEACE(affine=False),
    "orth": MeanProjection(),
}


def erased(method, x=X, labels=LABELS):
    return np.asarray(fit_eraser(x, labels, method=method)(jnp.asarray(x), None))


def cross(x, labels):
    z = labels[:, None] == np.unique(labels)
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


@pytest.mark.parametrize("name", ERASURES)
def test_golden(name):
    np.testing.assert_allclose(erased(ERASURES[name]), GOLDEN[name], atol=2e-5)


def test_golden_of_a_number():
    found = erased(LEACE(), labels=GOLDEN["number"])
    np.testing.assert_allclose(found, GOLDEN["numeric"], atol=2e-5)


def test_golden_with_labels():
    x = jnp.asarray(X)
    oracle = fit_eraser(X, LABELS, method=OracleLEACE())
    np.testing.assert_allclose(oracle.erase(x, LABELS), GOLDEN["oracle"], atol=2e-5)
    for count in (2, 3):
        kept = count > LABELS
        found = fit_eraser(X[kept], LABELS[kept], method=Quadratic())
        result = found.erase(x[kept], LABELS[kept])
        np.testing.assert_allclose(result, GOLDEN[f"quadratic{count}"], atol=5e-4)


@pytest.mark.parametrize("name", ["plain", "leace", "orth"])
def test_nothing_linear_is_left(name):
    found = erased(ERASURES[name])
    assert np.abs(cross(X, LABELS)).max() > 0.1
    assert np.abs(cross(found, LABELS)).max() < 1e-5
    np.testing.assert_allclose(found.mean(0), X.mean(0), atol=1e-5)
    # Least squares explains nothing, rounding in the erased directions aside.
    z = np.eye(3)[LABELS]
    rows = np.c_[found, np.ones(len(X))]
    fit = rows @ np.linalg.lstsq(rows, z, rcond=1e-5)[0]
    np.testing.assert_allclose(fit, np.broadcast_to(z.mean(0), z.shape), atol=1e-3)


def test_least_distortion():
    """No other linear guard is as close, in the norm of the inverse covariance."""
    eraser = fit_eraser(X, LABELS, method=LEACE(shrinkage=False))
    sigma = np.cov(X.T)
    inverse = np.linalg.inv(sigma)
    centered = X - X.mean(0)

    def distortion(matrix, metric):
        step = centered - centered @ matrix.T
        return np.einsum("ni,ij,nj->", step, metric, step) / len(X)

    best = np.asarray(eraser.matrix)
    random = np.random.default_rng(0)
    gaps = np.linalg.svd(cross(X, LABELS))[0][:, :2]
    for metric in (inverse, np.eye(8)):
        least = distortion(best, metric)
        for _ in range(20):
            # Another oblique projection along the same gaps, which also guards.
            along = random.normal(size=(2, 8))
            other = np.eye(8) - gaps @ np.linalg.solve(along @ gaps, along)
            assert np.abs(other @ cross(X, LABELS)).max() < 1e-6
            assert distortion(other, metric) > least
        assert distortion(np.eye(8) - gaps @ gaps.T, metric) > least
    assert eraser.rank == 2


def test_coding_of_the_concept_does_not_matter():
    full = fit_eraser(X, LABELS, method=LEACE())
    dropped = np.eye(3)[LABELS][:, :2]
    other = fit_eraser(X, dropped, method=LEACE())
    np.testing.assert_allclose(full.matrix, other.matrix, atol=1e-5)
    renamed = fit_eraser(X, LABELS * 7 - 3, method=LEACE())
    np.testing.assert_allclose(full.matrix, renamed.matrix, atol=1e-6)


@pytest.mark.parametrize("method", [LEACE(), MeanProjection(), INLP()])
def test_constant_labels_are_the_identity(method):
    eraser = fit_eraser(X, np.zeros(60, int), method=method)
    assert eraser.rank == 0
    np.testing.assert_array_equal(eraser(jnp.asarray(X), None), jnp.asarray(X))


def test_inlp_removes_a_planted_direction():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(400, 6)), random.integers(0, 2, 400)
    direction = np.linalg.qr(random.normal(size=(6, 1)))[0][:, 0]
    x += np.outer(4 * (y - 0.5), direction)
    eraser = fit_eraser(x, y, method=INLP())
    left = np.asarray(eraser(jnp.asarray(x), None))
    gap = left[y == 1].mean(0) - left[y == 0].mean(0)
    assert np.linalg.norm(gap) < 0.35  # it was 4
    assert 1 <= eraser.rank <= 3
    right = np.asarray(eraser.right)
    np.testing.assert_allclose(right @ right.T, np.eye(eraser.rank), atol=1e-5)
    assert np.linalg.norm(right @ direction) > 0.95


def test_oracle_and_quadratic_laws():
    oracle = fit_eraser(X, LABELS, method=OracleLEACE())
    found = np.asarray(oracle.erase(jnp.asarray(X), LABELS))
    assert np.abs(cross(found, LABELS)).max() < 1e-5
    # With labels, less has to change.
    assert ((found - X) ** 2).sum() < ((erased(LEACE(shrinkage=False)) - X) ** 2).sum()
    method = Quadratic(shrinkage=False)
    found = np.asarray(fit_eraser(X, LABELS, method=method).erase(X, LABELS))
    parts = [found[c == LABELS] for c in range(3)]
    for part in parts[1:]:
        np.testing.assert_allclose(part.mean(0), parts[0].mean(0), atol=1e-3)
        np.testing.assert_allclose(np.cov(part.T), np.cov(parts[0].T), atol=2e-2)


@pytest.fixture(scope="module")
def setting():
    tokens = jax.random.randint(jax.random.key(1), (48, 4), 0, 64)
    return tokens, np.asarray(tokens[:, 1] > 30, int)


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
@pytest.mark.parametrize(("name", "affine"), [("gpt2", True), ("llama", False)])
def test_erasure_in_weights_is_erasure_of_activations(setting, name, affine, site):
    tokens, labels = setting
    model = cases.model(name)
    x = mijax.capture(model, tokens, mijax.Site(site, layer=1, position=2))
    eraser = fit_eraser(x, labels, method=LEACE(affine=affine))
    by_edit = mijax.run(model, tokens, eraser.at(site, layer=1))
    permanent = eraser.into(model, site, layer=1)
    np.testing.assert_allclose(
        mijax.run(permanent.apply(model), tokens), by_edit, atol=2e-4
    )
    assert jnp.abs(by_edit - mijax.run(model, tokens)).max() > 0.1
    at = mijax.Site(site, layer=1, position=2)
    after = np.asarray(mijax.capture(permanent.apply(model), tokens, at))
    assert np.abs(cross(after, labels)).max() < 1e-4


def test_scrubbing_erases_every_layer(setting):
    tokens, labels = setting
    model = cases.model("gpt2")
    edits = scrub(model, tokens, labels, layers=[0, 1, 2], position=2)
    for layer in range(3):
        at = mijax.Site("resid_post", layer=layer, position=2)
        after = np.asarray(mijax.capture(model, tokens, at, edits))
        assert np.abs(cross(after, labels)).max() < 1e-4
        before = np.asarray(mijax.capture(model, tokens, at))
        assert np.abs(cross(before, labels)).max() > 0.02


def test_edits_with_labels(setting):
    tokens, labels = setting
    model = cases.model("gpt2")
    at = mijax.Site("resid_post", layer=1, position=2)
    x = mijax.capture(model, tokens, at)
    for method in (OracleLEACE(), Quadratic()):
        eraser = fit_eraser(x, labels, method=method)
        edit = eraser.edit(labels).at("resid_post", layer=1, position=2)
        after = mijax.capture(model, tokens, at, edit)
        np.testing.assert_allclose(after, eraser.erase(x, labels), atol=1e-4)
    with pytest.raises(mijax.MijaxError, match=r"fitted to classes \[0, 1\], got 2"):
        eraser.edit(labels + 1)


def test_refused_input():
    for match, x, labels, method in [
        ("activations .example, embed.", X[0], LABELS, LEACE()),
        ("activations .example, embed.", X, LABELS[:5], LEACE()),
        ("2 examples or more", X[:1], LABELS[:1], LEACE()),
        ("not finite", X * np.nan, LABELS, LEACE()),
        ("takes class labels", X, GOLDEN["number"], INLP()),
        ("takes class labels", X, GOLDEN["number"], Quadratic()),
        ("2 or more classes", X, np.zeros(60, int), Quadratic()),
    ]:
        with pytest.raises(mijax.MijaxError, match=match) as error:
            fit_eraser(x, labels, method=method)
        assert "\n" not in str(error.value)
    model, llama = cases.model("gpt2"), cases.model("llama")
    wide = Eraser(jnp.ones((32, 1)), jnp.ones((1, 32)), jnp.ones(32))
    with pytest.raises(mijax.MijaxError, match="affine=False"):
        wide.into(llama, "mlp_out", layer=1)
    with pytest.raises(mijax.MijaxError, match="got 'resid_post'"):
        wide.into(model, "resid_post", layer=1)
    small = fit_eraser(X, LABELS, method=LEACE()).at("resid_post", layer=1)
    with pytest.raises(mijax.MijaxError, match="8 features"):
        mijax.run(model, jnp.array([5, 6]), small)
