"""Circuits are values; selection is the reference implementation's, edge for edge."""

import functools
import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mijax import circuits
from mijax._errors import ConfigError, ShapeError, SiteError
from mijax.circuits import Circuit, Graph, Scores

GOLDEN = Path(__file__).parent.parent / "golden" / "eap_ig"
MODELS = ("gpt2", "llama")
GRAPH = Graph.decoder(3, heads=4)


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def scores_of(values, level="edge"):
    return Scores(jnp.asarray(values), None, None, GRAPH, level, "given")


def random_scores(seed, level="edge"):
    shape = {"edge": GRAPH.edges.shape, "node": (16,), "neuron": (16, 32)}[level]
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return scores_of(values * GRAPH.edges if level == "edge" else values, level)


@pytest.mark.parametrize("way", ["top", "greedy"])
@pytest.mark.parametrize("name", MODELS)
def test_edges(name, way):
    found = golden(f"{name}_circuits")
    scores = scores_of(golden(name)["edge_eap_ig_inputs"])
    select = getattr(circuits, way)
    key = {"top": "topn", "greedy": "greedy"}[way]
    for i, absolute in enumerate(found["absolute"]):
        for j, n in enumerate(found["sizes"]):
            given = (scores, int(n))
            options = {"absolute": bool(absolute)}
            whole = select(*given, prune=False, **options)
            np.testing.assert_array_equal(
                whole.edges, found[f"{key}_edges_unpruned"][i, j]
            )
            assert whole.n_edges == n
            pruned = select(*given, **options)
            np.testing.assert_array_equal(pruned.edges, found[f"{key}_edges"][i, j])
            assert pruned == circuits.prune(whole)
            nodes = np.array(GRAPH.senders)[found[f"{key}_nodes"][i, j]]
            assert set(pruned.nodes()) - {"logits"} == set(nodes)


@pytest.mark.parametrize("level", ["node", "neuron"])
@pytest.mark.parametrize("name", MODELS)
def test_nodes_and_neurons(name, level):
    found = golden(f"{name}_circuits")
    scores = scores_of(golden(name)[f"{level}_eap_ig_inputs_at_output"], level)
    for i, n in enumerate(found[f"{level}_sizes"]):
        circuit = circuits.top(scores, int(n), absolute=True)
        np.testing.assert_array_equal(circuit.edges, found[f"{level}_edges"][i])
        nodes = np.array(GRAPH.senders)[found[f"{level}_nodes"][i]]
        assert set(circuit.nodes()) - {"logits"} == set(nodes)
        if level == "neuron":
            np.testing.assert_array_equal(circuit.neurons, found["neuron_neurons"][i])


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("level", ["edge", "node", "neuron"])
def test_a_threshold_takes_what_the_top_does(level, absolute):
    scores = random_scores(1, level)
    key = np.abs(scores.values) if absolute else np.asarray(scores.values)
    at = np.sort(key[scores.real])[-9]
    options = {"absolute": absolute, "prune": False}
    above = circuits.threshold(scores, float(at), **options)
    assert above == circuits.top(scores, 9, **options)


@pytest.mark.parametrize("way", [circuits.top, circuits.greedy])
def test_more_is_a_superset_and_all_is_the_model(way):
    scores = random_scores(2)
    sizes = [0, 3, 20, 100, 262]
    chain = [way(scores, n, prune=False) for n in sizes]
    for small, large in itertools.pairwise(chain):
        assert small & large == small
    assert chain[0] == Circuit.empty(GRAPH)
    assert chain[-1] == Circuit.full(GRAPH) == way(scores, 262)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_is_on_a_path(seed):
    circuit = circuits.top(random_scores(seed), 25)
    assert circuit == circuits.prune(circuit)
    assert circuit.edges.any() == on_a_path(circuit).any()
    np.testing.assert_array_equal(circuit.edges, on_a_path(circuit))
    whole = circuits.top(random_scores(seed), 25, prune=False)
    np.testing.assert_array_equal(circuit.edges, on_a_path(whole))


def on_a_path(circuit):
    """Edges whose sender is reached from the input and whose receiver from below."""
    edges = [name.split(" <- ") for name in circuit.names()]
    edges = [(receiver.split("<")[0], sender) for receiver, sender in edges]
    down, up = {"input"}, {"logits"}
    for _ in GRAPH.senders:
        down |= {to for to, sender in edges if sender in down}
        up |= {sender for to, sender in edges if to in up}
    kept = np.zeros(GRAPH.edges.shape, bool)
    for name, (to, sender) in zip(circuit.names(), edges, strict=True):
        kept[GRAPH.edge(name)] = sender in down and to in up
    return kept


def test_circuits_are_sets():
    one = Circuit.of(GRAPH, ["logits <- a1.h0", "a1.h0<k> <- input"])
    other = Circuit.of(GRAPH, ["logits <- a1.h0", "m2 <- m0"])
    assert (one & other).names() == ("logits <- a1.h0",)
    assert (one | other).n_edges == 3
    assert (one - other).names() == ("a1.h0<k> <- input",)
    assert len({one, one | one, one & one}) == 1
    assert one != other
    assert "m2 <- m0" in other
    assert "m2 <- m0" not in one
    assert Circuit.of(GRAPH, one.names()) == one
    assert one.without("a1.h0") == Circuit.empty(GRAPH)
    assert one.without("a1.h0<k> <- input").names() == ("logits <- a1.h0",)
    assert one.without("a0.h0") == one
    with pytest.raises(ValueError, match="read-only"):
        one.edges[0, 0] = True


def test_circuits_of_neurons():
    scores = random_scores(3, "neuron")
    some = circuits.top(scores, 60)
    whole = Circuit(GRAPH, some.edges)
    assert some != whole
    assert some & whole == some
    assert some | whole == whole
    ones = np.ones((16, 32), bool)
    assert Circuit(GRAPH, some.edges, ones) == whole
    assert some.gate().nodes.shape == (16, 32)
    assert whole.gate().nodes is None
    assert "neurons" in repr(some)


def test_what_is_refused(unchecked):
    scores = random_scores(4)
    for choose in (circuits.top, circuits.greedy):
        with pytest.raises(ConfigError, match=r"edges, got 0\.01.*\(share \* 262\)"):
            choose(scores, 0.01)
        for five in (jnp.int32(5), np.int64(5), np.array(5)):
            assert choose(scores, five).n_edges == choose(scores, 5).n_edges
    with pytest.raises(ConfigError, match="262 edges to choose from, got n=263"):
        circuits.top(scores, 263)
    with pytest.raises(ConfigError, match="got level 'node'"):
        circuits.greedy(random_scores(4, "node"), 3)
    assert circuits.top(scores, np.int64(3), prune=False).n_edges == 3
    with pytest.raises(ConfigError, match="2 scores are not numbers"):
        circuits.top(scores_of(scores.values.at[0, :2].set(jnp.nan)), 3)
    with pytest.raises(SiteError, match=r"no node 'a1\.h9' to remove"):
        Circuit.full(GRAPH).without("a1.h9")
    with pytest.raises(SiteError, match=r"'a0\.h0<q> <- a0\.h0' is not an edge"):
        Circuit(GRAPH, np.ones(GRAPH.edges.shape, bool))
    with pytest.raises(ShapeError, match=r"got shape \(3, 3\)"):
        Circuit(GRAPH, np.ones((3, 3), bool))
    with pytest.raises(ShapeError, match="16 senders"):
        Circuit(GRAPH, GRAPH.edges, np.ones((3, 3), bool))
    small = Graph.decoder(1, heads=1)
    with pytest.raises(ShapeError, match="different graphs"):
        Circuit.full(small) & Circuit.full(GRAPH)


def test_circuits_of_nodes_have_all_edges_among_them():
    nodes = random_scores(0, "node")
    best = circuits.top(nodes, 7, prune=False)
    assert "input" in best.nodes()
    assert Circuit.from_nodes(GRAPH, best.nodes()) == best
    assert Circuit.from_nodes(GRAPH, GRAPH.senders) == Circuit.full(GRAPH)
    assert Circuit.from_nodes(GRAPH, ()).names() == ("logits <- input",)
    with pytest.raises(SiteError, match=r"sender 'm7'.*form 'input'"):
        Circuit.from_nodes(GRAPH, ["m7"])
