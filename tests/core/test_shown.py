"""Reprs of public records: one line that fits a terminal and shows values."""

import jax.numpy as jnp
import pytest
from cases import CLEAN, acts_of, model

import mijax
from mijax.core._axis import Axis
from mijax.core._sweep_result import Sweep, Work

AXES = (Axis("layer", ("0", "1", "2")), Axis("head", ("0", "1")))
GRID = jnp.linspace(-1, 2, 12).reshape(2, 3, 2)
SWEEP = Sweep(GRID, jnp.array([0.5, 0.25]), AXES, Work(12))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (SWEEP, "Sweep(3 layers x 2 heads: f32[2,3,2] from -1 to 2; base [0.5, 0.25])"),
        (SWEEP.interval(), "Interval(mean f32[3,2] from -0.1818 to 1.182, n=2"),
        (
            mijax.interval(jnp.array([1.0, 3.0]), method="range"),
            "Interval(2, 1 to 3, n=2",
        ),
        (mijax.Site("z", layer=1, head=[1, 2]), "Site(name='z', layer=1, head=[1, 2])"),
        (mijax.Site("z", position=slice(1, 3)), "Site(name='z', position=1:3)"),
        (mijax.Zero().at("z", layer=1, head=2), "Sites(z=Zero() at layer=1, head=2)"),
        (
            mijax.Add(jnp.ones(32), 2.0).at("resid_pre", position=slice(2, None)),
            "Sites(resid_pre=Add(value=f32[32] from 1 to 1, coefficient=2) at posit",
        ),
        (
            mijax.Patch(acts_of("gpt2", "z")).at("z"),
            "Sites(z=Patch(source=f32[3,3,7,4,8]",
        ),
        (mijax.logit_difference(3, [4, 5]), "logit_difference(answer=3, wrong=[4, 5])"),
        (mijax.cross_entropy(3), "cross_entropy(labels=3)"),
        (
            mijax.data.Prompts.from_ids([[1, 2, 3], [4, 5]], texts=["abc", "de"]),
            "Prompts(2 prompts, lengths [3, 2], spans last, 'abc')",
        ),
        (mijax.models.load("induction-2l"), "Loaded('induction-2l', 2 layers, vocab"),
        (mijax.PerPrompt([1, 2]), "PerPrompt(values=[1, 2])"),
        (model("gpt2")(CLEAN[0])[1], "Sites(embed=f32[7,32], resid_pre=f32[3,7,32], "),
    ],
)
def test_one_line_with_values(value, says):
    text = repr(value)
    assert text.startswith(says)
    assert len(text) <= 88
    assert "\n" not in text


def test_values_that_are_not_finite_are_counted():
    grid = GRID.at[0, 0, 0].set(jnp.nan)
    text = repr(Sweep(grid, jnp.float32(0.5), AXES, Work(12)))
    assert "from -0.7273 to 2, 1 not finite; base 0.5" in text
