"""Stacks of attention and gated delta networks: each layer computes its own kind."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import golden, write

import mijax
from mijax import Site, models, nn

NAMES = {"qwen3_next": (0, 0, 0, 1), "qwen3_5_text": (1, 0, 1)}
LAYER, HEADS, KEYS = 1, 4, 8
METRIC = mijax.logit_difference(3, 4, position=jnp.array([9, 5]))


@functools.cache
def loaded(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return models.load(write(Path(folder), name)).model


@functools.cache
def batch(name: str) -> Any:
    tokens = golden(name)["tokens"]
    return jnp.asarray(np.stack([tokens, tokens[::-1]]), jnp.int32)


def by_hand(acts, change=lambda t, state: state):
    """States and outputs of one prompt, token after token, in float64."""
    width = HEADS // 2 * KEYS
    q, k, v = np.split(acts["conv_out"], (width, 2 * width), axis=-1)
    unit = lambda x: x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)  # noqa: E731
    q, k = (unit(x.reshape(len(x), 2, KEYS)).repeat(2, 1) for x in (q, k))
    v = v.reshape(len(v), HEADS, -1)
    alpha, beta = acts["gdn_alpha"], acts["gdn_beta"]
    states, outs = [], []
    for head in range(HEADS):
        state = np.zeros((KEYS, v.shape[-1]))
        for t in range(len(v)):
            one, rate = k[t, head], beta[t, head, 0]
            forget = np.eye(KEYS) - rate * np.outer(one, one)
            state = alpha[t, head, 0] * forget @ state
            state = change(t, state + rate * np.outer(one, v[t, head]))
            states.append(state)
            outs.append(state.T @ q[t, head] / KEYS**0.5)
    by_token = lambda x: np.stack(x).reshape(HEADS, len(v), -1).swapaxes(0, 1)  # noqa: E731
    return by_token(states), by_token(outs).reshape(len(v), -1), v


SCALES = [
    mijax.Scale(1.4).at("gdn_beta", layer=LAYER, position=3, head=2),
    mijax.Scale(0.5).at("gdn_alpha", layer=LAYER, position=5),
]


@pytest.mark.parametrize("edits", [None, SCALES], ids=["plain", "edited"])
@pytest.mark.parametrize("name", NAMES)
def test_the_delta_rule_is_a_loop_and_a_matrix(name, edits):
    model, tokens = loaded(name), batch(name)[0]
    sites = ("conv_out", "gdn_alpha", "gdn_beta", "mixer_state", "mixer_scan")
    asked = {site: Site(site, layer=LAYER) for site in sites}
    acts = jax.tree.map(
        lambda a: np.asarray(a, np.float64), mijax.capture(model, tokens, asked, edits)
    )
    states, out, v = by_hand(acts)
    chex.assert_trees_all_close(acts["mixer_state"], states, atol=1e-5)
    chex.assert_trees_all_close(acts["mixer_scan"], out, atol=1e-5)
    matrix = mijax.lens.effective_attention(model, tokens, edits, layer=LAYER)
    product = jnp.einsum("hij,jhv->ihv", matrix, v).reshape(out.shape)
    chex.assert_trees_all_close(product, out, atol=1e-5)
    assert not jnp.triu(matrix, 1).any()
    assert jnp.abs(jnp.tril(matrix, -1)).max() > 1e-2
    # A layer with attention has no such matrix.
    other = mijax.lens.effective_attention(model, tokens, layer=NAMES[name].index(1))
    assert not other.any()


def test_an_edited_state_is_what_later_tokens_read():
    model, tokens = loaded("qwen3_next"), batch("qwen3_next")[0]
    edit = mijax.Scale(-1.0).at("mixer_state", layer=LAYER, position=4)
    sites = ("conv_out", "gdn_alpha", "gdn_beta", "mixer_scan")
    asked = {site: Site(site, layer=LAYER) for site in sites}
    acts = jax.tree.map(np.asarray, mijax.capture(model, tokens, asked, edit))
    _, out, _ = by_hand(acts, lambda t, state: -state if t == 4 else state)
    chex.assert_trees_all_close(acts["mixer_scan"], out, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_sites_of_a_kind_are_zero_in_layers_of_the_other(name):
    model, tokens = loaded(name), batch(name)[0]
    found = mijax.capture(model, tokens, ["z", "z_gate", "mixer_out", "attn_out"])
    z, gate, mixed, out = (jnp.abs(a).reshape(len(a), -1).max(1) for a in found)
    attends = jnp.array(NAMES[name], bool)
    chex.assert_trees_all_equal(z > 0, attends)
    chex.assert_trees_all_equal(gate > 0, attends)
    chex.assert_trees_all_equal(mixed > 0, ~attends)
    assert (out > 0).all()
    blocks = model.blocks
    written = jnp.einsum("lnhd,lhde->lne", found[0], blocks.attention.w_o)
    written += jnp.einsum("lnc,lce->lne", found[2], blocks.mixer.w_out)
    chex.assert_trees_all_close(written, found[3], atol=1e-5)


@pytest.mark.parametrize("site", ["resid_pre", "k", "mixer_state", "z_gate"])
def test_a_sweep_is_a_loop_of_runs(site):
    model, tokens = loaded("qwen3_next"), batch("qwen3_next")
    patch = mijax.Patch(mijax.capture(model, tokens[::-1], Site(site)))
    over = ("layer", "position")
    found = mijax.sweep(model, tokens, patch.at(site), over=over, metric=METRIC).values
    for layer in range(1, 4):
        for position in (0, 4, 5):
            at = patch.at(site, layer=layer, position=position)
            one = METRIC(mijax.run(model, tokens, at))
            chex.assert_trees_all_close(found[:, layer, position], one, atol=5e-5)
    plain = METRIC(mijax.run(model, tokens))
    idle = {"k": [0, 1, 2], "z_gate": [0, 1, 2], "mixer_state": [3]}.get(site, [])
    for layer in idle:
        chex.assert_trees_all_close(found[:, layer, 4], plain, atol=2e-5)


def test_experts_and_the_shared_one_add_up():
    model, tokens = loaded("qwen3_next"), batch("qwen3_next")[0]
    names = ["expert_out", "shared_out", "mlp_out", "shared_gate", "mlp_post"]
    each, shared, out, gate, post = mijax.capture(model, tokens, names)
    chex.assert_trees_all_close(each.sum(2) + shared, out, atol=1e-5)
    weight = model.blocks.mlp.shared.w_out
    expected = gate * jnp.einsum("lnm,lme->lne", post, weight)
    chex.assert_trees_all_close(shared, expected, atol=1e-5)
    assert ((gate > 0) & (gate < 1)).all()


def test_graphs_refuse_gates():
    coder = mijax.dictionaries.untrained(
        mijax.dictionaries.ReLU(),
        mijax.dictionaries.Transcoder(loaded("qwen3_next").embedding.weight.shape[1]),
        latents=8,
        key=jax.random.key(0),
    )
    with pytest.raises(mijax.MijaxError, match="z_gate"):
        mijax.graphs.Replacement.of(loaded("qwen3_next"), {0: coder})


def test_analyses_that_need_linear_writes_refuse_two_kinds():
    model = loaded("qwen3_5_text")
    with pytest.raises(mijax.MijaxError, match="linear_writes"):
        mijax.lens.direct_logit_attribution(model, batch("qwen3_5_text"), 3)
    with pytest.raises(mijax.MijaxError, match="linear_writes"):
        nn.fold_norm(model)
    graph = mijax.circuits.Graph.of(model)
    assert graph.senders == ("input", "a0", "m0", "a1", "m1", "a2", "m2")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("layer_types", ["full_attention"], "layer_types"),
        ("layer_types", ["sliding_attention"] * 4, "sliding_attention"),
        ("linear_num_value_heads", 3, "value heads"),
        ("mlp_only_layers", [1], "mlp_only_layers"),
        ("num_experts_per_tok", 5, "5 experts are chosen"),
    ],
)
def test_contradictions_are_refused(key, value, words, tmp_path):
    change = lambda config, tensors: config.update({key: value})  # noqa: E731
    with pytest.raises(mijax.MijaxError, match=words) as caught:
        models.load(write(tmp_path, "qwen3_next", change))
    assert "\n" not in str(caught.value)
