"""Laws that hold for every model, site and edit."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    BLOCK_SITES,
    CLEAN,
    CORRUPT,
    LENGTHS,
    METRIC,
    METRICS,
    MODELS,
    acts_of,
    model,
    sites,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mijax
from mijax.core import Place, Site, compose
from mijax.core._block import apply_block
from mijax.core._rows import Sequence
from mijax.core._sites import get


@pytest.mark.parametrize("name", MODELS)
def test_patch_with_self_is_the_identity_bit_for_bit(name):
    plain = mijax.run(model(name), CLEAN)
    acts = mijax.capture(model(name), CLEAN, {s: Site(s) for s in sites(name)})
    every = [mijax.Patch(acts).at(site) for site in sites(name)]
    chex.assert_trees_all_equal(mijax.run(model(name), CLEAN, every), plain)
    chex.assert_trees_all_equal(mijax.run(model(name), CLEAN, []), plain)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_changes_the_output(name):
    plain = mijax.run(model(name), CLEAN)
    for site in sites(name):
        # A norm that follows makes nothing of a factor.
        noise = mijax.Noise(jax.random.key(5), 0.3).at(site)
        changed = mijax.run(model(name), CLEAN, noise)
        assert jnp.abs(changed - plain).max() > 1e-3, site


@pytest.mark.parametrize("name", MODELS)
def test_capture_is_what_the_model_returns_and_edits_change_it(name):
    logits, acts = jax.vmap(model(name))(CLEAN)
    asked = {site: Site(site) for site in sites(name)}
    found = mijax.capture(model(name), CLEAN, asked)
    chex.assert_trees_all_close(found, {s: get(acts, s) for s in asked}, atol=1e-5)
    assert all(found[s].ndim == asked[s].rank + 1 for s in asked)
    zeros = [mijax.Zero().at(site) for site in asked]
    zeroed = mijax.capture(model(name), CLEAN, asked, zeros)
    assert not any(jnp.any(value) for value in zeroed.values())
    chex.assert_shape(logits, (3, 7, 64))


@pytest.mark.parametrize("name", MODELS)
def test_capture_selects_inside(name):
    whole = {s: acts_of(name, s) for s in ("resid_post", "pattern")}
    last = LENGTHS - 1
    picked = {
        "layer": Site("resid_post", layer=1),
        "layers": Site("resid_post", layer=jnp.array([1, 0])),
        "position": Site("resid_post", position=2),
        "last": Site("resid_post", layer=0, position=last),
        "span": Site("resid_post", position=slice(1, 4)),
        "feature": Site("resid_post", feature=jnp.array([3, 5])),
        "head": Site("pattern", layer=1, head=2),
        "one": Site("pattern", layer=1, head=2, position=3, feature=1),
    }
    found = mijax.capture(model(name), CLEAN, picked)
    resid, pattern = whole["resid_post"], whole["pattern"]
    expected = {
        "layer": resid[:, 1],
        "layers": resid[:, jnp.array([1, 0])],
        "position": resid[:, :, 2],
        "last": resid[jnp.arange(3), 0, last],
        "span": resid[:, :, 1:4],
        "feature": resid[..., jnp.array([3, 5])],
        "head": pattern[:, 1, :, 2],
        "one": pattern[:, 1, 3, 2, 1],
    }
    chex.assert_trees_all_close(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2"])
def test_capturing_one_layer_needs_no_memory_for_the_others(name):
    many = eqx.tree_at(
        lambda m: m.blocks,
        model(name),
        jax.tree.map(lambda a: jnp.repeat(a, 20, 0), model(name).blocks),
    )
    tokens = jnp.tile(CLEAN, (8, 4))[:, :28]
    sizes = {}
    for layer in (3, None):
        program = eqx.filter_jit(
            lambda tokens, layer=layer: mijax.capture(
                many, tokens, Site("pattern", layer=layer, head=1)
            )
        )
        stats = program.lower(tokens).compile().compiled.memory_analysis()
        sizes[layer] = stats.temp_size_in_bytes + stats.output_size_in_bytes
    assert sizes[3] < sizes[None] / 4


def test_capture_runs_no_layer_after_the_last_one_it_reads():
    ran = []

    class Watching(mijax.core.AbstractEdit):
        def __call__(self, x, place):
            jax.debug.callback(lambda layer: ran.append(int(layer)), place.layer)
            return x

    watch = Watching().at("resid_post")
    for wanted, last in [
        (Site("embed"), -1),
        ([Site("resid_post", layer=0), Site("z", layer=jnp.array([1, 0]))], 1),
        ([Site("resid_post", layer=1), Site("resid_final")], 2),
        (Site("resid_post"), 2),
    ]:
        ran.clear()
        jax.block_until_ready(mijax.capture(model("gpt2"), CLEAN[0], wanted, watch))
        jax.effects_barrier()
        assert sorted(set(ran)) == list(range(last + 1))


@pytest.mark.parametrize("name", MODELS)
def test_batch_is_loop_and_padding_is_nothing(name):
    acts = acts_of(name, "z")
    place = {"layer": 1, "head": 3}
    patch = mijax.Patch(acts * 0.5).at("z", position=LENGTHS - 2, **place)
    batch = mijax.run(model(name), CLEAN, patch)
    longer = jnp.pad(CLEAN, ((0, 0), (0, 4)), constant_values=9)
    padded = mijax.run(model(name), longer, patch)
    for i, n in enumerate(LENGTHS):
        chex.assert_trees_all_close(padded[i, :n], batch[i, :n], atol=2e-5)
        source = acts[i, :, :n] * 0.5
        alone = mijax.Patch(source).at("z", position=int(n) - 2, **place)
        single = mijax.run(model(name), CLEAN[i, :n], alone)
        chex.assert_trees_all_close(batch[i, :n], single, atol=2e-5)


def test_jit_is_eager():
    ablate = mijax.Zero().at("z", layer=1)
    with jax.disable_jit():
        eager, _ = model("llama")(CLEAN[0], ablate)
    jitted = mijax.run(model("llama"), CLEAN[0], ablate)
    chex.assert_trees_all_close(eager, jitted, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_stacked_is_unrolled(name):
    one = model(name)
    placed = compose(mijax.Scale(0.3).at("z", layer=1, head=0))
    stacked, _ = one(CLEAN[0], placed)
    x = one.embed(CLEAN[0], jnp.arange(7))
    rows = Sequence(jnp.arange(7))
    for layer in range(one.n_layers):
        block = jax.tree.map(lambda a, i=layer: a[i], one.blocks)
        x, _ = apply_block(block, x, placed.blocks, Place(rows, layer))
    chex.assert_trees_all_close(one.unembed(one.normalise(x)), stacked, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_the_finite_difference_at_every_site(name):
    asked = {site: Site(site) for site in sites(name)}
    grads = mijax.gradients(model(name), CLEAN, METRIC, asked)
    acts = mijax.capture(model(name), CLEAN, asked)
    chex.assert_trees_all_equal_shapes(grads, acts)
    size = 2e-3
    for site in asked:
        assert jnp.abs(grads[site]).max() > 1e-4, site
        step = jax.random.normal(jax.random.key(7), acts[site].shape)
        # A patch at every layer would overwrite what earlier ones caused.
        layer = {"layer": 1} if site in BLOCK_SITES else {}

        def value(size, site=site, step=step, layer=layer):
            moved = mijax.Patch(acts[site] + size * step).at(site, **layer)
            return METRIC(mijax.run(model(name), CLEAN, moved))

        slope = (value(size) - value(-size)) / (2 * size)
        product = grads[site] * step
        product = product[:, 1] if layer else product
        along = product.sum(tuple(range(1, product.ndim)))
        chex.assert_trees_all_close(along, slope, atol=3e-2, rtol=1e-2)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_many_sites_in_one_pass(metric):
    if metric == "accuracy":
        return  # flat almost everywhere
    asked = {
        "all": Site("z"),
        "layer": Site("z", layer=2),
        "layers": Site("resid_pre", layer=jnp.array([2, 0])),
        "part": Site("pattern", layer=1, head=3, position=LENGTHS - 1),
        "embed": Site("embed", position=0),
    }
    kept = [mijax.Scale(0.7).at("mlp_out", layer=0)]
    every = METRICS[metric]
    found = mijax.gradients(model("llama"), CLEAN, every, asked, kept)
    alone = {
        k: mijax.gradients(model("llama"), CLEAN, every, s, kept)
        for k, s in asked.items()
    }
    chex.assert_trees_all_close(found, alone, atol=1e-6)
    chex.assert_trees_all_close(found["layer"], found["all"][:, 2], atol=1e-6)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(found))


@pytest.mark.parametrize("name", MODELS)
def test_causality_by_gradient(name):
    metric = mijax.logit_difference(1, 2, position=3)
    asked = {s: Site(s) for s in sites(name)}
    grads = mijax.gradients(model(name), CLEAN[0], metric, asked)
    for site, grad in grads.items():
        later = grad[:, 4:] if site in BLOCK_SITES else grad[4:]
        assert not jnp.any(later), site
        assert jnp.any(grad), site


def test_query_heads_are_views_of_shared_keys():
    """Grouped-query attention equals attention with the shared heads written out."""
    shared = model("llama")
    wide = eqx.tree_at(
        lambda m: (m.blocks.attention.w_k, m.blocks.attention.w_v),
        shared,
        replace_fn=lambda w: jnp.repeat(w, 2, axis=-2),
    )
    for site in ("k", "v"):
        for head in range(4):
            ablate = mijax.Zero().at(site, layer=1, head=head)
            ours, theirs = (mijax.run(m, CLEAN, ablate) for m in (shared, wide))
            # Two programs, whose products have other shapes and round otherwise.
            error = 1e-5 * float(jnp.abs(theirs).max())
            chex.assert_trees_all_close(ours, theirs, atol=error)
    first = mijax.run(shared, CLEAN, mijax.Zero().at("k", layer=1, head=0))
    second = mijax.run(shared, CLEAN, mijax.Zero().at("k", layer=1, head=1))
    assert jnp.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_other_places_of_an_edit_do_not_recompile(name):
    traces = []

    class Counting(mijax.core.AbstractEdit):
        def __call__(self, x, place):
            traces.append(1)
            return x * 0

    for layer, head, position in [(0, 0, 1), (1, 3, 2), (1, 2, 6)]:
        placed = Counting().at("z", layer=layer, head=head, position=position)
        mijax.run(model(name), CLEAN, placed)
    once = len(traces)
    mijax.run(model(name), CLEAN, Counting().at("z", layer=1, head=1, position=0))
    assert len(traces) == once <= 2


@given(
    first=st.floats(-2, 2, width=32),
    second=st.floats(-2, 2, width=32),
    layer=st.integers(0, 2),
    position=st.integers(0, 6),
)
@settings(max_examples=12, deadline=None)
def test_edits_compose(first, second, layer, position):
    direction = jnp.linspace(-1, 1, 32)
    place = {"layer": layer, "position": position}
    add = lambda c: mijax.Add(direction, c).at("resid_mid", **place)  # noqa: E731
    one, two, both = (
        add(first),
        add(second),
        add(np.float32(first) + np.float32(second)),
    )
    chex.assert_trees_all_close(
        mijax.run(model("gpt2"), CLEAN, [one, two]),
        mijax.run(model("gpt2"), CLEAN, both),
        atol=1e-4,
    )
    plain = mijax.run(model("gpt2"), CLEAN)
    chex.assert_trees_all_equal(mijax.run(model("gpt2"), CLEAN, add(0.0)), plain)
    scale = [mijax.Scale(0.5).at("z", **place), mijax.Scale(2.0).at("z", **place)]
    chex.assert_trees_all_equal(mijax.run(model("gpt2"), CLEAN, scale), plain)


def test_order_of_composition_and_untouched_neighbours():
    place = {"layer": 1, "position": 2, "head": 3}
    zero, add = mijax.Zero().at("z", **place), mijax.Add(1.0).at("z", **place)
    read = Site("z", layer=1)
    after = mijax.capture(model("gpt2"), CORRUPT, read, [zero, add])
    before = mijax.capture(model("gpt2"), CORRUPT, read, [add, zero])
    plain = mijax.capture(model("gpt2"), CORRUPT, read)
    chex.assert_trees_all_equal(after[:, 2, 3], jnp.ones((3, 8)))
    chex.assert_trees_all_equal(before[:, 2, 3], jnp.zeros((3, 8)))
    chex.assert_trees_all_close(
        after.at[:, 2, 3].set(0), plain.at[:, 2, 3].set(0), atol=1e-6
    )


def test_mean_noise_and_projection_by_hand():
    acts = acts_of("gpt2", "resid_pre")
    mask = jnp.arange(7) < LENGTHS[:, None]
    read = Site("resid_pre", layer=1, position=3)
    ablate = mijax.Mean(acts, mask=mask).at("resid_pre", layer=1)
    expected = acts[:, 1][mask].mean(0)
    found = mijax.capture(model("gpt2"), CLEAN, read, ablate)
    chex.assert_trees_all_close(found, jnp.tile(expected, (3, 1)), atol=1e-5)
    ablate = mijax.Mean(acts, per_position=True).at("resid_pre", layer=1)
    found = mijax.capture(model("gpt2"), CLEAN, read, ablate)
    expected = jnp.tile(acts[:, 1, 3].mean(0), (3, 1))
    chex.assert_trees_all_close(found, expected, atol=1e-5)

    noise = mijax.Noise(jax.random.key(0), 2.0).at("embed")
    moved = mijax.capture(model("gpt2"), CLEAN, Site("embed"), noise)
    added = moved - acts_of("gpt2", "embed")
    assert 1.8 < added.std() < 2.2
    assert jnp.abs(added[0, 0] - added[0, 1]).max() > 0.1
    assert jnp.abs(added[0, 0] - added[1, 0]).max() > 0.1
    longer = jnp.pad(CLEAN, ((0, 0), (0, 3)))
    again = mijax.capture(model("gpt2"), longer, Site("embed"), noise)
    chex.assert_trees_all_close(again[:, :7], moved, atol=1e-6)

    directions = jax.random.normal(jax.random.key(1), (2, 32))
    removed = mijax.Project(directions).at("resid_pre", layer=1)
    found = mijax.capture(model("gpt2"), CLEAN, read, removed)
    chex.assert_trees_all_close(found @ directions.T, jnp.zeros((3, 2)), atol=1e-4)
    kept = mijax.Project(directions, keep=True).at("resid_pre", layer=1)
    other = mijax.capture(model("gpt2"), CLEAN, read, kept)
    chex.assert_trees_all_close(found + other, acts[:, 1, 3], atol=1e-5)
