"""Masks and axes by name in decoders: against writing into the array."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, CORRUPT, METRIC, model

import mijax
from mijax import Patch, PerPrompt, Scale, Site, Zero
from mijax.attribution import attribute

ONE = model("gpt2")
MASK = np.random.default_rng(1).random((7, 32)) < 0.3
HEADS = np.random.default_rng(2).random((7, 4, 1)) < 0.4


def written(site, layer, mask, factor=0.0):
    """Patch in the unedited activations with the masked part scaled."""
    acts = mijax.capture(ONE, CORRUPT, site)
    new = jnp.where(jnp.asarray(mask), factor * acts[:, layer], acts[:, layer])
    edit = Patch(acts.at[:, layer].set(new)).at(site, layer=layer)
    return mijax.run(ONE, CORRUPT, edit)


@pytest.mark.parametrize(
    ("site", "mask"),
    [
        ("mlp_out", MASK),
        ("z", HEADS),
        ("resid_pre", MASK[0]),
        ("resid_mid", MASK[:, :1]),
    ],
)
def test_a_mask_of_positions_and_features(site, mask):
    edit = Scale(2.0).at(site, layer=1, where=mask)
    chex.assert_trees_all_close(
        mijax.run(ONE, CORRUPT, edit), written(site, 1, mask, 2.0), atol=1e-5
    )


def test_a_mask_in_a_sweep_and_in_generation():
    edit = Zero().at("z", where=HEADS)
    found = mijax.sweep(ONE, CORRUPT, edit, over=("layer", "head"), metric=METRIC)
    for layer, head in ((0, 1), (2, 3)):
        mask = HEADS & (np.arange(4) == head)[:, None]
        want = METRIC(written("z", layer, mask))
        chex.assert_trees_all_close(found.values[:, layer, head], want, atol=2e-5)
    own = Zero().at("resid_post", layer=2, where=np.ones((7, 1), bool))
    same = Zero().at("resid_post", layer=2, position=slice(0, 7))
    chex.assert_trees_all_equal(
        mijax.generate(ONE, CORRUPT, edits=own, steps=3),
        mijax.generate(ONE, CORRUPT, edits=same, steps=3),
    )


def test_the_last_axis_has_its_own_name():
    places = {
        "mlp_post": ({"mlp": [3, 9]}, {"feature": [3, 9]}),
        "resid_pre": ({"embed": 5}, {"feature": 5}),
        "z": ({"head_dim": PerPrompt([1, 2, 3])}, {"feature": PerPrompt([1, 2, 3])}),
        "pattern": ({"key_position": slice(1, 3)}, {"feature": [1, 2]}),
    }
    for site, (named, feature) in places.items():
        found = mijax.run(ONE, CORRUPT, Zero().at(site, layer=1, **named))
        want = mijax.run(ONE, CORRUPT, Zero().at(site, layer=1, **feature))
        chex.assert_trees_all_equal(found, want)
        assert (found != mijax.run(ONE, CORRUPT)).any()
    direct = ONE(CORRUPT[0], Zero().at("mlp_post", layer=1, mlp=[3, 9]))[0]
    want = mijax.run(ONE, CORRUPT[0], Zero().at("mlp_post", layer=1, feature=[3, 9]))
    chex.assert_trees_all_close(direct, want, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_names_are_those_that_sites_show(name):
    for site, info in mijax.sites(model(name), CORRUPT[0]).items():
        place = {info.axes[-1]: 0}
        mijax.capture(model(name), CORRUPT, Site(site, position=1, **place))


def test_what_is_read_and_swept_by_that_name():
    named, feature = (
        Site("mlp_post", layer=1, mlp=4),
        Site("mlp_post", layer=1, feature=4),
    )
    for verb in (
        lambda site: mijax.capture(ONE, CORRUPT, site),
        lambda site: mijax.gradients(ONE, CORRUPT, METRIC, site),
    ):
        chex.assert_trees_all_equal(verb(named), verb(feature))
    edit = Zero().at("mlp_post", layer=1)
    norms = [
        mijax.sweep(ONE, CORRUPT, edit, over="position", metric=metric).values
        for metric in (
            mijax.site_metric(site.replace(position=3)) for site in (named, feature)
        )
    ]
    chex.assert_trees_all_equal(*norms)
    swept = [
        mijax.sweep(ONE, CORRUPT, edit, over={name: [1, [2, 3]]}, metric=METRIC).values
        for name in ("mlp", "feature")
    ]
    chex.assert_trees_all_equal(*swept)


REFUSED = {
    "mask": (Zero().at("z", where=MASK), "does not broadcast to site 'z'"),
    "length": (Zero().at("mlp_out", where=MASK[:5]), "does not broadcast"),
    "numbers": (lambda: Zero().at("z", where=np.ones(8)), "boolean mask"),
    "name": (Zero().at("z", embed=1), "Did you mean|no axis 'embed'"),
    "index": (Zero().at("mlp_out", embed=32), "embeds 0 to 31"),
    "span": (Zero().at("mlp_out", embed=slice(0, 33)), "out of range"),
    "prompts": (Zero().at("z", head_dim=PerPrompt([1, 2])), "one per prompt"),
    "twice": (Zero().at("z", head_dim=1, feature=2), "one axis"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_places_that_do_not_exist_are_refused(case):
    edit, says = REFUSED[case]
    with pytest.raises(mijax.MijaxError, match=says):
        mijax.run(ONE, CORRUPT, edit() if callable(edit) else edit)


@pytest.mark.usefixtures("unchecked")
def test_axes_that_are_one_are_not_given_twice():
    over = {"feature": [1], "head_dim": [2]}
    with pytest.raises(mijax.MijaxError, match="the same"):
        mijax.sweep(ONE, CORRUPT, Zero().at("z"), over=over, metric=METRIC)
    edit = Zero().at("z", head_dim=1)
    with pytest.raises(mijax.MijaxError, match="fixed feature"):
        mijax.sweep(ONE, CORRUPT, edit, over=("feature",), metric=METRIC)
    read = Site("mlp_post", layer=1, mlp=2)
    with pytest.raises(mijax.MijaxError, match="give feature="):
        attribute(ONE, CLEAN, CORRUPT, metric=METRIC, sites=read)
    with pytest.raises(mijax.MijaxError, match="one axis"):
        mijax.capture(ONE, CORRUPT, Site("z", feature=1, head_dim=2))
