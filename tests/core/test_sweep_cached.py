"""A sweep of blocks that cache any state equals the loop, and skips what it may."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CORRUPT, METRIC, METRICS
from compiles import compiles
from native import NATIVE, native

import mijax
from mijax import Site
from mijax.core._plan import Chunks

TOLERANCE = 2e-5
LAYERS, POSITIONS = range(3), range(7)
SWEEPS = {
    "resid_pre": {"layer": LAYERS, "position": POSITIONS},
    "mlp_out": {"position": POSITIONS, "layer": [1, 2]},
    "embed": {"position": POSITIONS},
}
# The input of a recurrence, and the keys that the tokens after it read.
INSIDE = {"recurrent": "mlp_pre", "hybrid": "k", "cross": "v"}


def loop(name, edit, site, over, metric, before):
    """Run every cell by itself."""
    shape = [len(values) for values in over.values()]
    found = []
    for cell in np.ndindex(*shape):
        place = {a: v[i] for (a, v), i in zip(over.items(), cell, strict=True)}
        edits = [before, edit.at(site, **place)]
        found.append(metric(mijax.run(native(name), CORRUPT, edits)))
    return jnp.stack(found, 1).reshape(len(CORRUPT), *shape)


CASES = [
    *((name, site, "logit_difference") for name in NATIVE for site in SWEEPS),
    *((name, site, "logit_difference") for name, site in INSIDE.items()),
    # Several positions are read.
    *((name, "resid_pre", "cross_entropy") for name in NATIVE),
]


@pytest.mark.parametrize(("name", "site", "metric"), CASES)
def test_a_sweep_equals_the_loop(name, site, metric):
    over = SWEEPS.get(site, {"layer": [2, 0], "position": POSITIONS})
    before = mijax.Scale(0.9).at("mlp_out", layer=1, position=1)
    acts = mijax.capture(native(name), CORRUPT[:, ::-1], Site(site))
    patch = mijax.Patch(acts)
    options = {"over": over, "metric": METRICS[metric], "edits": before}
    found = mijax.sweep(native(name), CORRUPT, patch.at(site), **options)
    expected = loop(name, patch, site, over, METRICS[metric], before)
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)
    with compiles() as programs:
        again = mijax.sweep(native(name), CORRUPT, patch.at(site), **options)
    assert not programs
    chex.assert_trees_all_equal(again.values, found.values)
    assert found.work.lanes == found.values.size


def test_a_recurrence_runs_no_position_before_the_edit():
    """Rows are those of a decoder: from the edit to the last token that is read."""
    edit = mijax.Add(jnp.linspace(-1, 1, 32)).at("resid_pre")
    over = {"layer": LAYERS, "position": POSITIONS}
    found = mijax.sweep(native("recurrent"), CORRUPT, edit, over=over, metric=METRIC)
    rows = sum(n - p for n in (7, 5, 7) for p in range(n))
    assert found.work.row_layers == rows * (3 + 2 + 1)
    small = Chunks(memory=20_000)
    again = mijax.sweep(
        native("recurrent"), CORRUPT, edit, over=over, metric=METRIC, chunks=small
    )
    assert again.work.chunks > found.work.chunks
    chex.assert_trees_all_close(again.values, found.values, atol=TOLERANCE)
