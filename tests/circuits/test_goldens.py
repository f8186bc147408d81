"""Scores against the reference implementation of EAP-IG (`tests/golden/eap_ig`)."""

import functools
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import circuits

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-4
MODELS = ("gpt2", "llama")


@functools.cache
def model(name):
    return mijax.models.load(str(GOLDEN / "hf" / name)).model


@functools.cache
def golden(name):
    with np.load(GOLDEN / "eap_ig" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def task(name, ablation=None):
    found = golden(name)
    metric = mijax.logit_difference(found["answer"], found["wrong"])
    return circuits.Task(
        found["clean"], found["corrupt"], metric=metric, ablation=ablation
    )


def means(name, **options):
    return circuits.mean_ablation(model(name), golden(name)["clean"], **options)


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_the_field_s(name):
    graph, found = circuits.Graph.of(model(name)), golden(name)
    assert graph.senders == tuple(found["senders"])
    assert graph.receivers == tuple(found["receivers"])
    np.testing.assert_array_equal(graph.edges, found["real"])


# The reference divides by the size of its batches once more.
CASES = {
    "edge_eap": circuits.EAP(),
    "edge_eap_ig_inputs": circuits.EAPIG(steps=5),
    "edge_clean_corrupted": circuits.EAPIG(grid="ends"),
    "edge_eap_ig_activations_fixed": circuits.EAPIGActivations(steps=5),
    "node_eap_at_output": circuits.EAP(level="node"),
    "node_eap_ig_inputs_at_output": circuits.EAPIG(steps=5, level="node"),
    "neuron_eap_at_output": circuits.EAP(level="neuron"),
    "neuron_eap_ig_inputs_at_output": circuits.EAPIG(steps=5, level="neuron"),
    "node_eap_ig_activations_at_output": circuits.EAPIGActivations(
        steps=5, level="node"
    ),
}


@pytest.mark.parametrize("key", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_attributions(name, key):
    scores = circuits.discover(model(name), task(name), CASES[key])
    found = golden(name)
    expected = found[key] * found["batch_size"]
    chex.assert_trees_all_close(np.asarray(scores.values), expected, atol=TOLERANCE)


@pytest.mark.parametrize("key", ["eap_zero", "eap_mean_positional", "eap_mean_fixed"])
@pytest.mark.parametrize("name", MODELS)
def test_attributions_under_other_ablations(name, key):
    ablation = {
        "eap_zero": circuits.Zero(),
        "eap_mean_positional": means(name, per="position"),
        "eap_mean_fixed": means(name),
    }[key]
    scores = circuits.discover(model(name), task(name, ablation), circuits.EAP())
    found = golden(name)
    expected = found[f"edge_{key}"] * found["batch_size"]
    chex.assert_trees_all_close(np.asarray(scores.values), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_information_flow_routes(name):
    scores = circuits.discover(
        model(name), task(name), circuits.InformationFlowRoutes()
    )
    expected = golden(name)["edge_information_flow_routes"]
    chex.assert_trees_all_close(np.asarray(scores.values), expected, atol=TOLERANCE)


def test_zero_and_means_broadcast_over_positions():
    assert means("gpt2").values.shape == (16, 32)
    assert means("gpt2", per="position").values.shape == (16, 8, 32)
    grouped = means("gpt2", per="template", group=jnp.array([0, 0, 1, 1, 2, 2]))
    assert grouped.values.shape == (3, 16, 32)
