"""Exact checks of a ranking, and path patching against runs made by hand."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cases import model

import mijax
from mijax import circuits

METRIC = mijax.logit_difference(3, 4)


@functools.cache
def task():
    random = np.random.default_rng(1)
    clean, corrupt = random.integers(0, 60, (2, 3, 6))
    return circuits.Task(clean, corrupt, metric=METRIC)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_verified_effects_are_exact(name):
    exact = circuits.discover(model(name), task(), circuits.Exact(), keep_prompts=True)
    found = circuits.verify(model(name), task(), exact, top=20, sample=30, memory=2**18)
    assert found.names[:3] == tuple(entry.name for entry in exact.best(3))
    assert len(set(found.names)) == 50
    chex.assert_trees_all_close(np.asarray(found.exact.mean), found.estimate, atol=1e-4)
    # What was ranked by its exact effect leaves nothing larger behind.
    assert found.missed[0] == 0
    assert found.missed[2] < 0.2
    assert found.correlation > 0.9999
    assert found.rest == exact.graph.n_edges - 20


def test_a_poor_ranking_is_found_out():
    exact = circuits.discover(model("gpt2"), task(), circuits.Exact())
    upside_down = circuits.Scores(
        jnp.where(exact.values == 0, 0, 1 / (1e-3 + jnp.abs(exact.values))),
        *(None, None, exact.graph, "edge", "upside down"),
    )
    found = circuits.verify(model("gpt2"), task(), upside_down, top=10, sample=60)
    assert found.missed[1] > 0.5


def test_nodes_are_verified_too():
    nodes = circuits.discover(model("gpt2"), task(), circuits.EAP(level="node"))
    found = circuits.verify(model("gpt2"), task(), nodes, top=16, sample=0)
    clean, corrupt = task().clean, task().corrupt
    acts = mijax.capture(model("gpt2"), corrupt, mijax.Site("mlp_out"))
    base = METRIC(mijax.run(model("gpt2"), clean))
    edits = mijax.Patch(acts).at("mlp_out", layer=1)
    expected = base - METRIC(mijax.run(model("gpt2"), clean, edits))
    here = found.names.index("m1")
    chex.assert_trees_all_close(found.prompts[here], np.asarray(expected), atol=1e-4)
    assert found.missed == (0.0, 0.0, 1.0)


def test_neurons_are_not_verified():
    neurons = circuits.discover(model("gpt2"), task(), circuits.EAP(level="neuron"))
    with pytest.raises(mijax.MijaxError, match="edges or nodes"):
        circuits.verify(model("gpt2"), task(), neurons)
