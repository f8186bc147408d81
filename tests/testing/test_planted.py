"""Planted circuits are what they say, by brute force with loops."""

import jax
import numpy as np
import pytest
from oracle import circuit, edges_of

from mijax._errors import LoadError
from mijax.circuits import Graph
from mijax.testing import planted
from mijax.testing._planted import CASES


def margins(case, edges, *, corrupt):
    """The behaviour of every prompt when receivers see only `edges`."""
    every = edges_of(case.model)
    found = []
    for i in range(len(case.clean)):
        other = None
        if corrupt:
            other = circuit(case.model, case.corrupt[i], every)[1]
        logits = circuit(case.model, case.clean[i], edges, other)[0][-1]
        found.append(logits[case.answer[i]] - logits[case.wrong[i]])
    return np.array(found)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return planted(request.param)


def test_oracle_is_the_model(case):
    every = edges_of(case.model)
    run = jax.jit(lambda model, tokens: model(tokens)[0])
    for tokens in (*case.clean, *case.corrupt):
        logits, _ = circuit(case.model, tokens, every)
        np.testing.assert_allclose(run(case.model, tokens), logits, atol=1e-4)


def test_edges_are_of_the_graph(case):
    graph = Graph.of(case.model)
    for sender, receiver in case.edges | case.traps:
        graph.edge(f"{receiver} <- {sender}")
    names = {
        (graph.senders[s], graph.receivers[r])
        for s, r in zip(*graph.edges.nonzero(), strict=True)
    }
    assert names == edges_of(case.model)
    assert case.differing <= case.edges
    assert len(case.edges) < len(names) / 2


def test_the_behaviour(case):
    every = edges_of(case.model)
    clean = margins(case, every, corrupt=True)
    corrupted = [circuit(case.model, tokens, every)[0][-1] for tokens in case.corrupt]
    rows = np.arange(len(clean))
    corrupted = np.array(corrupted)
    corrupted = corrupted[rows, case.answer] - corrupted[rows, case.wrong]
    assert clean.min() > 4.9
    assert corrupted.max() < 0.1
    logits = np.asarray(jax.vmap(lambda t: case.model(t)[0][-1])(case.clean))
    assert (logits.argmax(1) == case.answer).all()


@pytest.mark.parametrize("corrupt", [False, True])
def test_the_circuit_alone_does_it(case, corrupt):
    every = margins(case, edges_of(case.model), corrupt=corrupt)
    edges = case.differing if corrupt else case.edges
    np.testing.assert_allclose(margins(case, edges, corrupt=corrupt), every, atol=1e-3)


@pytest.mark.parametrize("corrupt", [False, True])
def test_every_edge_of_it_is_needed(case, corrupt):
    edges = case.differing if corrupt else case.edges
    alone = margins(case, edges, corrupt=corrupt)
    for edge in edges:
        without = margins(case, edges - {edge}, corrupt=corrupt)
        assert (alone - without).min() > 0.5, edge


@pytest.mark.parametrize("corrupt", [False, True])
def test_no_other_edge_matters_in_the_model(case, corrupt):
    every = edges_of(case.model)
    whole = margins(case, every, corrupt=corrupt)
    edges = case.differing if corrupt else case.edges
    for edge in every:
        effect = abs(whole - margins(case, every - {edge}, corrupt=corrupt)).max()
        if edge in edges:
            assert effect > 0.5, edge
        elif edge not in case.traps:
            assert effect < 1e-3, edge


def test_traps_matter_alone_and_not_together():
    case = planted("cancelling")
    every = edges_of(case.model)
    whole = margins(case, every, corrupt=False)
    assert case.traps
    for edge in case.traps:
        effect = abs(whole - margins(case, every - {edge}, corrupt=False)).max()
        assert effect > 0.5, edge
    together = margins(case, every - case.traps, corrupt=False)
    np.testing.assert_allclose(together, whole, atol=1e-6)


def test_unknown_name():
    with pytest.raises(LoadError, match="Did you mean 'induction'"):
        planted("inducton")
