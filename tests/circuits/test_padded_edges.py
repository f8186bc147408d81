"""Circuits of edges on an encoder: a padded prompt counts as it does alone."""

import equinox as eqx
import numpy as np
import pytest
from cases import CLEAN, CORRUPT, LENGTHS, encoder

import mijax
from mijax import circuits
from mijax.data import Prompts

TOLERANCE = 2e-5
SHORT = int(LENGTHS[1])
METRIC = mijax.logit_difference(5, 8, position=1)


def prompts(tokens, pad):
    """A whole prompt, and one with padding."""
    rows = [tokens[0].tolist(), tokens[1, :SHORT].tolist()]
    return Prompts.from_ids(rows, pad=pad)


def lone(tokens, pad):
    """The prompt with padding only."""
    return Prompts(tokens[1:2].at[:, SHORT:].set(pad), LENGTHS[1:2], {}, ("",))


PADDED = circuits.Task(prompts(CLEAN, 9), prompts(CORRUPT, 31), metric=METRIC)
ALONE = circuits.Task(CLEAN[1:2, :SHORT], CORRUPT[1:2, :SHORT], metric=METRIC)
# The padded prompt only.
ONE = circuits.Task(lone(CLEAN, 9), lone(CORRUPT, 31), metric=METRIC)
METHODS = (
    circuits.EAP(),
    circuits.EAPIG(steps=2),
    circuits.InformationFlowRoutes(),
    circuits.Exact(),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_scores_of_a_padded_prompt_are_those_of_it_alone(method):
    model = encoder("gpt2")
    found = circuits.discover(model, PADDED, method, keep_prompts=True)
    alone = circuits.discover(model, ALONE, method)
    assert np.abs(alone.values).max() > 1e-2
    np.testing.assert_allclose(found.prompts[1], alone.values, atol=TOLERANCE)


@pytest.mark.parametrize(
    "method", [circuits.HISP(), circuits.ACDC(0.02, batch=16)], ids=("HISP", "ACDC")
)
def test_means_of_one_padded_prompt_are_those_of_it_alone(method):
    found, alone = (
        circuits.discover(encoder("attention_only"), task, method)
        for task in (ONE, ALONE)
    )
    assert 0 < np.count_nonzero(alone.values) < alone.values.size
    np.testing.assert_allclose(found.values, alone.values, atol=TOLERANCE)


def test_paths_and_circuits_of_a_padded_prompt():
    model = encoder("gpt2")
    found, alone = (
        circuits.path_patch(model, task, "logits").values for task in (PADDED, ALONE)
    )
    assert np.abs(alone).max() > 1e-2
    np.testing.assert_allclose(found[1], alone[0], atol=TOLERANCE)
    graph = circuits.Graph.of(model)
    edges = graph.edges & (np.random.default_rng(0).random(graph.edges.shape) < 0.5)
    half = circuits.Circuit(graph, edges)
    found, alone = (
        circuits.run_circuits(model, task, [half]) for task in (PADDED, ALONE)
    )
    np.testing.assert_allclose(found[0, 1], alone[0, 0], atol=TOLERANCE)


def test_a_mean_of_senders_reads_no_padding():
    model = encoder("gpt2")
    clean = prompts(CLEAN, 9)
    found = circuits.mean_ablation(model, clean).values
    spoiled = eqx.tree_at(lambda p: p.tokens, clean, clean.tokens.at[1, SHORT:].set(40))
    other = circuits.mean_ablation(model, spoiled).values
    np.testing.assert_allclose(found, other, atol=TOLERANCE)
    sums = [
        n * circuits.mean_ablation(model, CLEAN[i : i + 1, :n]).values
        for i, n in ((0, 7), (1, SHORT))
    ]
    np.testing.assert_allclose(found, sum(sums) / (7 + SHORT), atol=TOLERANCE)
