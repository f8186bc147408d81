"""Second moments of keys: streamed, resumed, saved, and refused where singular."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.editing import (
    Covariance,
    LowRank,
    WeightEdit,
    covariance,
    load_covariance,
    save_covariance,
)

TOKENS = jax.random.randint(jax.random.key(1), (10, 12), 0, 64)
LENGTHS = np.array([12, 5, 12, 7, 12, 12, 3, 12, 12, 9])


@pytest.fixture(scope="module")
def model():
    return cases.model("gpt2")


def prompts():
    rows = [row[:n] for row, n in zip(TOKENS.tolist(), LENGTHS, strict=True)]
    return mijax.data.Prompts.from_ids(rows)


def by_hand(model, layer):
    keys = mijax.capture(model, TOKENS, mijax.Site("mlp_post", layer=layer))
    rows = np.concatenate(
        [np.asarray(k, np.float64)[:n] for k, n in zip(keys, LENGTHS, strict=True)]
    )
    return rows.T @ rows / len(rows), len(rows)


def test_it_is_the_uncentered_second_moment(model):
    found = covariance(model, prompts(), layers=[0, 2], batch=4)
    for layer in (0, 2):
        expected, count = by_hand(model, layer)
        np.testing.assert_allclose(found.at(layer), expected, rtol=1e-4, atol=1e-5)
    assert found.count == count == LENGTHS.sum()
    # Batches change nothing but the order of sums.
    other = covariance(model, prompts(), layers=[0, 2], batch=10)
    np.testing.assert_allclose(other.moments, found.moments, rtol=1e-5, atol=1e-6)


def test_a_stream_of_tokens(model):
    corpus = mijax.data.Corpus.from_ids([row.tolist() for row in TOKENS])
    stream = mijax.data.Tokens(corpus, seq=12, batch=5, epochs=1, pack=False)
    found = covariance(model, stream, layers=[1])
    whole = covariance(model, TOKENS, layers=[1])
    assert found.count == whole.count == TOKENS.size
    np.testing.assert_allclose(found.moments, whole.moments, rtol=1e-5, atol=1e-6)
    endless = mijax.data.Tokens(corpus, seq=12, batch=5)
    with pytest.raises(mijax.MijaxError, match="never ends"):
        covariance(model, endless, layers=[1])


def test_an_interrupted_estimate_goes_on(model, tmp_path):
    given = {"layers": [1], "batch": 2}
    whole = covariance(model, prompts(), **given)
    done = []

    def stop(at, total):
        done.append(at)
        if at == 3 and len(done) == 3:
            raise KeyboardInterrupt

    resume = tmp_path / "half.npz"
    with pytest.raises(KeyboardInterrupt):
        covariance(model, prompts(), **given, resume=resume, progress=stop)
    again = covariance(model, prompts(), **given, resume=resume, progress=stop)
    assert done == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(again.moments, whole.moments)
    assert again.count == whole.count
    with pytest.raises(mijax.MijaxError, match="another"):
        covariance(model, TOKENS, **given, resume=resume)


def test_file_round_trip_and_refusals(model, tmp_path):
    found = covariance(model, TOKENS, layers=[0, 1])
    path = tmp_path / "c.safetensors"
    save_covariance(found, path)
    again = load_covariance(path)
    np.testing.assert_array_equal(again.moments, found.moments)
    assert (again.layers, again.count, again.bases) == (
        *(found.layers, found.count),
        found.bases,
    )
    delta = LowRank(jnp.ones((64, 1)), jnp.ones((1, 32)))
    edited = WeightEdit.on(model, "blocks.mlp.w_out", delta, layer=1).apply(model)
    again.check(edited, 1)
    with pytest.raises(mijax.MijaxError, match="another model or weight processing"):
        again.check(mijax.testing.tiny_gpt2(jax.random.key(9)), 1)
    with pytest.raises(mijax.MijaxError, match="another model or weight processing"):
        again.check(mijax.nn.fold_norm(model), 1)
    with pytest.raises(mijax.MijaxError, match=r"layers \[0, 1\], got layer 2"):
        again.at(2)
    mijax.editing.save(WeightEdit(()), path)
    with pytest.raises(mijax.MijaxError, match="not a covariance file"):
        load_covariance(path)


def test_a_singular_covariance_is_refused_in_one_line(model):
    few = covariance(model, TOKENS[:2], layers=[1])
    with pytest.raises(mijax.MijaxError, match="singular: rank 24 of 64") as error:
        few.solve(1, np.ones(64))
    assert "\n" not in str(error.value)
    ridge = few.regularized(0.01)
    matrix = ridge.at(1).astype(np.float64)
    np.testing.assert_allclose(matrix @ ridge.solve(1, np.ones(64)), 1, atol=1e-6)
    extra = np.diag(matrix) - np.diag(few.at(1))
    np.testing.assert_allclose(extra, 0.01 * np.trace(few.at(1)) / 64, rtol=1e-3)


def test_null_space():
    values = np.array([4.0, 1.0, 0.01, 0.001])
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    moment = (basis * values) @ basis.T
    found = Covariance(moment[None].astype(np.float32), (3,), 9, ("",))
    free = basis[:, 2:] @ basis[:, 2:].T
    np.testing.assert_allclose(found.null_space(3, below=0.02), free, atol=1e-4)
    np.testing.assert_allclose(found.null_space(3, fraction=0.5), free, atol=1e-4)
    with pytest.raises(mijax.MijaxError, match="0 of 4 directions"):
        found.null_space(3, below=1e-5)
    with pytest.raises(mijax.MijaxError, match="not both"):
        found.null_space(3, below=0.1, fraction=0.1)


def test_refused_input(model):
    with pytest.raises(mijax.MijaxError, match="ascending order"):
        covariance(model, TOKENS, layers=[1, 0])
    with pytest.raises(mijax.MijaxError, match="layers 0 to 2, got layer 3"):
        covariance(model, TOKENS, layers=[3])
    with pytest.raises(mijax.MijaxError, match="no weight"):
        covariance(cases.model("attention_only"), TOKENS, layers=[0])
