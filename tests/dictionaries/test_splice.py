"""Dictionaries in a model: splices, edits of latents, transcoders for MLPs."""

import functools

import cases
import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site
from mijax import dictionaries as d
from mijax._errors import MijaxError, ShapeError, SiteError
from mijax.core import Place
from mijax.core._rows import Sequence

TOKENS, OTHER = cases.CLEAN, cases.CORRUPT
SITE = Site("resid_post", layer=1)
LATENTS = 48


@functools.cache
def sae(width=32, architecture=None, scale=1.0):
    random = d.untrained(
        architecture or d.ReLU(),
        d.SAE(width),
        latents=LATENTS,
        key=jax.random.key(0),
        scale=scale,
        centre=jnp.linspace(-1, 1, width),
    )
    # Half of the latents are active somewhere, half of them not.
    bias = jnp.linspace(-2.0, 1.0, LATENTS)
    return eqx.tree_at(lambda s: s.weights.bias, random, bias)


def spliced(*args, model=None, tokens=TOKENS, site=SITE, **options):
    model = cases.model("gpt2") if model is None else model
    edits = d.Splice(*args, **options).at(site)
    return mijax.run(model, tokens, edits)


def stream(edits=None, tokens=TOKENS):
    return mijax.capture(cases.model("gpt2"), tokens, SITE, edits)


@eqx.filter_jit
def rows(edit, x):
    """An edit applied to rows, without a model around it."""
    place = Place(Sequence(jnp.arange(len(x))))
    return edit.bind(Site("embed"))(x, place)


def test_nothing_changed_is_the_identity_bit_for_bit():
    model = cases.model("gpt2")
    np.testing.assert_array_equal(
        spliced(sae(), d.scale(3, 1.0)), mijax.run(model, TOKENS)
    )
    x = jax.random.normal(jax.random.key(2), (5, 32))
    np.testing.assert_array_equal(rows(d.Splice(sae()), x), x)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_what_a_splice_computes(scale):
    given = sae(scale=scale)
    x = jax.random.normal(jax.random.key(2), (5, 32))
    f = given.encode(x)
    decoder = given.weights.decoder / scale
    np.testing.assert_allclose(d.direction(given, 5), decoder[5], rtol=1e-6)
    # Latents that are changed change the stream by their rows alone.
    expected = x + (3.0 - f[:, 5, None]) * decoder[5]
    chex.assert_trees_all_close(
        rows(d.Splice(given, d.hold(5, 3.0)), x), expected, atol=1e-5
    )
    # By definition, with the error term written out.
    g = 2 * f
    found = rows(d.Splice(given, mijax.Scale(2.0)), x)
    expected = x + given.decode(g) - given.decode(f)
    chex.assert_trees_all_close(found, expected, atol=1e-4)
    found = rows(d.Splice(given, mijax.Scale(2.0), error=False), x)
    chex.assert_trees_all_close(found, given.decode(g), atol=1e-4)
    # Without latents, the bias of the decoder and the error are left.
    found = rows(d.Splice(given, mijax.Zero()), x)
    centre = given.weights.centre / scale
    chex.assert_trees_all_close(found, centre + x - given(x), atol=1e-4)
    # As in a model.
    x = stream()
    found = stream(d.Splice(given, error=False).at(SITE))
    chex.assert_trees_all_close(found, given(x), atol=1e-5)


def test_only_its_place_is_changed():
    site = Site("resid_post", layer=1, position=2)
    found = stream(d.Splice(sae(), mijax.Zero()).at(site))
    changed = np.asarray((found != stream()).any((0, 2)))
    np.testing.assert_array_equal(changed, np.arange(7) == 2)
    # At other layers nothing is.
    before = Site("resid_post", layer=0)
    given = d.Splice(sae(), mijax.Zero()).at(site)
    model = cases.model("gpt2")
    np.testing.assert_array_equal(
        mijax.capture(model, TOKENS, before, given),
        mijax.capture(model, TOKENS, before),
    )


def test_noise_on_latents_depends_on_the_layer(key):
    x = stream()[0]
    edit = d.Splice(sae(), mijax.Noise(key)).bind(Site("embed"))
    first, second, again = (
        edit(x, Place(Sequence(jnp.arange(len(x))), layer)) for layer in (0, 1, 0)
    )
    chex.assert_trees_all_equal(first, again)
    assert jnp.abs(first - second).max() > 0.1


def test_latents_are_patched_and_held_by_prompt():
    model = cases.model("gpt2")
    x, f = stream(), d.latents(model, sae(), TOKENS, SITE)
    other = d.latents(model, sae(), OTHER, SITE)
    assert f.shape == (*TOKENS.shape, LATENTS)
    found = stream(d.Splice(sae(), mijax.Patch(other)).at(SITE))
    expected = x + (other - f) @ sae().weights.decoder
    chex.assert_trees_all_close(found, expected, atol=1e-4)
    which = jnp.array([4, 30, 47])
    found = stream(d.Splice(sae(), d.OnLatents(mijax.Patch(other), which)).at(SITE))
    for i, latent in enumerate(which):
        step = (other - f)[i, :, latent, None] * sae().weights.decoder[latent]
        chex.assert_trees_all_close(found[i], x[i] + step, atol=1e-4)
    some = jnp.arange(LATENTS) % 3 == 0
    found = rows(d.Splice(sae(), d.hold(some, 0.0)), x[0])
    expected = x[0] - jnp.where(some, f[0], 0) @ sae().weights.decoder
    chex.assert_trees_all_close(found, expected, atol=1e-4)


@chex.assert_max_traces(n=1)
def value_of(model, given, tokens, index, value):
    edits = d.Splice(given, d.hold(index, value)).at(SITE)
    return cases.METRIC(mijax.run(model, tokens, edits))


def test_a_sweep_over_latents_is_one_program():
    model = cases.model("gpt2")
    lane = eqx.filter_jit(
        eqx.filter_vmap(value_of, in_axes=(None, None, None, 0, None))
    )
    index = jnp.array([0, 20, 47])
    found = lane(model, sae(), TOKENS, index, jnp.float32(2.0))
    lane(model, sae(), TOKENS, index + 0, jnp.float32(3.0))
    for i, row in zip(index, found, strict=True):
        alone = cases.METRIC(spliced(sae(), d.hold(i, 2.0)))
        chex.assert_trees_all_close(row, alone, atol=1e-4)


def test_sweep_runs_it():
    model = cases.model("gpt2")
    edit = d.Splice(sae(), mijax.Zero(), every_layer=True)
    found = mijax.sweep(
        *(model, TOKENS, edit.at("resid_post")), over=("layer",), metric=cases.METRIC
    )
    for layer in range(3):
        alone = mijax.run(model, TOKENS, edit.at("resid_post", layer=layer))
        chex.assert_trees_all_close(
            found.values[:, layer], cases.METRIC(alone), atol=1e-4
        )
    # Without a sweep it is spliced in everywhere, as was said.
    each = [edit.at("resid_post", layer=layer) for layer in range(3)]
    chex.assert_trees_all_close(
        mijax.run(model, TOKENS, edit.at("resid_post")),
        mijax.run(model, TOKENS, each),
        atol=1e-4,
    )


def test_bfloat16():
    x = jax.random.normal(jax.random.key(2), (5, 32), jnp.bfloat16)
    np.testing.assert_array_equal(rows(d.Splice(sae(), mijax.Scale(1.0)), x), x)
    cast = lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a  # noqa: E731
    model = jax.tree.map(cast, cases.model("gpt2"))
    found = spliced(sae(), d.hold(40, 50.0), model=model)
    assert found.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(found, np.float32)).all()


def test_heads_are_joined_or_each_on_its_own():
    model = cases.model("gpt2")
    site = Site("z", layer=1)
    z = mijax.capture(model, TOKENS, site)
    joined, own = sae(32), sae(8)
    flat = z.reshape(*z.shape[:2], 32)
    every = Site("z", layer=1, head=jnp.arange(z.shape[2]))
    chex.assert_trees_all_close(
        d.latents(model, joined, TOKENS, every), joined.encode(flat), atol=1e-5
    )
    chex.assert_trees_all_close(
        d.latents(model, joined, TOKENS, site), joined.encode(flat), atol=1e-5
    )
    for given, x in ((joined, flat), (own, z)):
        edits = d.Splice(given, error=False, every_head=True).at(site)
        found = mijax.capture(model, TOKENS, site, edits)
        chex.assert_trees_all_close(found, given(x).reshape(z.shape), atol=1e-5)


def test_one_head_is_spliced_as_named():
    model, site = cases.model("gpt2"), Site("z", layer=1)
    z = mijax.capture(model, TOKENS, site)
    edits = d.Splice(sae(8), error=False).at("z", layer=1, head=2)
    found = mijax.capture(model, TOKENS, site, edits)
    expected = z.at[:, :, 2].set(sae(8)(z[:, :, 2]))
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_special_tokens_keep_their_activations():
    before = stream()
    keep = d.where_tokens(TOKENS, [int(TOKENS[0, 0]), int(TOKENS[1, 2])])
    found = stream(d.Splice(sae(), error=False, keep=keep).at(SITE))
    expected = jnp.where(keep[..., None], before, sae()(before))
    assert keep.any()
    assert not keep.all()
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    first = jnp.arange(TOKENS.shape[1]) == 0
    found = stream(d.Splice(sae(), error=False, keep=first).at(SITE))
    expected = jnp.where(first[:, None], before, sae()(before))
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_latents_of_crosscoders_the_largest_and_means():
    model = cases.model("gpt2")
    sites = [Site("resid_post", layer=i) for i in (0, 2)]
    both = d.untrained(
        d.TopK(5), d.Crosscoder(2, 32), latents=LATENTS, key=jax.random.key(1)
    )
    x = jnp.stack([mijax.capture(model, TOKENS, s) for s in sites], axis=2)
    found = d.latents(model, both, TOKENS, sites)
    chex.assert_trees_all_close(found, both.encode(x), atol=1e-5)
    values, index = d.top_latents(model, both, TOKENS, sites, k=5)
    largest = -np.sort(-np.asarray(found))[..., :5]
    chex.assert_trees_all_close(values, largest, atol=1e-5)
    at_index = np.take_along_axis(np.asarray(found), np.asarray(index), -1)
    chex.assert_trees_all_close(values, at_index, atol=1e-5)
    mask = jnp.arange(7) < cases.LENGTHS[:, None]
    texts = d.pooled(model, both, TOKENS, sites, mask=mask)
    for i, n in enumerate(cases.LENGTHS):
        chex.assert_trees_all_close(texts.latents[i], found[i, :n].mean(0), atol=1e-5)
        chex.assert_trees_all_close(texts.x[i], x[i, :n].mean(0), atol=1e-5)
        # A prompt alone has the mean that it has in a batch.
        alone = d.pooled(model, both, TOKENS[i : i + 1, :n], sites)
        chex.assert_trees_all_close(texts.latents[i], alone.latents[0], atol=1e-5)


def coders(layers, width=32):
    return {
        i: d.untrained(
            *(d.TopK(6), d.Transcoder(width, skip=True)),
            latents=LATENTS,
            key=jax.random.key(i),
        )
        for i in layers
    }


def test_transcoders_replace_mlps():
    model = cases.model("gpt2")
    found = d.replace_mlps(model, coders([1]))
    sites = {name: Site(name) for name in ("mlp_in", "mlp_out")}
    acts = mijax.capture(found, TOKENS, sites)
    expected = coders([1])[1](acts["mlp_in"][:, 1])
    chex.assert_trees_all_close(acts["mlp_out"][:, 1], expected, atol=1e-5)
    before = mijax.capture(model, TOKENS, sites)
    np.testing.assert_array_equal(acts["mlp_out"][:, 0], before["mlp_out"][:, 0])
    # An edit of what the MLP reads is one of what the transcoder reads.
    shifted = mijax.capture(
        found, TOKENS, sites, mijax.Set(acts["mlp_in"][0, 1, 0]).at("mlp_in", layer=1)
    )
    same = jnp.broadcast_to(acts["mlp_out"][0, 1, 0], shifted["mlp_out"][:, 1].shape)
    chex.assert_trees_all_close(shifted["mlp_out"][:, 1], same, atol=1e-6)
    # An edit of what the MLP writes is one of what the transcoder writes.
    ablated = mijax.Zero().at("mlp_out", layer=1)
    np.testing.assert_array_equal(
        mijax.run(found, TOKENS, ablated), mijax.run(model, TOKENS, ablated)
    )


def test_transcoders_with_their_error_are_the_model():
    model = cases.model("gpt2")
    exact = d.replace_mlps(model, coders(range(3)), error=True)
    np.testing.assert_array_equal(mijax.run(exact, TOKENS), mijax.run(model, TOKENS))
    # The gradient before the last MLP is that after it, through the transcoder.
    sites = {name: Site(name, layer=2) for name in ("resid_mid", "resid_post")}
    found = mijax.gradients(exact, TOKENS, cases.METRIC, sites)
    after = found["resid_post"]
    mid = mijax.capture(model, TOKENS, Site("resid_mid", layer=2))
    norm = jax.tree.map(lambda a: a[2], model.blocks.norm_2)
    _, back = jax.vjp(lambda x: coders([2])[2](norm(x)), mid)
    chex.assert_trees_all_close(found["resid_mid"], after + back(after)[0], atol=1e-4)


def at_site(change):
    edits = d.Splice(sae(), change).at(SITE)
    return mijax.run(cases.model("gpt2"), TOKENS, edits)


BAD = {
    "latents of other prompts": (
        lambda: at_site(
            mijax.Patch(d.latents(cases.model("gpt2"), sae(), TOKENS[:1], SITE))
        ),
        ShapeError,
        "same number of prompts",
    ),
    "some latents of other prompts": (
        lambda: at_site(d.hold(np.arange(4), 0.0)),
        SiteError,
        r"latent of shape \(4,\)",
    ),
    "factors of other prompts": (
        lambda: at_site(d.scale(7, mijax.PerPrompt(np.arange(4.0)))),
        SiteError,
        r"coefficient of shape \(4,\)",
    ),
    "one head": (
        lambda: spliced(sae(8), error=False, site=Site("z", layer=1)),
        ShapeError,
        r"one of 4 heads: give at\(\.\.\., head=",
    ),
    "kept tokens": (
        lambda: spliced(sae(), error=False, keep=jnp.ones((2, 5), bool)),
        ShapeError,
        r"keep has shape \(2, 5\)",
    ),
    "kept axes": (
        lambda: d.Splice(sae(), keep=jnp.ones((1, 2, 3), bool)),
        ShapeError,
        "keep holds a boolean per token",
    ),
    "transcoder": (lambda: d.Splice(coders([0])[0]), ShapeError, "replace_mlps"),
    "latent": (lambda: d.Splice(sae(), d.hold(48, 0.0)), SiteError, "0 to 47"),
    "some latent": (
        lambda: d.Splice(sae(), d.hold(jnp.array([-1, 3]), 0.0)),
        SiteError,
        "Latent -1 .* 0 to 47",
    ),
    "every layer": (
        lambda: d.Splice(sae()).at("resid_post"),
        SiteError,
        r"at\('resid_post', layer=\.\.\.\), or .*every_layer=True",
    ),
    "mask": (
        lambda: d.Splice(sae(), d.hold(jnp.ones(3, bool), 0.0)),
        ShapeError,
        "mask of latents",
    ),
    "width": (
        lambda: rows(d.Splice(sae(16)), jnp.ones((2, 32))),
        ShapeError,
        r"reads activations \[16\]",
    ),
    "layer": (
        lambda: d.latents(cases.model("gpt2"), sae(), TOKENS, Site("resid_post")),
        SiteError,
        "layer=",
    ),
    "k": (
        lambda: d.top_latents(cases.model("gpt2"), sae(), TOKENS, SITE, k=49),
        ShapeError,
        "48 latents",
    ),
    "pooled": (
        lambda: d.pooled(cases.model("gpt2"), sae(), TOKENS[0], SITE),
        ShapeError,
        "batch",
    ),
    "no_mlp": (
        lambda: d.replace_mlps(
            eqx.tree_at(lambda m: m.blocks.mlp, cases.model("gpt2"), None), coders([0])
        ),
        SiteError,
        "no MLP",
    ),
    "no_layer": (
        lambda: d.replace_mlps(cases.model("gpt2"), coders([3])),
        SiteError,
        r"\[3\]",
    ),
    "not_the_stream": (
        lambda: d.replace_mlps(cases.model("gpt2"), coders([0], 16)),
        ShapeError,
        r"Transcoder\(32\)",
    ),
    "not_alike": (
        lambda: d.replace_mlps(
            cases.model("gpt2"),
            coders([0])
            | {
                1: d.untrained(
                    *(d.ReLU(), d.Transcoder(32)), latents=8, key=jax.random.key(0)
                )
            },
        ),
        ShapeError,
        "alike",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    make, error, said = BAD[case]
    assert issubclass(error, MijaxError)
    with pytest.raises(error, match=said):
        make()


def test_tokens_are_not_joined_as_if_they_were_heads():
    """Two tokens of 32 numbers are as many as a dictionary of 64 reads."""
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    wide, tokens = sae(64), [5, 6]
    site, splice = Site("resid_post", layer=1), d.Splice(wide, d.hold(3, 5.0))
    for call in (
        lambda: d.latents(model, wide, tokens, site),
        lambda: d.latents(
            model, wide, [tokens, tokens], Site("resid_post", layer=1, position=1)
        ),
        lambda: mijax.run(model, tokens, splice.at("resid_post", layer=1)),
        lambda: d.attribute_latents(
            model, wide, tokens, None, mijax.logit_difference(3, 4), site
        ),
    ):
        with pytest.raises(ShapeError, match="reads activations"):
            call()
    assert d.latents(model, sae(32), tokens, Site("z", layer=1)).shape[0] == 2
