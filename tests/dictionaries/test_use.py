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


@pytest.mark.parametrize("name", ["gpt2", "llama", "parallel"])
def test_direct_attribution_is_that_of_the_lens(name):
    model, read = cases.model(name), cases.LAST
    answer, wrong = METRIC.answer, METRIC.wrong
    lens = mijax.lens.direct_logit_attribution(
        model, TOKENS, answer, wrong, position=read
    )
    z = mijax.capture(model, TOKENS, Site("z", layer=1, position=read))

    def direct(site, width=32):
        return d.direct_latent_attribution(
            *(model, sae(width), TOKENS, answer, wrong), site=site, position=read
        )

    found = direct(Site("mlp_out", layer=1))
    chex.assert_trees_all_close(found.total(), lens.mlps[:, 1], atol=1e-4)
    last = direct(Site("resid_post", layer=2))
    chex.assert_trees_all_close(last.total(), lens.total() - lens.bias, atol=1e-4)
    embed = direct(Site("embed"))
    chex.assert_trees_all_close(embed.total(), lens.embed, atol=1e-4)
    heads = direct(Site("z", layer=1), z.shape[-1] * z.shape[-2])
    chex.assert_trees_all_close(heads.total(), lens.heads[:, 1].sum(1), atol=1e-4)
    # A latent's part is its row alone, and none where it is not active.
    out = mijax.capture(model, TOKENS, Site("mlp_out", layer=1, position=read))
    latents = sae().encode(out)
    np.testing.assert_array_equal(found.latents[latents == 0], 0)
    end = mijax.capture(model, TOKENS, Site("resid_post", layer=2, position=read))
    row = latents[:, -1:] * d.direction(sae(), LATENTS - 1)
    head = model.unembedding or nn.Unembedding(model.embedding.weight)
    to = head.weight[answer] - head.weight[wrong]
    expected = (nn.scaled_like(model.norm, row, end) * to).sum(1)
    chex.assert_trees_all_close(found.latents[:, -1], expected, atol=1e-4)


def test_one_answer_alone():
    model = cases.model("gpt2")
    parts = [
        d.direct_latent_attribution(
            *(model, sae(), TOKENS, jnp.array(token)),
            site=Site("mlp_out", layer=2),
            position=cases.LAST,
        )
        for token in (4, 9)
    ]
    both = d.direct_latent_attribution(
        *(model, sae(), TOKENS, jnp.array(4), jnp.array(9)),
        site=Site("mlp_out", layer=2),
        position=cases.LAST,
    )
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
    # All latents and the error together are the activation.
    acts = mijax.capture(linear(), OTHER, Site("resid_post"))
    edits = mijax.Patch(acts).at(site)
    whole = METRIC(mijax.run(linear(), TOKENS))
    whole = whole - METRIC(mijax.run(linear(), TOKENS, edits))
    chex.assert_trees_all_close(found.total(), whole, atol=1e-3)
    assert (np.abs(whole) > 0.1).all()
    # The path does not matter on a straight model.
    path = d.attribute_latents(linear(), sae(), TOKENS, OTHER, METRIC, site, steps=2)
    chex.assert_trees_all_close(found, path, atol=1e-3)


def test_integrated_gradients_are_complete():
    model, site = cases.model("gpt2"), Site("mlp_out", layer=1)
    acts = mijax.capture(model, OTHER, Site("mlp_out"))
    clean = METRIC(mijax.run(model, TOKENS))
    whole = clean - METRIC(mijax.run(model, TOKENS, mijax.Patch(acts).at(site)))
    few, many = (
        d.attribute_latents(model, sae(), TOKENS, OTHER, METRIC, site, steps=n)
        for n in (4, 32)
    )
    chex.assert_trees_all_close(many.total(), whole, atol=0.01)
    off = [float(np.abs(s.total() - whole).max()) for s in (few, many)]
    assert off[1] < off[0]
    mean = mijax.interval(many.latents.sum(1))
    assert mean.mean.shape == (LATENTS,)
    # Prompts of a batch do not know of each other, and padding is worth nothing.
    alone = d.attribute_latents(
        *(model, sae(), TOKENS[1, :5], OTHER[1, :5]),
        mijax.logit_difference(5, 8, position=4),
        site,
        steps=4,
    )
    chex.assert_trees_all_close(alone.latents, few.latents[1, :5], atol=1e-4)
    np.testing.assert_allclose(few.latents[1, 5:], 0, atol=1e-6)


def test_small_changes_are_what_gradients_say():
    model, site = cases.model("llama"), Site("resid_mid", layer=1)
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


def test_scores_of_joined_heads():
    model, site = cases.model("gpt2"), Site("z", layer=1)
    z, other = (mijax.capture(model, t, site) for t in (TOKENS, OTHER))
    gradient = mijax.gradients(model, TOKENS, METRIC, site)
    found = d.attribute_latents(model, sae(), TOKENS, OTHER, METRIC, site)
    expected = ((z - other) * gradient).sum((1, 2, 3))
    chex.assert_trees_all_close(found.total(), expected, atol=1e-4)


def test_steering_by_a_latent():
    model = cases.model("gpt2")
    site = Site("resid_post", layer=1)
    steered = mijax.Add(d.direction(sae(), 5), 8.0).at(site)
    f = d.latents(model, sae(), TOKENS, site)
    held = d.Splice(sae(), mijax.Set(f[0, 3].at[5].add(8.0))).at(
        Site("resid_post", layer=1, position=3)
    )
    ours = mijax.capture(model, TOKENS[0], site, steered)[3]
    theirs = mijax.capture(model, TOKENS[0], site, held)[3]
    chex.assert_trees_all_close(ours, theirs, atol=1e-4)


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
    "vocabulary": (
        lambda: d.logit_weights(cases.model("gpt2"), sae(16), 0),
        ShapeError,
        "size 32",
    ),
    "counterpart": (lambda: scores(other=OTHER[:2]), PositionError, "counterparts"),
    "steps": (lambda: scores(steps=0), ConfigError, "one point"),
    "whole": (
        lambda: scores(site=Site("mlp_out", layer=1, position=2)),
        PositionError,
        "whole activations",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    make, error, said = BAD[case]
    with pytest.raises(error, match=said):
        make()
