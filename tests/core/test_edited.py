"""A model that keeps its edits equals the model with edits given to each verb."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site, circuits, lens
from mijax._errors import PositionError, SiteError
from mijax.attribution import attribute

CLEAN, METRIC = cases.CLEAN, cases.METRIC


def edits(name):
    """Every kind of place: a head, a position, one place per prompt, all layers."""
    shift = jax.random.normal(jax.random.key(5), (32,))
    found = [
        mijax.Zero().at("z", layer=1, head=2),
        mijax.Scale(0.5).at("pattern", layer=0, position=3),
        mijax.Add(shift).at("attn_out", layer=1, position=cases.LAST),
        mijax.Scale(0.9).at("resid_post"),
    ]
    return (
        found
        if name == "attention_only"
        else [*found, mijax.Zero().at("mlp_out", layer=1)]
    )


@pytest.mark.parametrize("name", ["llama", "attention_only"])
def test_verbs_start_from_the_edited_model(name):
    model, kept = cases.model(name), edits(name)
    edited = mijax.edited(model, kept)
    sites = {s: Site(s) for s in ("z", "attn_out", "resid_post", "logits")}
    more = mijax.Scale(2.0).at("z", layer=1, head=0)
    for new in (None, more):
        both = kept if new is None else [*kept, new]
        ours = mijax.capture(edited, CLEAN, sites, new)
        theirs = mijax.capture(model, CLEAN, sites, both)
        for site in sites:
            np.testing.assert_array_equal(ours[site], theirs[site])
    ours = mijax.gradients(edited, CLEAN, METRIC, Site("z"))
    theirs = mijax.gradients(model, CLEAN, METRIC, Site("z"), kept)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    cells = {"layer": [0, 1], "head": [0, 2]}
    ours = mijax.sweep(edited, CLEAN, mijax.Zero().at("z"), over=cells, metric=METRIC)
    theirs = mijax.sweep(
        model, CLEAN, mijax.Zero().at("z"), over=cells, metric=METRIC, edits=kept
    )
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5)


def test_generation_keeps_the_edits():
    model, prompt = cases.model("llama"), CLEAN[0]
    kept = [
        mijax.Zero().at("z", layer=1, head=2),
        mijax.Scale(0.5).at("resid_post", layer=0, position=slice(5, 9)),
    ]
    plain = mijax.generate(model, prompt, steps=6)
    ours = mijax.generate(mijax.edited(model, kept), prompt, steps=6)
    np.testing.assert_array_equal(
        ours, mijax.generate(model, prompt, steps=6, edits=kept)
    )
    assert (ours != plain).any()


def test_lens_and_attribution():
    model, kept = cases.model("gpt2"), edits("gpt2")
    edited = mijax.edited(model, kept)
    read = lens.logit_lens(edited, CLEAN, ids=[4, 7])
    stream = mijax.capture(model, CLEAN, Site("resid_post"), kept)
    logits = model.unembed(model.normalise(stream))[..., jnp.array([4, 7])]
    np.testing.assert_allclose(read.logits, logits, atol=1e-5)

    found = attribute(edited, CLEAN, cases.CORRUPT, METRIC, Site("resid_mid"))
    acts = (
        mijax.capture(model, tokens, Site("resid_mid"), kept)
        for tokens in (CLEAN, cases.CORRUPT)
    )
    clean, corrupt = acts
    slope = mijax.gradients(model, CLEAN, METRIC, Site("resid_mid"), kept)
    np.testing.assert_allclose(found, (slope * (clean - corrupt)).sum(-1), atol=1e-5)


def test_circuits_of_an_edited_model():
    model = cases.model("llama")
    kept = mijax.Zero().at("z", layer=1, head=2)
    edited = mijax.edited(model, kept)
    task = circuits.Task(CLEAN, cases.CORRUPT, metric=METRIC)
    graph = circuits.Graph.of(edited)
    assert graph == circuits.Graph.of(model)
    scores = circuits.discover(edited, task, method=circuits.Exact())
    sender = graph.senders.index("a1.h2")
    effects = np.asarray(scores.values)
    np.testing.assert_allclose(effects[sender], 0, atol=1e-5)
    assert np.abs(effects[sender - 1]).max() > 1e-2


def test_what_cannot_be_kept_is_refused():
    model = cases.model("gpt2")
    for name in ("embed", "resid_pre", "logits"):
        with pytest.raises(SiteError, match=f"inside its blocks, got one at '{name}'"):
            mijax.edited(model, mijax.Zero().at(name))
    wrong = mijax.edited(model, mijax.Zero().at("z", layer=7))
    with pytest.raises(SiteError, match="layer 7 is out of range"):
        mijax.run(wrong, CLEAN)
    late = mijax.edited(model, mijax.Zero().at("z", position=9))
    with pytest.raises(PositionError, match="Position 9 is beyond the prompt"):
        mijax.run(late, CLEAN)
    task = circuits.Task(CLEAN, cases.CORRUPT, metric=METRIC)
    stream = mijax.edited(model, mijax.Scale(0.9).at("resid_post", layer=1))
    with pytest.raises(SiteError, match="'resid_post' are not written by any node"):
        circuits.discover(stream, task, method=circuits.EAP())
