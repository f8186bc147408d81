"""The logit lens is the end of the model, at every layer."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LAST, model

import mijax
from mijax.lens import _logit_lens, logit_lens


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
    call = _logit_lens._read.lower(wide, stream, None, 2, True).compile()
    assert call.compiled.memory_analysis().temp_size_in_bytes < 16 * seq * vocab


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
