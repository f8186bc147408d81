"""Smeared keys equal a plain loop, in every pass over a model."""

import cases
import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax._errors import ConfigError
from mijax.attribution import AtPStar, attribute
from mijax.core import Site
from mijax.nn import SmearedKeys

TOKENS = jnp.array([[5, 9, 30, 7, 2], [11, 3, 8, 0, 0]])
LENGTHS = jnp.array([5, 3])
POSITION = jnp.arange(5)


@pytest.fixture(scope="module")
def model():
    """Of rotary positions and grouped queries, so that both are seen."""
    plain = cases.model("llama")
    layers, _, kv_heads, _ = plain.blocks.attention.w_k.shape
    alpha = jax.random.normal(jax.random.key(4), (layers, kv_heads))
    where = lambda model: model.blocks.attention.keys  # noqa: E731
    return eqx.tree_at(where, plain, SmearedKeys(alpha))


def test_scores_equal_a_plain_loop(model):
    """Keys are mixed as they stand before scores: after rotary positions."""
    acts = jax.device_get(eqx.filter_jit(model)(TOKENS[0])[1])
    attention = model.blocks.attention
    share = np.asarray(jax.nn.sigmoid(attention.keys.alpha))
    for layer in range(model.n_layers):
        q, k = acts.blocks.q[layer], acts.blocks.k[layer]
        if attention.rotary is not None:
            rotary = jax.tree.map(lambda leaf, at=layer: leaf[at], attention.rotary)
            q, k = rotary(jnp.asarray(q), POSITION), rotary(jnp.asarray(k), POSITION)
        q, k = np.asarray(q), np.asarray(k)
        for query, head, key in np.ndindex(5, 4, 5):
            if key > query:
                continue
            own = share[layer, head // attention.groups]
            mixed = own * k[key, head] + (1 - own) * k[max(key - 1, 0), head]
            np.testing.assert_allclose(
                acts.blocks.scores[layer, query, head, key],
                q[query, head] @ mixed / np.sqrt(8),
                atol=1e-5,
            )


def test_nothing_is_smeared_in_the_limit():
    keys = jax.random.normal(jax.random.key(0), (5, 4, 8))
    chex.assert_trees_all_equal(SmearedKeys(jnp.full(2, 100.0))(keys), keys)


def test_padding_and_later_tokens_change_nothing_before(model):
    padded = mijax.run(model, TOKENS)
    alone = mijax.run(model, TOKENS[1, :3])
    np.testing.assert_allclose(padded[1, :3], alone, atol=1e-5)


def test_an_edit_of_a_key_reaches_the_next_key_too(model):
    edit = mijax.Zero().at("k", layer=0, position=1)
    wanted = {"scores": Site("scores", layer=0), "k": Site("k", layer=0)}
    found = mijax.capture(model, TOKENS[0], wanted, edit)
    plain = mijax.capture(model, TOKENS[0], wanted)
    assert not found["k"][1].any()
    last = np.abs(np.asarray(found["scores"] - plain["scores"]))[-1].max(0)
    assert ((last > 1e-4) == [False, True, True, False, False]).all()


def test_sweep_equals_loop(model):
    source = mijax.capture(model, TOKENS[::-1], Site("k"))
    metric = mijax.logit_difference(jnp.array([4, 6]), 8, position=LENGTHS - 1)
    patch = mijax.Patch(source)
    over = {"layer": [0, 1], "position": [0, 1, 2]}
    swept = mijax.sweep(model, TOKENS, patch.at("k"), over=over, metric=metric)
    for layer, position in ((0, 1), (1, 0), (1, 2)):
        edit = patch.at("k", layer=layer, position=position)
        alone = metric(mijax.run(model, TOKENS, edit))
        np.testing.assert_allclose(swept.values[:, layer, position], alone, atol=2e-5)


def test_circuits_see_smeared_keys(model):
    graph = mijax.circuits.Graph.of(model)
    ran = mijax.circuits.connected(
        model, graph, mijax.circuits.enter(model, graph, TOKENS[0])
    )
    logits = model.unembed(model.normalise(ran.final))
    np.testing.assert_allclose(logits, mijax.run(model, TOKENS[0]), atol=1e-4)


def test_the_fix_of_queries_and_keys_refuses(model):
    metric = mijax.logit_difference(3, 4)
    with pytest.raises(ConfigError, match="part of two"):
        attribute(
            *(model, TOKENS[:1], TOKENS[:1] + 1, metric, Site("k")),
            method=AtPStar(grad_drop=False),
        )
