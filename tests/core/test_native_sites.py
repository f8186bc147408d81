"""`sites` and `harvest` reach the sites of native models, as the verbs do."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from cases import BLOCK_SITES, CLEAN, METRIC, MODELS, model, sites

import mijax
from mijax.core._sites import get

AXES = {
    **dict.fromkeys(
        ("q", "k", "v", "q_rotated", "k_rotated", "z"),
        ("position", "head", "head_dim"),
    ),
    **dict.fromkeys(("attn_norm_scale", "mlp_norm_scale"), ("position", "scale")),
    "result": ("position", "head", "embed"),
    **dict.fromkeys(("scores", "pattern"), ("position", "head", "key_position")),
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_up", "mlp_post"), ("position", "mlp")),
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
        scale = mijax.Scale(0.1).at(site, feature=0, **place)
        expected = mijax.run(model(name), TOKENS, scale)

        def shrink(value, at):
            return jnp.where(at.layer == 0, value.at[..., 0].multiply(0.1), value)

        edited, _ = mijax.harvest(run, edits={site: shrink}, want=())(TOKENS)
        chex.assert_trees_all_close(edited, expected, atol=2e-5)
        # Norms of queries, keys and the sum over heads undo one factor for all.
        undone = (name, site) == ("sandwich", "attn_norm_scale")
        assert undone or jnp.abs(edited - plain).max() > 1e-3, site


def test_sites_inside_of_norms_rotary_gates_and_heads_hold_their_values():
    for name in MODELS:
        acts, blocks = model(name)(TOKENS)[1].blocks, model(name).blocks
        x, norm = acts.resid_pre, blocks.norm_1
        if isinstance(norm, mijax.nn.LayerNorm):
            x = x - x.mean(-1, keepdims=True)
        expected = jnp.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
        chex.assert_trees_all_close(acts.attn_norm_scale, expected, rtol=1e-5)
        bias = blocks.attention.b_o
        total = acts.result.sum(2) + (0 if bias is None else bias[:, None])
        if name == "sandwich":
            total = jax.vmap(lambda norm, x: norm(x))(blocks.norm_2, total)
        chex.assert_trees_all_close(total, acts.attn_out, atol=1e-5)
        w_o = blocks.attention.w_o
        each = jnp.einsum("lnhd,lhde->lnhe", acts.z, w_o)
        chex.assert_trees_all_close(acts.result, each, atol=1e-5)
    acts, blocks = model("llama")(TOKENS)[1].blocks, model("llama").blocks
    chex.assert_trees_all_close(
        acts.mlp_gate * acts.mlp_up, acts.mlp_post, atol=1e-6, rtol=1e-5
    )
    chex.assert_trees_all_close(jax.nn.silu(acts.mlp_pre), acts.mlp_gate, atol=1e-6)
    # A rotation by position: pairs of features are complex numbers.
    turn = jnp.exp(1j * jnp.arange(7)[:, None] * blocks.attention.rotary.frequency[0])
    for plain, rotated in ((acts.q, acts.q_rotated), (acts.k, acts.k_rotated)):
        first, second = jnp.split(plain[0], 2, -1)
        expected = (first + 1j * second) * turn[:, None]
        expected = jnp.concatenate([expected.real, expected.imag], -1)
        chex.assert_trees_all_close(rotated[0], expected, atol=1e-5)


def test_edits_inside_of_norms_and_heads_do_what_they_say():
    one, place = model("gpt2"), {"layer": 1, "position": 4}
    head = {"head": 2, **place}
    chex.assert_trees_all_close(
        mijax.run(one, TOKENS, mijax.Zero().at("result", **head)),
        mijax.run(one, TOKENS, mijax.Zero().at("z", **head)),
        atol=1e-5,
    )
    # Half of the scale is twice the normalized stream; the bias of the norm stays.
    doubled = mijax.Scale(2.0).at("mlp_in", **place)
    moved = mijax.Add(-one.blocks.norm_2.bias[1]).at("mlp_in", **place)
    chex.assert_trees_all_close(
        mijax.run(one, TOKENS, mijax.Scale(0.5).at("mlp_norm_scale", **place)),
        mijax.run(one, TOKENS, [doubled, moved]),
        atol=1e-5,
    )


def test_heads_of_a_sandwich_write_before_the_norm_of_their_sum():
    one = model("sandwich")
    head = {"layer": 1, "position": 4, "head": 2}
    zeroed = mijax.run(one, TOKENS, mijax.Zero().at("result", **head))
    expected = mijax.run(one, TOKENS, mijax.Zero().at("z", **head))
    chex.assert_trees_all_close(zeroed, expected, atol=1e-5)
    found = mijax.capture(one, TOKENS, ["result", "mlp_norm_scale"])
    patch = (
        mijax.Patch(found[0]).at("result"),
        mijax.Patch(found[1]).at("mlp_norm_scale"),
    )
    plain = mijax.run(one, TOKENS)
    chex.assert_trees_all_equal(mijax.run(one, TOKENS, list(patch)), plain)
    assert jnp.abs(zeroed - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sites_that_nothing_asks_for_cost_nothing(name):
    arrays, static = eqx.partition(model(name), eqx.is_array)

    def program(*wanted):
        def fn(arrays):
            logits, acts = eqx.combine(arrays, static)(TOKENS)
            return logits, [get(acts, site) for site in wanted]

        text = jax.jit(fn).lower(arrays).compile().as_text()
        # A root that is not inverted, and what each of 4 heads writes at 7 tokens.
        return " sqrt(" in text, "[7,4,32]" in text or "[4,7,32]" in text

    assert program() == program("z") == (False, False)
    assert program("attn_norm_scale", "result") == (True, True)


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


def test_edits_of_rotated_keys_are_refused_where_a_cache_would_lose_them():
    zero, one = mijax.Zero(), model("llama")
    with pytest.raises(mijax.MijaxError, match="would not see an edit"):
        mijax.generate(one, TOKENS, steps=1, edits=zero.at("k_rotated"))
    with pytest.raises(mijax.MijaxError, match="would not see an edit"):
        mijax.sweep(
            one,
            CLEAN,
            zero.at("z"),
            over="head",
            metric=METRIC,
            edits=zero.at("k_rotated"),
        )
