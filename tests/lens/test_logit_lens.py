"""The logit lens is the end of the model, at every layer."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LAST, LENGTHS, model

import mijax
from mijax import lens
from mijax._errors import FrameError
from mijax.core import AbstractBlock, AbstractModel
from mijax.lens import _reading, logit_lens


def test_it_is_the_loop_over_layers_and_ends_in_the_model():
    one = model("gpt2")
    acts = mijax.capture(one, CLEAN, mijax.Site("resid_post"))
    end = eqx.filter_jit(lambda x: one.unembed(one.normalise(x)))
    loop = np.stack([end(acts[:, layer]) for layer in range(one.n_layers)], axis=1)
    whole = logit_lens(one, CLEAN)
    chex.assert_trees_all_close(whole.logits, loop, atol=1e-4)
    logits = mijax.run(one, CLEAN)
    chex.assert_trees_all_close(whole.logits[:, -1], logits, atol=1e-4)
    expected = jax.nn.log_softmax(loop, axis=-1)
    chex.assert_trees_all_close(whole.log_probabilities(), expected, atol=1e-4)
    # The last token of each prompt, tokens of its own.
    ids = np.arange(2 * len(CLEAN)).reshape(-1, 2)
    some = logit_lens(one, CLEAN, position=LAST, ids=ids)
    rows = np.arange(len(CLEAN))
    picked = np.take_along_axis(loop[rows, :, LAST], ids[:, None], axis=-1)
    chex.assert_trees_all_close(some.logits, picked, atol=1e-4)
    assert (some.tokens == ids[:, None]).all()
    best = logit_lens(one, CLEAN, top=3)
    chex.assert_trees_all_close(best.logits, -np.sort(-loop)[..., :3], atol=1e-4)
    chex.assert_trees_all_close(best.total, whole.total, atol=1e-4)


def test_one_prompt_and_other_sites():
    one = model("gpt2")
    alone = logit_lens(one, CLEAN[1], ids=[4, 7])
    batch = logit_lens(one, CLEAN, ids=[4, 7])
    chex.assert_trees_all_close(alone.logits, batch.logits[1], atol=1e-4)
    before = logit_lens(one, CLEAN, ids=[4, 7], site="resid_pre")
    chex.assert_trees_all_close(before.logits[:, 1:], batch.logits[:, :-1], atol=1e-4)
    embed = mijax.capture(one, CLEAN, mijax.Site("embed"))
    first = one.unembed(one.normalise(embed))[..., jnp.array([4, 7])]
    chex.assert_trees_all_close(before.logits[:, 0], first, atol=1e-4)


def test_logits_of_all_layers_are_never_there():
    vocab, layers, seq = 50_000, 40, 8
    weight = jnp.ones((vocab, 32))
    wide = eqx.tree_at(lambda m: m.embedding.weight, model("attention_only"), weight)
    wide = eqx.tree_at(lambda m: m.unembedding, wide, None)
    stream = np.ones((1, layers, seq, 32), np.float32)
    targets = np.zeros((1, seq), np.int32)

    def memory(*options):
        given = (wide, lens.LogitLens(), stream, None, *options)
        call = _reading.read_rows.lower(*given).compile()
        return call.compiled.memory_analysis().temp_size_in_bytes

    # All of them would take 160 bytes per position and token of the vocabulary.
    assert memory(None, 2) < 16 * seq * vocab
    assert memory(targets, None) < 26 * seq * vocab


def test_entropy_and_ranks_are_those_of_all_logits():
    one = model("gpt2")
    prompts = mijax.data.Prompts.from_ids(
        [row[:n] for row, n in zip(CLEAN.tolist(), LENGTHS.tolist(), strict=True)]
    )
    whole = np.asarray(logit_lens(one, CLEAN).logits, np.float64)
    targets = lens.next_tokens(prompts)
    assert targets.tolist()[1] == [2, 3, 4, 5, -1, -1, -1]
    ids = np.array([[3, 9], [1, 2], [60, 7]])
    found = logit_lens(one, prompts, ids=ids, targets=targets)
    log_p = whole - np.log(np.exp(whole).sum(-1, keepdims=True))
    mask = np.asarray(prompts.mask)[:, None]
    entropy = np.where(mask, -(np.exp(log_p) * log_p).sum(-1), np.nan)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)
    profile = np.nanmean(entropy, axis=-1)
    np.testing.assert_allclose(found.entropy_profile(), profile, atol=1e-5)
    for prompt, layer, at in np.ndindex(3, one.n_layers, 7):
        place = prompt, layer, at
        if at >= LENGTHS[prompt]:
            assert np.isnan(found.logits[place]).all()
            assert (found.ranks[place] == -1).all()
            continue
        larger = whole[place][None] > whole[place][ids[prompt]][:, None]
        assert found.ranks[place].tolist() == larger.sum(-1).tolist()
        goal = targets[prompt, at]
        if goal < 0:
            assert found.target_ranks[place] == -1
            assert np.isnan(found.target_log_probabilities[place])
            continue
        assert found.target_ranks[place] == (whole[place] > whole[place][goal]).sum()
        np.testing.assert_allclose(
            found.target_log_probabilities[place], log_p[place][goal], atol=1e-5
        )
    # A tie counts only what is strictly larger; the last position reads one per prompt.
    best = logit_lens(one, prompts, top=2, position=LAST, targets=[1, -1, 3])
    assert (best.ranks == np.arange(2)).all()
    assert best.target_ranks.shape == (3, one.n_layers)
    assert (best.target_ranks[1] == -1).all()
    tied = eqx.tree_at(lambda m: m.embedding.weight, one, jnp.ones((64, 32)))
    assert (logit_lens(tied, CLEAN[0], ids=[5, 63]).ranks == 0).all()


def test_prediction_depth_is_the_layer_after_the_last_change():
    tokens = jnp.array([[4, 4, 7], [1, 2, 7], [2, 2, 7]])[..., None]
    zero = jnp.zeros((3, 3))
    reading = lens.LensReading(
        zero[..., None], tokens, zero, zero, tokens, batched=False
    )
    assert reading.prediction_depth().tolist() == [2, 1, 0]
    with pytest.raises(mijax.MijaxError, match="top=1"):
        logit_lens(model("gpt2"), CLEAN).prediction_depth()


class Scaled(AbstractModel):
    """A model that changes its logits after the unembedding."""

    blocks: AbstractBlock
    inside: AbstractModel

    def embed(self, tokens, position):
        return self.inside.embed(tokens, position)

    def normalise(self, x):
        return self.inside.normalise(x)

    def unembed(self, x, ids=None):
        return self.inside.unembed(x, ids)

    def __call__(self, tokens, edits=None, **options):
        logits, acts = self.inside(tokens, edits, **options)
        return 30 * jnp.tanh(logits / 3), acts


def test_a_model_that_ends_in_another_way_is_refused():
    one = model("gpt2")
    with pytest.raises(FrameError, match="differ from the model's logits"):
        logit_lens(Scaled(one.blocks, one), CLEAN, top=1)
    weight = jnp.eye(5, 4)
    head = mijax.nn.Unembedding(weight)

    def capped(x):
        return jnp.tanh(head(mijax.site("resid_post", x, "embed")))

    wrong = mijax.nn.Readout(mijax.nn.Identity(), head)
    stated = mijax.model(capped, jnp.ones(4), readout=wrong)
    with pytest.raises(FrameError, match="differ from the model's logits"):
        logit_lens(stated, 3 * jnp.ones((2, 4)))


def test_the_control_rotates_the_stream_and_keeps_its_norm(key):
    one = model("llama")
    control = lens.RotatedLens(lens.LogitLens(), key)
    stream = mijax.capture(one, CLEAN, "resid_post")
    rotated = control(stream)
    norms = [jnp.linalg.norm(x, axis=-1) for x in (stream, rotated)]
    chex.assert_trees_all_close(*norms, rtol=1e-5)
    gram = [jnp.einsum("plse,plte->plst", x, x) for x in (stream, rotated)]
    chex.assert_trees_all_close(*gram, rtol=1e-4, atol=1e-3)
    found = lens.read(one, CLEAN, control)
    expected = one.unembed(one.normalise(rotated))
    chex.assert_trees_all_close(found.logits, expected, atol=1e-4)
    assert jnp.abs(found.logits - logit_lens(one, CLEAN).logits).max() > 0.5


def test_refuses():
    one = model("gpt2")
    with pytest.raises(mijax.MijaxError, match="resid_post"):
        logit_lens(one, CLEAN, site="resid_pots")
    with pytest.raises(mijax.MijaxError, match="`ids`"):
        logit_lens(one, CLEAN, ids=[1], top=1)
    with pytest.raises(mijax.MijaxError, match="between 1 and 64"):
        logit_lens(one, CLEAN, top=65)
    with pytest.raises(mijax.MijaxError, match="rows of ids"):
        logit_lens(one, CLEAN, ids=np.zeros((9, 1), int))
    with pytest.raises(mijax.MijaxError, match=r"\[k\]"):
        logit_lens(one, CLEAN, ids=0)
    with pytest.raises(mijax.MijaxError, match="from 0 to 63, got 64"):
        logit_lens(one, CLEAN, ids=[3, 64])
    with pytest.raises(mijax.MijaxError, match="from 0 to 63, got 64"):
        logit_lens(one, CLEAN, targets=64)
    with pytest.raises(mijax.MijaxError, match=r"one per prompt \[3\]"):
        logit_lens(one, CLEAN, targets=[1, 2])
