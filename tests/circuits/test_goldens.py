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


def test_means_are_of_tokens_without_padding():
    tokens = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    prompts = mijax.data.Prompts.from_ids(tokens)
    lengths, group = [4, 2, 3], [0, 1, 0]
    runs = [
        np.asarray(mijax.capture(model("gpt2"), ids, mijax.Site("mlp_out")))[1]
        for ids in tokens
    ]
    sender = circuits.Graph.of(model("gpt2")).sender("m1")

    def found(**options):
        mean = circuits.mean_ablation(model("gpt2"), prompts, **options)
        return np.asarray(mean.values)

    chex.assert_trees_all_close(
        found()[sender], np.concatenate(runs).mean(0), atol=1e-5
    )
    at = [[run[i] for run in runs if len(run) > i] for i in range(max(lengths))]
    chex.assert_trees_all_close(
        found(per="position")[sender],
        np.stack([np.mean(rows, 0) for rows in at]),
        atol=1e-5,
    )
    templates = found(per="template", group=jnp.array(group))[:, sender]
    chex.assert_trees_all_close(templates[1], runs[1].mean(0), atol=1e-5)
    chex.assert_trees_all_close(
        templates[0], np.concatenate([runs[0], runs[2]]).mean(0), atol=1e-5
    )
