"""Verbs on texts equal the same verbs on the ids that the tokenizer gives."""

import functools
import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS, METRIC, model

import mijax
from mijax._errors import ShapeError, TokenError
from mijax.core import LanguageModel

TEXT, OTHER = "abcdeabcd", "xyzxy"


@functools.cache
def lm():
    return mijax.models.load("induction-2l")


def ids(text):
    return lm().tokenizer.encode(text, add_special=True)


def test_a_text_is_its_ids_with_the_special_tokens():
    assert isinstance(lm(), LanguageModel)
    assert ids(TEXT)[0] == lm().tokenizer.bos
    logits = mijax.run(lm(), TEXT)
    chex.assert_trees_all_equal(logits, mijax.run(lm().model, ids(TEXT)))
    chex.assert_trees_all_equal(logits, mijax.run(lm(), ids(TEXT)))
    site = mijax.Site("z", layer=1, position=2)
    both = (mijax.capture(one, t, site) for one, t in _both())
    chex.assert_trees_all_equal(*both)
    metric = mijax.logit_difference(5, 6)
    both = (mijax.gradients(one, t, metric, site) for one, t in _both())
    chex.assert_trees_all_equal(*both)
    edit = mijax.Zero().at("z")
    both = (
        mijax.sweep(one, t, edit, over="layer", metric=metric).values
        for one, t in _both()
    )
    chex.assert_trees_all_equal(*both)
    both = (mijax.generate(one, t, steps=3) for one, t in _both())
    chex.assert_trees_all_equal(*both)


def _both():
    return (lm(), TEXT), (lm().model, ids(TEXT))


def test_several_texts_are_padded():
    texts = [TEXT, OTHER]
    logits = mijax.run(lm(), texts)
    for row, text in zip(logits, texts, strict=True):
        alone = mijax.run(lm(), text)
        chex.assert_trees_all_close(row[: len(alone)], alone, atol=1e-5)
    new = mijax.generate(lm(), texts, steps=3)
    assert new[1].tolist() == mijax.generate(lm(), OTHER, steps=3).tolist()
    best = mijax.lens.logit_lens(lm(), texts, position=2, top=1)
    assert best.tokens[:, -1, 0].tolist() == logits[:, 2].argmax(-1).tolist()


def test_top_tokens():
    texts = [TEXT, OTHER]
    found = mijax.top_tokens(lm(), texts, k=3)
    for i, text in enumerate(texts):
        logits = np.asarray(mijax.run(lm(), text)[-1], np.float64)
        order = np.argsort(-logits, kind="stable")[:3]
        assert found.ids[i].tolist() == order.tolist()
        assert list(found.tokens[i]) == lm().tokenizer.pieces(order)
        p = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(found.probabilities[i], p[order], atol=1e-5)
        np.testing.assert_allclose(found.logits[i], logits[order], atol=1e-4)
    one = mijax.top_tokens(lm(), TEXT, k=2)
    assert one.tokens[0] == "e"
    assert repr(one).startswith("TopTokens('e' 0.")
    assert "1 more prompt" in repr(found)
    assert "\n" not in repr(found)
    bare = mijax.top_tokens(model("gpt2"), CLEAN, k=2, position=LENGTHS - 1)
    assert bare.tokens is None
    best = mijax.run(model("gpt2"), CLEAN)[jnp.arange(3), LENGTHS - 1].argmax(-1)
    chex.assert_trees_all_equal(bare.ids[:, 0], best.astype(jnp.int32))
    assert repr(bare).startswith(f"TopTokens({int(best[0])} 0.")
    ablated = mijax.top_tokens(lm(), TEXT, k=2, edits=mijax.Zero().at("z"))
    assert ablated.ids.tolist() != one.ids.tolist()


def test_refused():
    # Texts of a bare model: the annotations allow them, as a language model takes them.
    with pytest.raises(TokenError, match=r"bare model.*lm = mijax.models.load"):
        mijax.run(model("gpt2"), "abc")
    with pytest.raises(TokenError, match="has no tokens"):
        mijax.run(Wordless(lm().model, Empty()), "abc")
    with pytest.raises(ShapeError, match="k is from 1 to"):
        mijax.top_tokens(lm(), TEXT, k=0)


class Wordless:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer


class Empty:
    def encode(self, text, add_special):
        return []


def test_only_what_is_read_is_unembedded():
    weight = jax.random.normal(jax.random.key(0), (97, 32))
    one = eqx.tree_at(lambda m: m.embedding.weight, model("gpt2"), weight)
    sites = {
        name: mijax.Site(name, position=LENGTHS - 1)
        for name in ("resid_final", "logits")
    }
    verbs = {
        "capture": lambda t: mijax.capture(one, t, sites),
        "gradients": lambda t: mijax.gradients(one, t, METRIC, mijax.Site("z")),
        "top_tokens": lambda t: mijax.top_tokens(one, t).logits,
        "lens": lambda t: mijax.lens.logit_lens(one, t, position=3, top=2).logits,
    }
    whole = re.compile(r"\b7,97\]")
    assert whole.search(str(jax.make_jaxpr(lambda t: mijax.run(one, t))(CLEAN)))
    for name, verb in verbs.items():
        assert not whole.search(str(jax.make_jaxpr(verb)(CLEAN))), name
    found = mijax.capture(one, CLEAN, sites)
    every = mijax.capture(one, CLEAN, {name: mijax.Site(name) for name in sites})
    rows = jnp.arange(3), LENGTHS - 1
    for name in sites:
        chex.assert_trees_all_close(found[name], every[name][rows], atol=1e-5)
