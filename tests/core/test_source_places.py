"""Patches that read another place than the edited one: against `Set` by hand."""

import functools
import itertools

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
from mijax import Patch, PerPrompt, Set, Zero
from mijax.data import Prompts

ONE = model("gpt2")
RESID = mijax.capture(ONE, CLEAN, "resid_pre")
Z = mijax.capture(ONE, CLEAN, "z")


def by_hand(site, values, **place):
    """Set each prompt's own value, one prompt at a time."""
    runs = []
    for i, value in enumerate(values):
        own = {k: v[i] if jnp.ndim(v) else v for k, v in place.items()}
        runs.append(mijax.run(ONE, CORRUPT[i], Set(value).at(site, **own)))
    return jnp.stack(runs)


def test_another_layer_and_a_position_per_prompt():
    source, target = jnp.array([4, 2, 5]), jnp.array([3, 1, 6])
    edit = Patch(RESID).from_place(layer=2, position=source)
    found = mijax.run(ONE, CORRUPT, edit.at("resid_pre", layer=1, position=target))
    values = RESID[jnp.arange(3), 2, source]
    want = by_hand("resid_pre", values, layer=1, position=target)
    chex.assert_trees_all_close(found, want, atol=1e-5)


def test_another_head_per_prompt_and_every_position():
    head = jnp.array([3, 0, 2])
    edit = Patch(Z).from_place(layer=0, position=2, head=PerPrompt(head))
    found = mijax.run(ONE, CORRUPT, edit.at("z", layer=2, head=1))
    values = Z[jnp.arange(3), 0, 2, head]
    want = by_hand("z", values, layer=2, head=1)
    chex.assert_trees_all_close(found, want, atol=1e-5)


def test_activations_from_another_model_and_from_longer_prompts():
    other = mijax.testing.tiny_llama(jax.random.key(9))
    first = Prompts.from_ids([list(range(1, n)) for n in (10, 12, 8)])
    second = Prompts.from_ids([[5, 9, 2, 7], [1, 2, 3, 4, 5, 6], [6, 5]])
    acts = mijax.capture(other, first, "resid_post")
    assert acts.shape[2] > second.tokens.shape[1]
    edit = Patch(acts).from_place(layer=1, position=first.last)
    found = mijax.run(ONE, second, edit.at("resid_pre", layer=0, position=second.last))
    for i, (at, into) in enumerate(zip(first.last, second.last, strict=True)):
        alone = second.tokens[i, : into + 1]
        value = Set(acts[i, 1, at]).at("resid_pre", layer=0, position=into)
        want = mijax.run(ONE, alone, value)
        chex.assert_trees_all_close(found[i, : into + 1], want, atol=1e-5)


def test_a_source_with_layers_at_a_site_without():
    edit = Patch(RESID).from_place(layer=2).at("embed", position=3)
    want = by_hand("embed", RESID[:, 2, 3], position=3)
    chex.assert_trees_all_close(mijax.run(ONE, CORRUPT, edit), want, atol=1e-5)


def test_both_sides_of_a_sweep_equal_the_loop():
    ends = {"start": 1, "last": LAST}
    over = {"source_layer": None, "layer": [0, 2], "source_position": ends}
    edit = Patch(RESID).at("resid_pre", position=LAST - 1)
    found = mijax.sweep(ONE, CORRUPT, edit, over=over, metric=METRIC)
    assert found.values.shape == (3, 3, 2, 2)
    assert found.axes[2].labels == ("start", "last")
    for i, layer, j in itertools.product(range(3), range(2), range(2)):
        source = jnp.broadcast_to(list(ends.values())[j], (3,))
        at = {"layer": [0, 2][layer], "position": LAST - 1}
        want = METRIC(by_hand("resid_pre", RESID[jnp.arange(3), i, source], **at))
        chex.assert_trees_all_close(found.values[:, i, layer, j], want, atol=2e-5)


def test_a_sweep_with_a_fixed_source_per_prompt_and_heads():
    source = jnp.array([4, 2, 5])
    edit = Patch(Z).from_place(position=source).at("z", layer=1)
    over = ("head", "source_head")
    found = mijax.sweep(ONE, CORRUPT, edit, over=over, metric=METRIC)
    for head, other in ((0, 3), (2, 1), (1, 1)):
        values = Z[jnp.arange(3), 1, source, other]
        want = METRIC(by_hand("z", values, layer=1, head=head))
        chex.assert_trees_all_close(found.values[:, head, other], want, atol=2e-5)


def test_source_places_are_data():
    @eqx.filter_jit
    def run(layer, position):
        edit = Patch(RESID).from_place(layer=layer, position=position)
        return mijax.run(ONE, CORRUPT, edit.at("resid_pre", layer=1, position=2))

    want = by_hand("resid_pre", RESID[:, 2, 4], layer=1, position=2)
    chex.assert_trees_all_close(run(jnp.int32(2), 4), want, atol=1e-5)
    place = Patch(RESID).from_place

    def both(layer):
        edit = place(layer=layer).at("resid_pre", layer=1, position=2)
        mijax.run(ONE, CORRUPT, edit)
        over = {"source_position": [layer, layer + 1], "layer": [0, layer]}
        edit = Patch(RESID).at("resid_pre", position=4)
        mijax.sweep(ONE, CORRUPT, edit, over=over, metric=METRIC)

    both(0)
    with compiles() as programs:
        both(1)
    assert programs == []


REFUSED = {
    "nothing": (lambda: Patch(RESID).from_place(), "at least one index"),
    "span": (lambda: Patch(RESID).from_place(position=slice(1, 3)), "for a span"),
    "list": (lambda: Patch(RESID).from_place(layer=[1, 2]), "mijax.PerPrompt"),
    "negative": (lambda: Patch(RESID).from_place(position=-1), "counts from 0"),
    "axis": (lambda: Patch(RESID).from_place(head=1).at("resid_pre"), "no axis 'head'"),
    "layer": (
        lambda: Patch(RESID).from_place(layer=3).at("resid_pre"),
        "layers 0 to 2",
    ),
    "position": (
        lambda: Patch(RESID).from_place(position=7).at("resid_pre"),
        "positions 0 to 6",
    ),
    "prompts": (
        lambda: Patch(RESID).from_place(position=[1, 2]).at("resid_pre"),
        "2 prompts, but the run has 3",
    ),
    "width": (
        lambda: Patch(RESID[..., :16]).from_place(layer=1).at("resid_pre"),
        "each axis that differs",
    ),
    "length": (
        lambda: Patch(RESID[:, :, :4]).from_place(layer=1).at("resid_pre", position=5),
        "each axis that differs",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_sources_that_do_not_exist_are_refused(case):
    make, says = REFUSED[case]
    with pytest.raises(mijax.MijaxError, match=says):
        mijax.run(ONE, CORRUPT, make())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("edit", "over", "says"),
    [
        (Zero().at("z"), {"source_layer": [0]}, "no source_layer to sweep over"),
        (Patch(RESID).at("resid_pre"), {"source_layer": [3]}, "layers 0 to 2"),
        (Patch(RESID).at("resid_pre"), {"source_layer": [[0, 1]]}, "PerPrompt"),
        (Patch(RESID).at("resid_pre"), ("source_head",), "no axis 'head'"),
        (
            Patch(RESID).from_place(layer=1).at("resid_pre"),
            ("source_layer",),
            "fixed layer",
        ),
    ],
)
def test_swept_sources_that_do_not_exist_are_refused(edit, over, says):
    with pytest.raises(mijax.MijaxError, match=says):
        mijax.sweep(ONE, CORRUPT, edit, over=over, metric=METRIC)


# Of each toy: a site, a place of the source, a place of the edit, and swept axes.
FUNCTIONS = {
    "encoder": (
        *("z", {"layer": 2, "position": 1}, {"layer": 0, "position": 3}),
        {"source_head": [0, 1], "head": [1, 0]},
    ),
    "cnn": (
        *("relu", {"layer": 1, "channel": 3}, {"layer": 1, "channel": 5}),
        {"source_row": [0, 2], "row": [3, 1]},
    ),
    "recurrent": (
        *("state", {"position": 4}, {"layer": 1, "position": 2}),
        {"source_layer": [0, 2]},
    ),
    "experts": (
        *("expert_out", {"expert": 2}, {"expert": 1, "position": 0}),
        {"source_feature": [3, 5], "feature": [0, 1]},
    ),
}


@functools.cache
def inputs_of(name):
    fn, example = TOYS[name]
    noise = jax.random.normal(jax.random.key(1), (3, *example.shape))
    return mijax.model(fn, example), example + noise


def number(out):
    return out.reshape(-1)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_read_another_place(name):
    site, source, target, _ = FUNCTIONS[name]
    one, inputs = inputs_of(name)
    acts, info = mijax.capture(one, inputs[::-1], site), one.sites[site]
    runs = mijax.run(one, inputs, Patch(acts).from_place(**source).at(site, **target))
    place, axes = target | source, (("layer",) if info.layers else ()) + info.axes
    array = acts
    if isinstance(acts, tuple):
        array, axes = acts[place["layer"]], info.axes
    value = array[(slice(None), *(place.get(axis, slice(None)) for axis in axes))]
    shape = info.shapes[target["layer"] if info.ragged else 0]
    sizes = dict(zip(info.axes, shape, strict=True))
    # Axes of the value: those of loops around the mark are not among them.
    own = [1 if axis in place else sizes[axis] for axis in info.axes[info.loops :]]
    for i in range(3):
        edit = Set(value[i].reshape(own)).at(site, **target)
        want = mijax.run(one, inputs[i], edit)
        chex.assert_trees_all_close(runs[i], want, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sources_of_functions_are_swept(name):
    site, source, target, over = FUNCTIONS[name]
    one, inputs = inputs_of(name)
    acts = mijax.capture(one, inputs[::-1], site)
    moved = Patch(acts).from_place(**source).at(site, **target)
    found = mijax.sweep(one, inputs, moved, over=over, metric=number)
    values = np.asarray(found.values).reshape(3, -1)
    for i, cell in enumerate(itertools.product(*over.values())):
        at = dict(zip(over, cell, strict=True))
        new = {k.removeprefix("source_"): v for k, v in at.items() if "_" in k}
        old = target | {k: v for k, v in at.items() if "_" not in k}
        edit = Patch(acts).from_place(**source, **new).at(site, **old)
        want = jax.vmap(number)(mijax.run(one, inputs, edit))
        chex.assert_trees_all_close(values[:, i], want, atol=1e-5)
    assert len(np.unique(values[0].round(6))) > 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "place", "over", "says"),
    [
        ("cnn", {"layer": 3}, None, "layers 0 to 2"),
        ("cnn", {"channel": 0}, None, "one fixed layer"),
        ("cnn", {"channel_": 0, "layer": 0}, None, "Did you mean 'channel'"),
        ("encoder", {"position": 9}, None, "positions 0 to 4"),
        ("encoder", {"head": 0}, {"source_layer": [[0, 1]]}, "no group"),
        ("encoder", {"head": 0}, {"source_head": [0]}, "fixed head"),
    ],
)
def test_sources_that_functions_do_not_have_are_refused(name, place, over, says):
    site = FUNCTIONS[name][0]
    one, inputs = inputs_of(name)
    edit = Patch(mijax.capture(one, inputs, site)).from_place(**place).at(site)
    call = functools.partial(mijax.run, one, inputs, edit)
    if over is not None:
        call = functools.partial(
            mijax.sweep, one, inputs, edit, over=over, metric=number
        )
    with pytest.raises(mijax.MijaxError, match=says):
        call()
