"""Bad input gets one line that says what was given, expected and to do."""

import jax.numpy as jnp
import pytest
from cases import CLEAN, acts_of, model

import mijax
from mijax._errors import MijaxError, PositionError, ShapeError, SiteError
from mijax.core import Site

ONE = model("gpt2")


def read(site):
    return mijax.capture(ONE, CLEAN, site)


def edited(name, **place):
    return mijax.run(ONE, CLEAN, mijax.Zero().at(name, **place))


CASES = [
    (lambda: read(Site("resid_per")), SiteError, "Did you mean 'resid_pre'"),
    (lambda: read("hook_z"), SiteError, "no site 'hook_z'"),
    (lambda: read(Site("embed", layer=1)), SiteError, "has no layer"),
    (lambda: read(Site("mlp_out", head=1)), SiteError, "has no heads"),
    (lambda: edited("resid_per"), SiteError, "Did you mean 'resid_pre'"),
    (lambda: edited("embed", layer=1), SiteError, "has no layer"),
    (lambda: edited("mlp_out", head=1), SiteError, "has no heads"),
    (lambda: edited("z", heads=1), SiteError, "no axis 'heads'. Did you mean 'head'"),
    (lambda: edited("z", where=[True] * 3), ShapeError, "does not broadcast"),
    (lambda: Site("z", layer=-1), SiteError, "counts from 0"),
    (lambda: Site("z", position=-1), PositionError, "prompts.last"),
    (lambda: Site("z", position=slice(0, 4, 2)), PositionError, "no step"),
    (lambda: Site("z", layer=1.5), ShapeError, "integer"),
    (
        lambda: mijax.run(ONE, CLEAN, mijax.Zero().at("z", layer=3)),
        SiteError,
        "layers 0 to 2",
    ),
    (
        lambda: mijax.run(ONE, CLEAN, mijax.Zero().at("z", head=4)),
        SiteError,
        "heads 0 to 3",
    ),
    (
        lambda: mijax.run(ONE, CLEAN, mijax.Zero().at("z", position=7)),
        PositionError,
        "7 tokens",
    ),
    (
        lambda: mijax.run(ONE, CLEAN, mijax.Zero().at("z", position=[1, 2])),
        PositionError,
        "one per prompt",
    ),
    (
        lambda: mijax.run(
            model("parallel"), CLEAN, mijax.Zero().at("resid_mid", layer=0)
        ),
        SiteError,
        "no site 'resid_mid'",
    ),
    (lambda: mijax.run(ONE, CLEAN, mijax.Zero()), SiteError, "edit.at"),
    (lambda: mijax.run(ONE, CLEAN[None]), ShapeError, "batch, seq"),
    (lambda: mijax.run(ONE, CLEAN * 1.0), ShapeError, "an integer"),
    (lambda: ONE(CLEAN), ShapeError, "one example"),
    (
        lambda: mijax.run(ONE, CLEAN, mijax.Add(jnp.ones(7)).at("z")),
        ShapeError,
        "does not fit",
    ),
    (
        lambda: mijax.run(ONE, CLEAN, mijax.Patch(jnp.ones((3, 4))).at("z")),
        ShapeError,
        "rank 4",
    ),
    (
        lambda: mijax.Patch({"z": jnp.ones((3, 7, 4, 8))}).at("q"),
        SiteError,
        "only of z",
    ),
    (
        lambda: mijax.run(
            ONE, CLEAN[0], mijax.Patch(acts_of("gpt2", "z")).at("z", layer=0)
        ),
        ShapeError,
        "a single one is run",
    ),
    (
        lambda: mijax.run(
            ONE, CLEAN, mijax.Patch(acts_of("llama", "z")[..., :4]).at("z", layer=0)
        ),
        ShapeError,
        "same model",
    ),
    (
        lambda: mijax.run(ONE, CLEAN, mijax.Project(jnp.ones(5)).at("z")),
        ShapeError,
        "size 5",
    ),
    (lambda: mijax.capture(ONE, CLEAN, 3), SiteError, "Give a Site"),
    (
        lambda: mijax.capture(
            ONE, CLEAN, Site("z", position=slice(jnp.arange(3), None))
        ),
        PositionError,
        "fixed integers",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("bad", "error", "says"), CASES)
def test_one_line(bad, error, says):
    with pytest.raises(error, match=says) as caught:
        bad()
    assert isinstance(caught.value, MijaxError)
    assert "\n" not in str(caught.value)


def test_unknown_keywords_raise():
    with pytest.raises(TypeError):
        mijax.run(ONE, CLEAN, hooks=[])  # pyright: ignore
