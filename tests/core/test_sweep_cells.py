"""Cells that are groups, edits that stay, several metrics: against runs by hand."""

import itertools

import chex
import jax.numpy as jnp
import pytest
from cases import CLEAN, CORRUPT, LAST, METRIC, model

import mijax
from mijax import Add, Noise, Patch, Zero

ONE = model("gpt2")
OTHER = mijax.probability(jnp.array([4, 5, 6]), position=LAST)
PATCH = Patch(mijax.capture(ONE, CLEAN, "z"))
STAYS = {
    "resid_pre": Add(jnp.ones(32)).at("resid_pre", layer=1, position=LAST),
    "embed": Add(0.1 * jnp.ones(32)).at("embed", position=LAST - 1),
    "z": Zero().at("z", layer=2, head=mijax.PerPrompt([0, 1, 3])),
}


def run(*edits):
    return mijax.run(ONE, CORRUPT, list(edits))


@pytest.mark.parametrize("site", STAYS)
def test_pairs_under_an_edit_that_stays_with_two_metrics(site):
    stays, metrics = STAYS[site], {"difference": METRIC, "probability": OTHER}
    pairs = {"a": [(0, 1), (2, 3)], "b": [(1, 1)], "c": (2, 0)}
    found = mijax.sweep(
        ONE,
        CORRUPT,
        PATCH.at("z"),
        over={("layer", "head"): pairs},
        metric=metrics,
        edits=stays,
    )
    for i, each in enumerate(([(0, 1), (2, 3)], [(1, 1)], [(2, 0)])):
        edits = [PATCH.at("z", layer=layer, head=head) for layer, head in each]
        for name, metric in metrics.items():
            want = metric(run(stays, *edits))
            chex.assert_trees_all_close(found[name].values[:, i], want, atol=2e-5)
            base = metric(run(stays))
            chex.assert_trees_all_close(found[name].base, base, atol=2e-5)
    assert found["difference"].axes[0] == ("layer, head", ("a", "b", "c"))


def test_windows_of_layers_sets_of_heads_and_spans():
    layers, heads, spans = [[0, 1], 2], [0, [1, 2]], [2, slice(3, 5)]
    found = mijax.sweep(
        ONE,
        CORRUPT,
        PATCH.at("z"),
        over={"layer": layers, "head": heads, "position": spans},
        metric=METRIC,
    )
    cells = itertools.product([[0, 1], [2]], [[0], [1, 2]], spans)
    for values, (some, each, span) in zip(
        found.values.reshape(3, -1).T, cells, strict=True
    ):
        edits = [
            PATCH.at("z", layer=layer, head=head, position=span)
            for layer, head in itertools.product(some, each)
        ]
        chex.assert_trees_all_close(values, METRIC(run(*edits)), atol=2e-5)


def test_sets_of_neurons():
    sets = {"two": [0, 5], "one": 3, "slice": range(2, 6)}
    edit = Zero().at("mlp_post", layer=1)
    found = mijax.sweep(ONE, CORRUPT, edit, over={"feature": sets}, metric=METRIC)
    for i, some in enumerate(([0, 5], 3, [2, 3, 4, 5])):
        want = METRIC(run(Zero().at("mlp_post", layer=1, feature=some)))
        chex.assert_trees_all_close(found.values[:, i], want, atol=2e-5)


def test_causal_tracing_in_one_sweep(key):
    """Noise at the embedding stays, clean activations are restored cell by cell."""
    noise = Noise(key, 0.5).at("embed", position=slice(1, 3))
    clean = Patch(mijax.capture(ONE, CLEAN, "resid_post")).at("resid_post")
    found = mijax.sweep(
        ONE, CLEAN, clean, over=("layer", "position"), metric=METRIC, edits=noise
    )
    for layer, position in ((0, 1), (2, 4), (1, 2)):
        restored = Patch(mijax.capture(ONE, CLEAN, "resid_post")).at(
            "resid_post", layer=layer, position=position
        )
        want = METRIC(mijax.run(ONE, CLEAN, [noise, restored]))
        chex.assert_trees_all_close(found.values[:, layer, position], want, atol=2e-5)


@pytest.mark.parametrize(
    ("over", "edits", "says"),
    [
        ({("layer", "head"): [(0, 4)]}, None, "heads 0 to 3"),
        ({("layer", "position"): [(0, 1)]}, None, "no axis"),
        ({"head": [[]]}, None, "indices from 0 on"),
        (("head",), Zero().at("logits"), "cannot stay"),
    ],
)
def test_cells_that_do_not_fit_are_refused(over, edits, says):
    with pytest.raises(mijax.MijaxError, match=says):
        mijax.sweep(ONE, CORRUPT, PATCH.at("z"), over=over, metric=METRIC, edits=edits)
