"""The tuned lens against the package that published it, and what training does."""

import json
import shutil
import warnings
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS, model

import mijax
from mijax import lens, train
from mijax._errors import LoadError, ShapeError
from mijax.data import AbstractSource, TokenBatch

GOLDEN = Path(__file__).parent.parent / "golden"
FOLDER = GOLDEN / "tuned_lens" / "lens"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "tuned_lens" / "gpt2.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def gpt2():
    return mijax.models.load(GOLDEN / "hf" / "gpt2").model


class Same(AbstractSource):
    """The same batch every time."""

    tokens: jax.Array
    lengths: jax.Array

    def start(self):
        return jnp.int32(0)

    def batch(self, state):
        return state + 1, TokenBatch(self.tokens, self.lengths)


def test_published_files_decode_as_in_the_package(gpt2, golden):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the hash of the unembedding is the same
        found = lens.load_tuned_lens(FOLDER, gpt2)
    read = lens.read(gpt2, golden["tokens"], found)
    expected = golden["logits"].swapaxes(0, 1)
    np.testing.assert_allclose(read.logits, expected, atol=1e-4)
    scores = lens.evaluate_lens(gpt2, golden["tokens"], found)
    np.testing.assert_allclose(scores.kl, golden["kl"], rtol=1e-5)
    np.testing.assert_allclose(scores.cross_entropy, golden["cross_entropy"], rtol=1e-5)


def test_training_is_that_of_the_package(gpt2, golden):
    start = lens.load_tuned_lens(FOLDER, gpt2), ()
    tokens = jnp.asarray(golden["tokens"], jnp.int32)
    source = Same(tokens, jnp.full(3, tokens.shape[1]))
    training = lens.TunedLensTraining(gpt2, steps=5)
    log = train.Memory()
    state = train.fit(training, source, steps=4, start=start, sinks=[log], report=1)
    losses = [row["layers"] for row in log.rows]
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-4)
    for name in ("weight", "bias"):
        found, expected = getattr(state.params, name), golden[f"trained_{name}"]
        change = np.abs(expected - getattr(start[0], name)).max()
        assert np.abs(found - expected).max() < 1e-4 * change


def test_files_come_back_and_others_are_refused(gpt2, tmp_path):
    one = lens.load_tuned_lens(FOLDER, gpt2)
    lens.save_tuned_lens(one, tmp_path / "own", gpt2, name="hf/gpt2", revision="main")
    chex.assert_trees_all_equal(lens.load_tuned_lens(tmp_path / "own", gpt2), one)
    written = json.loads((tmp_path / "own" / "config.json").read_text())
    assert written == json.loads((FOLDER / "config.json").read_text())
    plain = lens.TunedLens(one.weight)
    lens.save_tuned_lens(plain, tmp_path / "plain", gpt2, name="hf/gpt2")
    assert lens.load_tuned_lens(tmp_path / "plain").bias is None
    with pytest.raises(LoadError, match="for 3 layers of width 32"):
        lens.load_tuned_lens(FOLDER, model("attention_only"))
    with pytest.warns(UserWarning, match="different unembedding"):
        lens.load_tuned_lens(FOLDER, model("llama"))
    with pytest.raises(ShapeError, match="fitted on 3 layers"):
        lens.read(model("attention_only"), CLEAN, one)
    other = tmp_path / "other"
    shutil.copytree(FOLDER, other)
    config = written | {"rank": None}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="ignored: rank"):
        lens.load_tuned_lens(other)
    (other / "config.json").write_text(json.dumps(written | {"num_hidden_layers": 2}))
    with pytest.raises(LoadError, match="does not contain one map"):
        lens.load_tuned_lens(other)
    (other / "config.json").write_text(json.dumps(written | {"lens_type": "mlp"}))
    with pytest.raises(LoadError, match="lens_type"):
        lens.load_tuned_lens(other)


@pytest.fixture(scope="module")
def trained():
    one, source = model("gpt2"), Same(CLEAN, LENGTHS)
    training = lens.TunedLensTraining(one, steps=60)
    return train.fit(training, source, steps=60).params


def test_training_comes_closer_to_the_model_at_every_layer(trained):
    one, prompts = model("gpt2"), mijax.data.Prompts.from_ids(rows())
    before = lens.evaluate_lens(one, prompts, lens.LogitLens("resid_pre"))
    after = lens.evaluate_lens(one, prompts, trained)
    assert (after.kl < 0.7 * before.kl).all()
    control = lens.RotatedLens(trained, jax.random.key(0))
    assert (lens.evaluate_lens(one, prompts, control).kl > after.kl).all()
    matrix = lens.lens_transfer(one, prompts, trained)
    chex.assert_trees_all_close(jnp.diagonal(matrix), after.kl, rtol=1e-4)
    assert (matrix.argmin(0) == jnp.arange(3)).all()
    end = lens.evaluate_lens(one, prompts)
    assert end.kl[-1] < 1e-5
    chex.assert_trees_all_close(
        end.cross_entropy[-1], end.model_cross_entropy, rtol=1e-4
    )
    bits = end.bits_per_byte(end.tokens)
    chex.assert_trees_all_close(bits, end.cross_entropy / np.log(2), rtol=1e-5)


def rows():
    return [r[:n] for r, n in zip(CLEAN.tolist(), LENGTHS.tolist(), strict=True)]


def test_evaluation_is_the_mean_over_tokens_of_each_prompt_alone(trained):
    one = model("gpt2")
    whole = lens.evaluate_lens(one, mijax.data.Prompts.from_ids(rows()), trained)
    kl, p, q = [], [], []
    for ids in rows():
        x = mijax.capture(one, jnp.array(ids), "resid_pre")
        logits = one.unembed(one.normalise(trained(x[None])[0]))
        log_q = jax.nn.log_softmax(logits)
        log_p = jax.nn.log_softmax(mijax.run(one, jnp.array(ids)))
        kl.append((jnp.exp(log_p) * (log_p - log_q)).sum(-1).T)
        p.append(jnp.exp(log_p))
        q.append(jnp.exp(log_q).swapaxes(0, 1))
    np.testing.assert_allclose(whole.kl, np.concatenate(kl).mean(0), rtol=1e-4)
    p, q = np.concatenate(p).mean(0), np.concatenate(q).mean(0)
    np.testing.assert_allclose(whole.bias, (p * np.log(p / q)).sum(-1), rtol=1e-3)


def test_next_token_loss_leaves_out_the_last_token_and_padding():
    one = model("gpt2")
    training = lens.TunedLensTraining(one, steps=1, loss_of=lens.NextTokenLoss())
    params, _ = training.start(training.key())
    at = train.Step(jnp.int32(0), training.key())
    loss = eqx.filter_jit(training.loss)
    batch = TokenBatch(CLEAN, LENGTHS)
    total, (info, _) = loss(params, (), batch, at)
    prompts = mijax.data.Prompts.from_ids(rows())
    expected = lens.evaluate_lens(one, prompts, lens.LogitLens("resid_pre"))
    chex.assert_trees_all_close(info["layers"], expected.cross_entropy, rtol=1e-5)
    chex.assert_trees_all_close(total, expected.cross_entropy.sum(), rtol=1e-5)
    other = TokenBatch(CLEAN.at[1, 5:].set(9), LENGTHS)
    chex.assert_trees_all_equal(loss(params, (), other, at)[0], total)
