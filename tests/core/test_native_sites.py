"""`sites` and `harvest` reach the sites of native models, as the verbs do."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from cases import BLOCK_SITES, CLEAN, MODELS, model, sites

import mijax
from mijax.core._sites import get

AXES = {
    **dict.fromkeys(("q", "k", "v", "z"), ("position", "head", "head_dim")),
    **dict.fromkeys(("scores", "pattern"), ("position", "head", "key_position")),
    **dict.fromkeys(("mlp_pre", "mlp_post"), ("position", "mlp")),
    "logits": ("position", "vocab"),
}
TOKENS = CLEAN[0]


@pytest.mark.parametrize("name", MODELS)
def test_native_sites_are_listed_with_their_axes(name):
    found = mijax.sites(model(name), TOKENS)
    assert set(found) == set(sites(name))
    acts, layers = model(name)(TOKENS)[1], model(name).n_layers
    for site, info in found.items():
        assert info.axes == AXES.get(site, ("position", "embed"))
        assert info.layers == (layers if site in BLOCK_SITES else None)
        shape = (layers, *info.shapes[0]) if info.layers else info.shapes[0]
        assert get(acts, site).shape == shape


@pytest.mark.parametrize("name", MODELS)
def test_harvest_reads_and_edits_what_the_verbs_do(name):
    run = lambda tokens: model(name)(tokens)[0]  # noqa: E731
    logits, acts = jax.jit(mijax.harvest(run))(TOKENS)
    plain, record = eqx.filter_jit(model(name))(TOKENS)
    chex.assert_trees_all_equal(logits, plain)
    for site in sites(name):
        chex.assert_trees_all_close(acts[site], get(record, site), atol=1e-6)
        place = {"layer": 0} if site in BLOCK_SITES else {}
        # One feature, since a norm that follows makes nothing of a factor.
        scale = mijax.Scale(0.1).at(site, feature=1, **place)
        expected = mijax.run(model(name), TOKENS, scale)

        def shrink(value, at):
            return jnp.where(at.layer == 0, value.at[..., 1].multiply(0.1), value)

        edited, _ = mijax.harvest(run, edits={site: shrink}, want=())(TOKENS)
        chex.assert_trees_all_close(edited, expected, atol=2e-5)
        assert jnp.abs(edited - plain).max() > 1e-3, site


def test_one_query_head_reads_another_key_of_its_group():
    run = lambda tokens: model("llama")(tokens)[0]  # noqa: E731
    outs = [
        mijax.harvest(run, edits={"k": lambda k, at, h=h: k.at[:, h].set(0)})(TOKENS)[0]
        for h in (0, 1)
    ]
    assert jnp.abs(outs[0] - outs[1]).max() > 1e-3


def test_harvest_of_harvest_applies_both_edits():
    run = lambda tokens: model("gpt2")(tokens)[0]  # noqa: E731
    half = {"z": lambda z, at: z / 2}
    once = mijax.harvest(run, edits={"z": lambda z, at: z / 4})(TOKENS)
    inner = lambda tokens: mijax.harvest(run, edits=half)(tokens)[0]  # noqa: E731
    chex.assert_trees_all_close(mijax.harvest(inner, edits=half)(TOKENS), once)


def test_values_that_a_vmap_does_not_map_keep_their_axes():
    def scaled(x, weight):
        return mijax.site("weight", weight, "embed") * mijax.site("x", x, "embed")

    each = jax.vmap(scaled, in_axes=(0, None))
    found = mijax.sites(each, jnp.ones((2, 3)), jnp.ones(3))
    assert found["weight"].axes == ("embed",)
    assert found["x"].axes == ("mapped", "embed")
