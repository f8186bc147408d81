"""penzai selects in models, and treescope draws models, activations and edits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import treescope
from penzai import pz

import mijax
from mijax import nn

MODELS = ("tiny_gpt2", "tiny_llama", "tiny_parallel", "tiny_attention_only")
TOKENS = jnp.array([1, 2, 3])


@pytest.fixture(params=MODELS)
def model(request):
    return getattr(mijax.testing, request.param)(jax.random.key(0))


def draws(thing):
    assert treescope.render_to_text(thing)
    assert treescope.render_to_html(thing).startswith("<")


def test_models_and_activations_are_drawn(model):
    draws(model)
    draws(model(TOKENS)[1])


def test_edits_are_drawn():
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    acts = mijax.capture(model, TOKENS, mijax.Site("resid_pre"))
    batch = mijax.capture(
        model, jnp.array([[1, 2, 3], [4, 5, 6]]), mijax.Site("resid_pre")
    )
    edits = [
        mijax.Zero(),
        mijax.Set(1.0),
        mijax.Add(jnp.ones(32), 2.0),
        mijax.Scale(0.5),
        mijax.Noise(jax.random.key(1)),
        mijax.Project(jnp.ones(32)),
        mijax.Patch(acts),
        mijax.Mean(batch),
    ]
    for edit in edits:
        draws(edit)
        draws(edit.at("resid_pre", layer=1, position=2))
    draws(
        mijax.sweep(
            model,
            TOKENS,
            mijax.Zero().at("z"),
            over=("layer", "head"),
            metric=mijax.logit_difference(4, 5),
        )
    )


def test_selected_modules_are_replaced():
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    edited = pz.select(model).at_instances_of(nn.GELU).set(nn.ReLU())
    assert isinstance(edited.blocks.mlp.activation, nn.ReLU)
    by_hand = eqx.tree_at(lambda m: m.blocks.mlp.activation, model, nn.ReLU())
    assert jnp.array_equal(mijax.run(edited, TOKENS), mijax.run(by_hand, TOKENS))
    assert not jnp.allclose(mijax.run(edited, TOKENS), mijax.run(model, TOKENS))


def test_selected_modules_are_changed():
    model = mijax.testing.tiny_llama(jax.random.key(0))
    norms = pz.select(model).at_instances_of(nn.RMSNorm)
    assert norms.count() == 3  # two stacked ones in the blocks, the final one
    halved = norms.apply(
        lambda norm: eqx.tree_at(lambda n: n.weight, norm, norm.weight / 2)
    )
    assert jnp.array_equal(halved.norm.weight, model.norm.weight / 2)
    assert mijax.run(halved, TOKENS).shape == (3, 64)
