"""What latents do to logits and metrics, checked against runs of the model."""

import functools

import cases
import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site, nn
from mijax import dictionaries as d
from mijax._errors import ConfigError, PositionError, ShapeError, SiteError
from mijax.core import Place
from mijax.core._rows import Sequence

TOKENS, OTHER, METRIC = cases.CLEAN, cases.CORRUPT, cases.METRIC
LATENTS = 40


@functools.cache
def sae(width=32):
    new = d.untrained(
        d.ReLU(), d.SAE(width), latents=LATENTS, key=jax.random.key(0), scale=0.5
    )
    where = lambda s: (s.weights.bias, s.weights.centre)  # noqa: E731
    bias = jnp.linspace(-1.0, 0.5, LATENTS)
    return eqx.tree_at(where, new, (bias, jnp.linspace(-1, 1, width)))


def attributed(name, site, *tokens):
    return d.direct_latent_attribution(
        *(cases.model(name), sae(), TOKENS, *(tokens or (METRIC.answer, METRIC.wrong))),
        site=site,
        position=cases.LAST,
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_direct_attribution_is_that_of_the_lens(name):
    model = cases.model(name)
    lens = mijax.lens.direct_logit_attribution(
        *(model, TOKENS, METRIC.answer, METRIC.wrong), position=cases.LAST
    )
    found = attributed(name, Site("mlp_out", layer=1))
    chex.assert_trees_all_close(found.total(), lens.mlps[:, 1], atol=1e-4)
    if name != "gpt2":
        return
    heads = attributed(name, Site("z", layer=1)).total()
    chex.assert_trees_all_close(heads, lens.heads[:, 1].sum(1), atol=1e-4)
    last = attributed(name, Site("resid_post", layer=2)).total()
    chex.assert_trees_all_close(last, lens.total() - lens.bias, atol=1e-4)
    # A latent's part is its row alone, and none where it is not active.
    sites = {
        "out": Site("mlp_out", layer=1, position=cases.LAST),
        "end": Site("resid_post", layer=2, position=cases.LAST),
    }
    acts = mijax.capture(model, TOKENS, sites)
    latents = sae().encode(acts["out"])
    np.testing.assert_array_equal(found.latents[latents == 0], 0)
    row = latents[:, -1:] * d.direction(sae(), LATENTS - 1)
    head = model.unembedding or nn.Unembedding(model.embedding.weight)
    to = head.weight[METRIC.answer] - head.weight[METRIC.wrong]
    expected = (nn.scaled_like(model.norm, row, acts["end"]) * to).sum(1)
    chex.assert_trees_all_close(found.latents[:, -1], expected, atol=1e-4)


def test_one_answer_alone():
    site = Site("mlp_out", layer=2)
    parts = [attributed("gpt2", site, jnp.array(token)) for token in (4, 9)]
    both = attributed("gpt2", site, jnp.array(4), jnp.array(9))
    less = jax.tree.map(jnp.subtract, *parts)
    chex.assert_trees_all_close(less, both, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logit_weights(name):
    model = cases.model(name)
    found = d.logit_weights(model, sae(), jnp.array([3, 7]))
    assert found.shape == (2, 64)
    chex.assert_trees_all_close(d.logit_weights(model, sae(), 7), found[1], atol=1e-5)
    # Adding the direction to the last stream moves logits along the weights, where
    # the scale of the norm is held.
    x = mijax.capture(model, TOKENS[0], Site("resid_post", layer=2, position=6))
    moved = nn.scaled_like(model.norm, d.direction(sae(), 3), x)
    logits = model.unembed(moved) - model.unembed(jnp.zeros(32))
    share = np.asarray(logits) / np.asarray(found[0])
    np.testing.assert_allclose(share, share[0], rtol=1e-3)


@functools.cache
def linear():
    """A model whose logits are linear in its last residual stream."""
    model = cases.model("gpt2")
    return eqx.tree_at(lambda m: m.norm, model, nn.Identity())


def patched(model, site, which):
    """The exact fall of the metric when a latent becomes the corrupt one."""
    other = d.latents(model, sae(), OTHER, site)
    edits = d.Splice(sae(), d.OnLatents(mijax.Patch(other), which)).at(site)
    return METRIC(mijax.run(model, TOKENS)) - METRIC(mijax.run(model, TOKENS, edits))


def test_attribution_is_exact_where_the_model_is_linear():
    site = Site("resid_post", layer=2)
    found = d.attribute_latents(linear(), sae(), TOKENS, OTHER, METRIC, site)
    assert found.latents.shape == (*TOKENS.shape, LATENTS)
    for latent in (5, 25, 39):
        exact = patched(linear(), site, latent)
        chex.assert_trees_all_close(found.latents[..., latent].sum(1), exact, atol=1e-3)
    # All latents and the error together are the activation, here of all that follows.
    whole = METRIC(mijax.run(linear(), TOKENS)) - METRIC(mijax.run(linear(), OTHER))
    chex.assert_trees_all_close(found.total(), whole, atol=1e-3)
    assert (np.abs(whole) > 0.1).all()


def test_integrated_gradients_are_complete():
    model, site = cases.model("gpt2"), Site("z", layer=1)
    acts = mijax.capture(model, OTHER, Site("z"))
    clean = METRIC(mijax.run(model, TOKENS))
    whole = clean - METRIC(mijax.run(model, TOKENS, mijax.Patch(acts).at(site)))
    found = d.attribute_latents(model, sae(), TOKENS, OTHER, METRIC, site, steps=16)
    chex.assert_trees_all_close(found.total(), whole, atol=0.02)
    mean = mijax.interval(found.latents.sum(1))
    assert mean.mean.shape == (LATENTS,)
    # Prompts of a batch do not know of each other, and padding is worth nothing.
    back = mijax.logit_difference(
        *(METRIC.answer[::-1], METRIC.wrong[::-1]), position=cases.LAST[::-1]
    )
    other = d.attribute_latents(
        model, sae(), TOKENS[::-1], OTHER[::-1], back, site, steps=16
    )
    chex.assert_trees_all_close(other.latents[::-1], found.latents, atol=1e-5)
    np.testing.assert_allclose(found.latents[1, 5:], 0, atol=1e-6)


def test_small_changes_are_what_gradients_say():
    model, site = cases.model("gpt2"), Site("mlp_out", layer=1)
    f = d.latents(model, sae(), TOKENS, site)
    found = d.attribute_latents(model, sae(), TOKENS, None, METRIC, site)
    # Towards zero: a latent that is a little smaller loses that share of its score.
    latent = int(jnp.abs(found.latents).sum((0, 1)).argmax())
    edits = [d.Splice(sae(), d.scale(latent, s)).at(site) for s in (1.005, 0.995)]
    more, less = (METRIC(mijax.run(model, TOKENS, e)) for e in edits)
    slope = (more - less) / 0.01
    chex.assert_trees_all_close(
        found.latents[..., latent].sum(1), slope, atol=0.05, rtol=0.02
    )
    np.testing.assert_array_equal(found.latents[f == 0], 0)


def test_steering_by_a_latent():
    # Adding the direction is the same as holding the latent so much higher.
    x = jax.random.normal(jax.random.key(2), (4, 32))
    place = Place(Sequence(jnp.arange(4)))
    f = sae().encode(x)
    steered = mijax.Add(d.direction(sae(), 5), 8.0)(x, place)
    held = d.Splice(sae(), d.hold(5, f[0, 5] + 8.0))(x[:1], place)
    chex.assert_trees_all_close(steered[0], held[0], atol=1e-4)


def direct(given=None, site=None, tokens=TOKENS):
    return d.direct_latent_attribution(
        *(cases.model("gpt2"), given or sae(), tokens, jnp.array(4)),
        site=site or Site("mlp_out", layer=1),
        position=cases.LAST,
    )


def scores(site=None, other=OTHER, **options):
    site = site or Site("mlp_out", layer=1)
    return d.attribute_latents(
        *(cases.model("gpt2"), sae(), TOKENS, other, METRIC, site), **options
    )


def coder():
    return d.untrained(
        d.ReLU(), d.Transcoder(32), latents=LATENTS, key=jax.random.key(0)
    )


BAD = {
    "site": (lambda: direct(site=Site("q", layer=1)), SiteError, "not added"),
    "layer": (lambda: direct(site=Site("mlp_out")), SiteError, "layer="),
    "wiring": (lambda: direct(coder()), ShapeError, "an SAE"),
    "width": (lambda: direct(sae(16)), ShapeError, r"reads activations \[16\]"),
    "place": (
        lambda: direct(site=Site("mlp_out", layer=1, position=2)),
        PositionError,
        "beside the site",
    ),
    "one_prompt": (lambda: direct(tokens=TOKENS[0]), ShapeError, "batch"),
    "beyond": (lambda: d.direction(sae(), LATENTS), SiteError, "0 to 39"),
    "negative": (lambda: d.direction(sae(), -1), SiteError, "Latent -1"),
    "one_beyond": (
        lambda: d.logit_weights(cases.model("gpt2"), sae(), jnp.array([3, 5000])),
        SiteError,
        "Latent 5000",
    ),
    "vocabulary": (
        lambda: d.logit_weights(cases.model("gpt2"), sae(16), 0),
        ShapeError,
        "size 32",
    ),
    "counterpart": (lambda: scores(other=OTHER[:2]), PositionError, "counterpart"),
    "steps": (lambda: scores(steps=0), ConfigError, "one point"),
    "whole": (
        lambda: scores(site=Site("mlp_out", layer=1, position=2)),
        PositionError,
        "whole activations",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case, unchecked):
    make, error, said = BAD[case]
    with pytest.raises(error, match=said):
        make()
