"""Sites and edits of mixtures of experts, read and changed by layer and expert."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any, cast

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import golden, write

import mijax
from mijax import Site, models, nn

NAME = "mixtral"
LAYERS, EXPERTS, TOP = 3, 4, 2
METRIC = mijax.logit_difference(3, 4, position=jnp.array([9, 5]))


@functools.cache
def mixtral():
    """A tiny Mixtral, and two prompts."""
    with tempfile.TemporaryDirectory() as folder:
        model = models.load(write(Path(folder), NAME)).model
    tokens = golden(NAME)["tokens"]
    return model, jnp.asarray(np.stack([tokens, tokens[::-1]]), jnp.int32)


def by_hand(mlp, x):
    """Each token's chosen experts, one after the other, in float64."""
    mlp = jax.tree.map(lambda a: np.asarray(a, np.float64), mlp)
    weights, out = np.zeros((len(x), EXPERTS)), np.zeros((len(x), EXPERTS, 16))
    for row, token in enumerate(np.asarray(x, np.float64)):
        share = np.exp(token @ mlp.w_router)
        share /= share.sum()
        chosen = np.argsort(-share)[: mlp.routing.count]
        for i in chosen:
            weights[row, i] = share[i]
            if mlp.routing.renormalize:
                weights[row, i] /= share[chosen].sum()
            gate = token @ mlp.w_gate[:, i]
            hidden = gate / (1 + np.exp(-gate)) * (token @ mlp.w_in[:, i])
            out[row, i] = weights[row, i] * (hidden @ mlp.w_out[i])
    return weights, out


@pytest.mark.parametrize("renormalize", [True, False])
def test_sites_hold_what_a_loop_over_experts_computes(renormalize):
    model, tokens = mixtral()
    tokens = tokens[0]
    blocks: Any = model.blocks
    mlp = dataclasses.replace(blocks.mlp, routing=nn.TopExperts(TOP, renormalize))
    model = dataclasses.replace(model, blocks=dataclasses.replace(blocks, mlp=mlp))
    acts = eqx.filter_jit(model)(tokens)[1].blocks
    for layer in range(LAYERS):
        one = jax.tree.map(lambda a, at=layer: a[at], mlp)
        weights, out = by_hand(one, acts.mlp_in[layer])
        chex.assert_trees_all_close(acts.router_weights[layer], weights, atol=1e-5)
        chex.assert_trees_all_close(acts.expert_out[layer], out, atol=1e-4)
        chex.assert_trees_all_close(acts.mlp_out[layer], out.sum(1), atol=1e-4)
    chosen = (acts.router_weights != 0).sum(-1)
    assert (chosen == TOP).all()
    found = mijax.sites(model, tokens)
    assert found["router_logits"].axes == ("position", "expert")
    assert found["expert_out"].axes == ("position", "expert", "embed")


def test_a_part_of_the_site_is_read_by_expert():
    model, tokens = mixtral()
    sites = {
        "out": Site("expert_out", layer=1, expert=3),
        "list": Site("expert_out", position=4, expert=[0, 2]),
        "weight": Site("router_weights", expert=3),
    }
    found = mijax.capture(model, tokens, sites)
    whole = mijax.capture(model, tokens, ["expert_out", "router_weights"])
    chex.assert_trees_all_equal(found["out"], whole[0][:, 1, :, 3])
    chex.assert_trees_all_equal(found["list"], whole[0][:, :, 4, jnp.array([0, 2])])
    chex.assert_trees_all_equal(found["weight"], whole[1][..., 3])


@pytest.mark.parametrize("site", ["expert_out", "router_weights"])
def test_sweep_over_layers_and_experts_is_a_loop_of_runs(site):
    model, tokens = mixtral()
    zero = mijax.Zero()
    found = mijax.sweep(
        model, tokens, zero.at(site), over=("layer", "expert"), metric=METRIC
    )
    assert [axis.name for axis in found.axes] == ["layer", "expert"]
    assert found.values.shape == (2, LAYERS, EXPERTS)
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            at = zero.at(site, layer=layer, expert=expert)
            one = METRIC(mijax.run(model, tokens, at))
            chex.assert_trees_all_close(found.values[:, layer, expert], one, atol=2e-5)
    assert jnp.ptp(found.values, axis=(1, 2)).min() > 1e-2


def test_a_weight_of_zero_is_an_output_of_zero():
    model, tokens = mixtral()
    zero, place = mijax.Zero(), {"layer": 1, "expert": [0, 3]}
    by_weight = mijax.run(model, tokens, zero.at("router_weights", **place))
    by_output = mijax.run(model, tokens, zero.at("expert_out", **place))
    chex.assert_trees_all_close(by_weight, by_output, atol=1e-6)
    assert jnp.abs(by_output - mijax.run(model, tokens)).max() > 1e-2


def test_edits_of_one_expert_at_once():
    model, tokens = mixtral()
    acts = mijax.capture(model, tokens[::-1], "expert_out")
    patch, plain = mijax.Patch(acts), mijax.run(model, tokens)
    own = mijax.Patch(mijax.capture(model, tokens, "expert_out"))
    chex.assert_trees_all_equal(mijax.run(model, tokens, own.at("expert_out")), plain)
    each = [patch.at("expert_out", layer=1, expert=i) for i in range(EXPERTS)]
    all_of_them = mijax.run(model, tokens, each)
    some = patch.at("expert_out", layer=1, expert=slice(0, EXPERTS))
    chex.assert_trees_all_close(mijax.run(model, tokens, some), all_of_them, atol=1e-6)
    total = mijax.Patch(mijax.capture(model, tokens[::-1], "mlp_out"))
    expected = mijax.run(model, tokens, total.at("mlp_out", layer=1))
    chex.assert_trees_all_close(all_of_them, expected, atol=1e-4)
    # An expert for each prompt.
    which = mijax.PerPrompt([0, 3])
    found = mijax.run(
        model, tokens, mijax.Zero().at("expert_out", layer=1, expert=which)
    )
    for prompt, expert in enumerate([0, 3]):
        one = mijax.Zero().at("expert_out", layer=1, expert=expert)
        one = mijax.run(model, tokens, one)[prompt]
        chex.assert_trees_all_close(found[prompt], one, atol=1e-6)


def test_edits_while_generating_and_of_an_edited_model():
    model, tokens = mixtral()
    zero = mijax.Zero().at("expert_out", layer=1, expert=2)
    kept = mijax.edited(model, zero)
    expected = mijax.run(model, tokens, zero)
    chex.assert_trees_all_close(mijax.run(kept, tokens), expected, atol=1e-5)
    found = mijax.generate(model, tokens, steps=3, edits=zero)
    chex.assert_trees_all_equal(found, mijax.generate(kept, tokens, steps=3))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"site": "expert_out", "expert": 4}, "expert 4 is out of range"),
        ({"site": "expert_out", "head": 1, "expert": 1}, "are one axis"),
        ({"site": "router_weights", "expert": 9}, "expert 9 is out of range"),
        ({"site": "expert_out", "mlp": 1}, "has no axis 'mlp'"),
        ({"site": "mlp_out", "expert": 1}, "has no axis 'expert'"),
    ],
)
def test_places_that_do_not_exist_are_refused(place, words):
    model, tokens = mixtral()
    site = place.pop("site")
    with pytest.raises(mijax.MijaxError, match=words):
        mijax.run(model, tokens, mijax.Zero().at(site, **place))
    with pytest.raises(mijax.MijaxError, match=words):
        mijax.capture(model, tokens, Site(site, **place))


def test_a_sweep_refuses_the_axis_that_an_edit_fixes():
    model, tokens = mixtral()
    fixed = mijax.Zero().at("expert_out", expert=1)
    with pytest.raises(mijax.MijaxError, match="fixed"):
        mijax.sweep(model, tokens, fixed, over="expert", metric=METRIC)
    found = mijax.sweep(model, tokens, fixed, over="layer", metric=METRIC).values
    both = mijax.sweep(
        model,
        tokens,
        mijax.Zero().at("expert_out"),
        over=("layer", "expert"),
        metric=METRIC,
    )
    chex.assert_trees_all_close(found, both.values[..., 1], atol=2e-5)


def test_more_chosen_experts_than_experts_are_refused(tmp_path):
    def many(config, tensors):
        config["num_experts_per_tok"] = 5

    with pytest.raises(mijax.MijaxError, match="5 experts are chosen"):
        models.load(write(tmp_path, NAME, many))


def test_folded_norms_leave_logits_as_they_are():
    model, tokens = mixtral()
    folded = nn.fold_norm(cast("nn.Transformer", model))
    blocks: Any = folded.blocks
    assert blocks.norm_2.weight is None
    expected = mijax.run(model, tokens)
    chex.assert_trees_all_close(mijax.run(folded, tokens), expected, atol=1e-4)


def test_weights_of_experts_are_split_over_neurons():
    mesh = jax.make_mesh((1, 1), ("data", "model"))
    split = models.Sharding(embed="data")
    for name, shape, over in (
        ("w_gate", (3, 16, 4, 24), (None, "data", None, "model")),
        ("w_out", (3, 4, 24, 16), (None, None, "model", "data")),
        ("w_router", (3, 16, 4), (None, None, None)),
    ):
        assert tuple(split.of(f"blocks.mlp.{name}", shape, mesh)) == over
