"""Metrics of activations: against captures and NumPy."""

from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, CORRUPT, LAST, METRIC, model
from compiles import compiles
from toys import TOYS

import mijax
from mijax import Patch, Site, Zero, site_metric
from mijax.data import Prompts

ONE = model("gpt2")
DIRECTION = jax.random.normal(jax.random.key(4), (32,))
NORM = site_metric(Site("resid_post", layer=1, position=LAST), jnp.linalg.norm)
ALONG = site_metric(
    Site("mlp_out", layer=2, position=3), eqx.Partial(jnp.vdot, DIRECTION)
)
UNIT = site_metric(Site("z", layer=1, position=LAST, head=2, feature=5))
EVERY = site_metric(
    Site("pattern", layer=2, head=1), lambda pattern: pattern[:, 0].sum()
)


def expected(edits=None, tokens=CORRUPT):
    """Each metric from whole captures, in NumPy."""
    names = ("resid_post", "mlp_out", "z", "pattern")
    acts = mijax.capture(ONE, tokens, {name: name for name in names}, edits)
    acts = {name: np.asarray(value) for name, value in acts.items()}
    rows = np.arange(len(tokens))
    return {
        "norm": np.sqrt((acts["resid_post"][rows, 1, LAST] ** 2).sum(-1)),
        "along": acts["mlp_out"][:, 2, 3] @ np.asarray(DIRECTION),
        "unit": acts["z"][rows, 1, LAST, 2, 5],
        "every": acts["pattern"][:, 2, :, 1, 0].sum(-1),
        "logits": np.asarray(METRIC(mijax.run(ONE, tokens, edits))),
    }


METRICS = {"norm": NORM, "along": ALONG, "logits": METRIC, "unit": UNIT, "every": EVERY}


def test_a_sweep_measures_activations_next_to_logits():
    patch = Patch(mijax.capture(ONE, CLEAN, "z")).at("z")
    over = {"layer": None, "position": [1, 3, LAST]}
    found = mijax.sweep(ONE, CORRUPT, patch, over=over, metric=METRICS)
    base = expected()
    for name, result in found.items():
        chex.assert_trees_all_close(result.base, base[name], atol=2e-5)
    for layer in range(3):
        for i, position in enumerate(over["position"]):
            edit = Patch(mijax.capture(ONE, CLEAN, "z"))
            want = expected(edit.at("z", layer=layer, position=position))
            for name, result in found.items():
                got = result.values[:, layer, i]
                chex.assert_trees_all_close(got, want[name], atol=2e-5)
    # The site of this metric is before the last edit.
    above = found["norm"].values[:, 2]
    chex.assert_trees_all_close(above, base["norm"][:, None].repeat(3, 1), atol=2e-5)


@pytest.mark.parametrize("name", ["norm", "every"])
def test_one_metric_of_activations(name):
    edit, over = Zero().at("resid_pre"), ("layer", "position")
    found = mijax.sweep(ONE, CORRUPT, edit, over=over, metric=METRICS[name])
    want = expected(Zero().at("resid_pre", layer=1, position=2))[name]
    chex.assert_trees_all_close(found.values[:, 1, 2], want, atol=2e-5)
    chex.assert_trees_all_close(found.base, expected()[name], atol=2e-5)


def test_gradients_are_finite_differences():
    site = Site("resid_pre", layer=1, position=2)
    found = mijax.gradients(ONE, CORRUPT, NORM, site)
    step = 1e-2 * jax.random.normal(jax.random.key(1), (32,))
    ends = [
        expected(mijax.Add(sign * step).at("resid_pre", layer=1, position=2))["norm"]
        for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / 2
    chex.assert_trees_all_close(found @ step, slope, rtol=2e-3, atol=1e-5)
    above = mijax.gradients(ONE, CORRUPT, NORM, Site("resid_pre", layer=2))
    assert not above.any()


def test_other_layers_and_directions_do_not_compile():
    def both(layer, direction):
        function = eqx.Partial(jnp.vdot, direction)
        look = site_metric(Site("resid_post", layer=layer, position=2), function)
        mijax.sweep(ONE, CORRUPT, Zero().at("z"), over="layer", metric=look)
        mijax.gradients(ONE, CORRUPT, look, "z")

    both(1, DIRECTION)
    other = 2 * DIRECTION
    with compiles() as programs:
        both(2, other)
    assert programs == []


@pytest.mark.parametrize("name", ["encoder", "unrolled", "cnn"])
def test_functions(name):
    fn, example = TOYS[name]
    one = mijax.model(fn, example)
    inputs = example + jax.random.normal(jax.random.key(3), (3, *example.shape))
    site, axis = ("relu", "channel") if name == "cnn" else ("z", "head")
    looks = {
        "norm": site_metric(Site(site, layer=1), jnp.linalg.norm),
        "part": site_metric(Site(site, layer=2, **{axis: 1}), jnp.max),
        "output": lambda out: out[0],
    }

    def by_hand(edits):
        acts = mijax.capture(one, inputs, site, edits)
        layers = acts if isinstance(acts, tuple) else jnp.moveaxis(acts, 1, 0)
        at = 0 if name == "cnn" else 1
        part = jnp.take(layers[2], 1, axis=1 + at)
        return {
            "norm": jnp.sqrt((layers[1].reshape(3, -1) ** 2).sum(-1)),
            "part": part.reshape(3, -1).max(-1),
            "output": mijax.run(one, inputs, edits)[:, 0],
        }

    edit = mijax.Scale(-2.0)
    over = {"layer": [0, 2], axis: [0, 1]}
    found = mijax.sweep(one, inputs, edit.at(site), over=over, metric=looks)
    chex.assert_trees_all_close(
        {key: value.base for key, value in found.items()}, by_hand(None), atol=1e-5
    )
    for i, layer in enumerate((0, 2)):
        want = by_hand(edit.at(site, layer=layer, **{axis: 1}))
        got = {key: value.values[:, i, 1] for key, value in found.items()}
        chex.assert_trees_all_close(got, want, atol=1e-5)
    slope = mijax.gradients(one, inputs, looks["norm"], Site(site, layer=1))
    acts = mijax.capture(one, inputs, Site(site, layer=1))
    norm = jnp.sqrt((acts.reshape(3, -1) ** 2).sum(-1))
    chex.assert_trees_all_close(
        slope, acts / norm.reshape(3, *(1,) * (acts.ndim - 1)), atol=1e-5
    )


BAD: Any = 3


def sweep(metric, tokens: Any = CORRUPT):
    return mijax.sweep(ONE, tokens, Zero().at("z"), over="layer", metric=metric)


PADDED = Prompts.from_ids([[1, 2, 3], [4, 5, 6, 7]])
REFUSED = {
    "site": (lambda: site_metric(3), "reads a site"),
    "function": (lambda: site_metric("z", BAD), "takes a function"),
    "every layer": (lambda: sweep(site_metric("z", jnp.sum)), "one layer"),
    "outside": (lambda: sweep(site_metric("embed", jnp.sum)), "one layer"),
    "unknown": (lambda: sweep(site_metric(Site("zz", layer=1))), "no site 'zz'"),
    "no number": (lambda: sweep(site_metric(Site("z", layer=1))), "one number"),
    "span": (
        lambda: sweep(site_metric(Site("z", layer=1, position=slice(0, 2)), jnp.sum)),
        "one position",
    ),
    "beyond": (
        lambda: sweep(site_metric(Site("z", layer=1, position=9), jnp.sum)),
        "position 9",
    ),
    "padding": (
        lambda: sweep(site_metric(Site("z", layer=1), jnp.sum), PADDED),
        "read padding",
    ),
    "logits": (lambda: NORM(mijax.run(ONE, CORRUPT)), "no logits"),
    "circuits": (
        lambda: mijax.circuits.Task(CLEAN, CORRUPT, metric=NORM),
        "sweep and gradients",
    ),
    "negative": (lambda: mijax.negative(NORM), "change the sign"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused(case):
    call, says = REFUSED[case]
    with pytest.raises(mijax.MijaxError, match=says):
        call()
