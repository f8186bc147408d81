"""Latent attention and routed experts of a DeepSeek-V3, against loops by hand."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import golden, write

import mijax
from mijax import Site, circuits, lens, models, nn
from mijax._errors import FrameError, LoadError, SiteError

NAME = "deepseek_v3"
HEADS, ROTATED, TOP, KEPT, SIZE = 4, 4, 3, 2, 2
METRIC = mijax.logit_difference(3, 4, position=9)


@functools.cache
def deepseek():
    with tempfile.TemporaryDirectory() as folder:
        model = models.load(write(Path(folder), NAME)).model
    return model, jnp.asarray(golden(NAME)["tokens"], jnp.int32)[None]


def test_keys_and_values_of_all_heads_are_made_of_one_latent():
    model, tokens = deepseek()
    latent, k, v = mijax.capture(model, tokens[0], ["kv_latent", "k", "v"])
    assert mijax.sites(model, tokens[0])["kv_latent"].axes == ("position", "latent")
    attention = model.blocks.attention
    made = jnp.einsum("lnc,lchd->lnhd", latent, attention.w_k_up)
    chex.assert_trees_all_close(k[..., ROTATED:], made, atol=1e-5)
    made = jnp.einsum("lnc,lchd->lnhd", latent, attention.w_v_up)
    chex.assert_trees_all_close(v, made, atol=1e-5)
    shared = jnp.broadcast_to(k[:, :, :1, :ROTATED], k[..., :ROTATED].shape)
    chex.assert_trees_all_equal(k[..., :ROTATED], shared)
    assert jnp.abs(shared).max() > 0.1


def test_an_edit_of_the_latent_is_one_of_keys_and_values():
    model, tokens = deepseek()
    place, rest = {"layer": 1, "position": 4}, list(range(ROTATED, 10))
    zero = mijax.Zero()
    both = [zero.at("k", **place, feature=rest), zero.at("v", **place)]
    found = mijax.run(model, tokens, zero.at("kv_latent", **place))
    chex.assert_trees_all_close(found, mijax.run(model, tokens, both), atol=1e-5)
    assert jnp.abs(found - mijax.run(model, tokens)).max() > 1e-3
    swept = mijax.sweep(
        model, tokens, zero.at("kv_latent"), over=("layer", "position"), metric=METRIC
    )
    assert float(swept.values[0, 1, 4]) == pytest.approx(
        float(METRIC(found)[0]), abs=2e-5
    )


def test_a_key_of_one_head_reads_its_own_stream_in_circuits():
    model, tokens = deepseek()
    corrupt = tokens.at[0, 4].set(1)
    task = circuits.Task(tokens, corrupt, metric=METRIC)
    graph = circuits.Graph.of(model)
    edges = np.array(graph.edges)
    cases = {"k": "a0.h1<k> <- input", "v": "a0.h2<v> <- input"}
    cut = []
    for name in cases.values():
        one = edges.copy()
        one[graph.edge(name)] = False
        cut.append(circuits.Circuit(graph, one))
    full = circuits.Circuit.full(graph)
    found = circuits.run_circuits(model, task, [full, *cut], progress=False)[:, 0]
    expected = [mijax.run(model, tokens)]
    for letter, head in (("k", 1), ("v", 2)):
        acts = mijax.capture(model, corrupt, Site(letter))
        patch = mijax.Patch(acts).at(letter, layer=0, head=head)
        expected.append(mijax.run(model, tokens, patch))
    expected = [float(METRIC(logits)[0]) for logits in expected]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert len({round(x, 3) for x in expected}) == 3


def test_experts_are_the_best_of_the_best_groups():
    model, tokens = deepseek()
    logits, weights, outs, whole, post = mijax.capture(
        model,
        tokens[0],
        ["router_logits", "router_weights", "expert_out", "mlp_out", "mlp_post"],
    )
    routing = model.blocks.mlp.experts.routing
    for layer in (1, 2):
        bias = np.asarray(routing.correction[layer], np.float64)
        for row in np.asarray(logits[layer], np.float64):
            share = 1 / (1 + np.exp(-row))
            rated = (share + bias).reshape(-1, SIZE)
            best = np.argsort(-rated.sum(1))[:KEPT]
            inside = [g * SIZE + i for g in best for i in range(SIZE)]
            chosen = sorted(inside, key=lambda i: -(share + bias)[i])[:TOP]
            expected = np.zeros(8)
            expected[chosen] = 2.5 * share[chosen] / share[chosen].sum()
            at = np.flatnonzero((np.asarray(logits[layer], np.float64) == row).all(1))
            for position in at:
                chex.assert_trees_all_close(
                    weights[layer, position], expected, atol=1e-5
                )
    # The first layer has no experts, and those after it fewer neurons next to them.
    assert (weights[0] == 0).all()
    assert (outs[0] == 0).all()
    assert (post[1:, :, 16:] == 0).all()
    assert (post[0] != 0).all()
    shared = jnp.einsum("lnm,lme->lne", post, model.blocks.mlp.shared.w_out)
    chex.assert_trees_all_close(whole, shared + outs.sum(2), atol=1e-5)


def test_what_reads_weights_of_plain_heads_refuses_latents():
    model, _ = deepseek()
    with pytest.raises(SiteError, match="read the stream"):
        lens.ov_eigenvalues(model)
    with pytest.raises(FrameError, match="SharedExperts"):
        nn.fold_norm(model)
    with pytest.raises(FrameError, match="no value biases"):
        nn.fold_value_biases(model)


def test_norms_fold_into_what_makes_latents():
    model, tokens = deepseek()
    blocks = model.blocks
    plain = nn.Block(blocks.norm_1, blocks.attention, blocks.norm_2, blocks.mlp.shared)
    model = dataclasses.replace(model, blocks=plain)
    folded = nn.fold_norm(model)
    expected = mijax.run(model, tokens)
    chex.assert_trees_all_close(mijax.run(folded, tokens), expected, atol=1e-4)


@pytest.mark.parametrize(
    "change", [{"n_group": 3}, {"n_group": 8}, {"topk_group": 1}, {"topk_group": 5}]
)
def test_groups_that_do_not_fit_are_refused(change, tmp_path):
    with pytest.raises(LoadError, match="groups"):
        models.load(write(tmp_path, NAME, lambda config, _: config.update(change)))


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    def more(config, tensors):
        tensors["model.layers.3.eh_proj.weight"] = np.ones((16, 32), np.float32)
        tensors["model.layers.3.input_layernorm.weight"] = np.ones(16, np.float32)

    model, _ = deepseek()
    found = models.load(write(tmp_path, NAME, more)).model
    chex.assert_trees_all_equal(jax.tree.leaves(found), jax.tree.leaves(model))
