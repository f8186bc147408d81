"""Values and coefficients of each prompt: against a loop over prompts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CORRUPT, LAST, METRIC, model
from toys import TOYS

import mijax
from mijax import Add, Noise, PerPrompt, Scale, Set, Zero

ONE = model("gpt2")
RANDOM = np.random.default_rng(0)
# As many prompts as layers, and of another number than heads.
ROWS, HEADS = RANDOM.normal(size=(3, 32)), jnp.array(RANDOM.normal(size=(3, 4, 8)))
EACH = {
    "set": ("resid_pre", lambda at: Set(at(ROWS))),
    "set of heads": ("z", lambda at: Set(at(HEADS))),
    "set of every head": ("z", lambda at: Set(at(HEADS[:, 0]))),
    "add": ("mlp_out", lambda at: Add(at(ROWS), 0.5)),
    "coefficient": ("mlp_out", lambda at: Add(ROWS[0], at([1.0, 0.5, -1.0]))),
    "both": ("resid_pre", lambda at: Add(at(ROWS), at([2, 0, 1]))),
    "scale": ("z", lambda at: Scale(at([0.0, 1.5, 2.0]))),
}


def loop(tokens, name, place):
    site, make = EACH[name]
    runs = []
    for i in range(3):
        edit = make(lambda values, i=i: values[i]).at(site, **place)
        runs.append(mijax.run(ONE, tokens[i], edit))
    return jnp.stack(runs)


@pytest.mark.parametrize("name", EACH)
def test_each_prompt_has_its_own(name):
    site, make = EACH[name]
    place = {"layer": 1, "position": slice(2, 5)}
    found = mijax.run(ONE, CORRUPT, make(PerPrompt).at(site, **place))
    chex.assert_trees_all_close(found, loop(CORRUPT, name, place), atol=1e-5)


@pytest.mark.parametrize("name", ["set of every head", "both"])
def test_in_a_sweep(name):
    site, make = EACH[name]
    edit, over = make(PerPrompt).at(site), {"layer": [0, 2], "position": [1, LAST]}
    found = mijax.sweep(ONE, CORRUPT, edit, over=over, metric=METRIC)
    for i, j in ((0, 0), (1, 0), (0, 1)):
        position = jnp.broadcast_to(over["position"][j], (3,))
        runs = [
            make(lambda values, p=p: values[p]).at(
                site, layer=over["layer"][i], position=position[p]
            )
            for p in range(3)
        ]
        alone = jnp.stack(
            [mijax.run(ONE, CORRUPT[p], run) for p, run in enumerate(runs)]
        )
        chex.assert_trees_all_close(found.values[:, i, j], METRIC(alone), atol=2e-5)


def test_in_generation():
    edit = Add(PerPrompt(10 * ROWS)).at("resid_post", layer=2)
    found = mijax.generate(ONE, CORRUPT, edits=edit, steps=3)
    for i in range(3):
        own = Add(10 * ROWS[i]).at("resid_post", layer=2)
        alone = mijax.generate(ONE, CORRUPT[i], edits=own, steps=3)
        chex.assert_trees_all_equal(found[i], alone)


def test_of_a_function():
    fn, example = TOYS["encoder"]
    one, inputs = mijax.model(fn, example), jnp.stack([example, 2 * example, -example])
    rows = jax.random.normal(jax.random.key(2), (3, 8))
    for make in (
        lambda at: Set(at(rows)),
        lambda at: Add(at(rows), at([1.0, 2.0, 3.0])),
        lambda at: Scale(at([0.5, 1.0, 2.0])),
    ):
        place = {"layer": 1, "position": [0, 3, 2]}
        found = mijax.run(one, inputs, make(PerPrompt).at("mlp_out", **place))
        for i in range(3):
            own = make(lambda values, i=i: values[i])
            own = own.at("mlp_out", layer=1, position=place["position"][i])
            chex.assert_trees_all_close(
                found[i], mijax.run(one, inputs[i], own), atol=1e-6
            )


REFUSED = {
    "a list": (lambda: Scale([1.0, 2.0, 3.0]).at("z"), "mijax.PerPrompt"),
    "a list of noise": (
        lambda: Noise(jax.random.key(0), [1.0, 2.0, 3.0]).at("z"),
        "mijax.PerPrompt",
    ),
    "a table": (lambda: Scale(PerPrompt(ROWS)).at("z"), "one number"),
    "prompts": (lambda: Set(PerPrompt(ROWS[:2])).at("embed"), "one per prompt"),
    "width": (lambda: Set(PerPrompt(ROWS[:, :5])).at("embed"), "does not fit rows"),
    "scalar": (lambda: PerPrompt(1.0), "got a scalar"),
    "index": (lambda: Zero().at("z", head=PerPrompt([0.5, 1.0])), "must be an integer"),
    "text": (lambda: PerPrompt("abc"), "must be an integer"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_one_per_prompt_is_refused(case):
    make, says = REFUSED[case]
    with pytest.raises(mijax.MijaxError, match=says):
        mijax.run(ONE, CORRUPT, make())


@pytest.mark.usefixtures("unchecked")
def test_a_function_refuses_values_of_other_examples():
    fn, example = TOYS["encoder"]
    one, edit = mijax.model(fn, example), Set(PerPrompt(jnp.ones((3, 8)))).at("mlp_out")
    with pytest.raises(mijax.MijaxError, match="holds 3 examples"):
        mijax.run(one, jnp.stack([example, example]), edit)
    with pytest.raises(mijax.MijaxError, match="without a batch"):
        mijax.run(one, example, edit)
