"""Completeness, minimality, the null, ROC and stability, mostly on planted circuits."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import circuits
from mijax._errors import ConfigError, ShapeError
from mijax.circuits import Circuit, Graph, Scores
from mijax.circuits.evaluation._null import joined, scattered
from mijax.testing import planted

ROC = Path(__file__).parent.parent / "golden" / "acdc" / "roc.json"
GRAPH = Graph.decoder(3, heads=4)


@functools.cache
def case(name):
    """A planted model, its task, and its circuit under corrupt activations."""
    found = planted(name)
    metric = mijax.logit_difference(found.answer, found.wrong)
    task = circuits.Task(found.clean, found.corrupt, metric=metric)
    names = [f"{receiver} <- {sender}" for sender, receiver in found.differing]
    return found.model, task, Circuit.of(Graph.of(found.model), names)


@pytest.mark.parametrize("name", ["induction", "inhibition", "conjunction"])
def test_a_planted_circuit_passes(name):
    model, task, circuit = case(name)
    graph = circuit.graph
    full, empty, kept = circuits.run_circuits(
        model, task, [Circuit.full(graph), Circuit.empty(graph), circuit]
    )
    np.testing.assert_allclose(kept, full, atol=1e-3)
    assert full.mean() - empty.mean() > 1
    needed = circuits.minimality(model, task, circuit, subsets=4)
    assert needed.parts == circuit.nodes()[1:-1]
    assert (needed.score.low > 0.1).all()
    found = circuits.null(model, task, circuit, samples=39)
    # In graphs this small a few random circuits contain the planted one.
    assert found.p_value <= 0.2
    assert found.quantile >= 0.8


@pytest.mark.parametrize("name", ["induction", "conjunction"])
def test_planted_circuits_break_as_their_models_do(name):
    found = circuits.completeness(*case(name), subsets=4)
    assert (found.gap.mean < 1e-3).all()


def test_completeness_finds_what_inhibition_masks():
    """Without inhibition the mover attends to the changed token, and copies it."""
    model, task, circuit = case("inhibition")
    found = circuits.completeness(model, task, circuit, subsets=0)
    gaps = dict(zip(found.subsets, found.gap.mean.tolist(), strict=True))
    assert gaps["a0.h0",] > 1
    masked = Circuit.of(circuit.graph, ["a2.h1<v> <- input"])
    found = circuits.completeness(model, task, circuit | masked, subsets=0)
    assert (found.gap.mean < 1e-3).all()


def test_completeness_is_the_naive_loop():
    model, task, circuit = case("induction")
    whole = Circuit.full(circuit.graph)
    lacking = circuit.without("a1.h1<v> <- input") | Circuit.of(
        circuit.graph, ["logits <- input"]
    )
    found = circuits.completeness(model, task, lacking, subsets=[["a0.h0"], []])
    values = circuits.run_circuits(
        model, task, [whole, whole.without("a0.h0"), lacking, lacking.without("a0.h0")]
    )
    np.testing.assert_allclose(found.model, values[[1, 0]], atol=1e-5)
    np.testing.assert_allclose(found.circuit, values[[3, 2]], atol=1e-5)
    gaps = np.abs((values[[3, 2]] - values[[1, 0]]).mean(1))
    np.testing.assert_allclose(found.gap.mean, gaps, atol=1e-5)
    assert found.worst == found.subsets[gaps.argmax()]


def test_minimality_is_the_naive_loop():
    model, task, circuit = case("conjunction")
    extra = circuit | circuits.prune(
        Circuit(circuit.graph, scattered(circuit.graph, 9, 1))
    )
    parts = (*circuits.minimality(model, task, extra, subsets=0).parts[:2],)
    parts += extra.names()[:2]
    sets = [[parts[0]], [parts[2], parts[1]]]
    found = circuits.minimality(model, task, extra, parts=parts, subsets=sets)
    assert found.subsets == ((), *map(tuple, sets))
    for i, names in enumerate(found.subsets):
        for j, part in enumerate(parts):
            rest = [name for name in names if name != part]
            runs = [extra.without(*rest), extra.without(*rest, part)]
            before, after = circuits.run_circuits(model, task, runs)
            np.testing.assert_allclose(found.change[i, j], before - after, atol=1e-4)
    largest = np.abs(found.change.mean(2)).max(0)
    np.testing.assert_allclose(found.score.mean, largest, atol=1e-5)


def test_minimality_sees_what_is_not_needed():
    model, task, circuit = case("induction")
    idle = circuit | Circuit.of(circuit.graph, ["a0.h1<v> <- input", "logits <- a0.h1"])
    found = circuits.minimality(model, task, idle, subsets=3)
    scores = dict(zip(found.parts, found.score.mean.tolist(), strict=True))
    assert scores["a0.h1"] < 1e-3
    assert min(scores["a0.h0"], scores["a1.h1"]) > 0.1


@pytest.mark.parametrize("n", [1, 2, 7, 30, 150, 262])
def test_random_circuits(n):
    for seed in range(5):
        edges = scattered(GRAPH, n, seed)
        assert edges.sum() == n
        assert not (edges & ~GRAPH.edges).any()
        circuit = Circuit(GRAPH, joined(GRAPH, n, seed))
        assert n - 1 <= circuit.n_edges <= n
        assert circuit == circuits.prune(circuit)
    assert (joined(GRAPH, n, 3) == joined(GRAPH, n, 3)).all()


def test_a_null_counts_ties_against_the_circuit():
    ones = np.ones(2)
    found = circuits.Null(ones, np.outer([0, 0, 1], ones), np.array([3, 3, 3]))
    assert found.p_value == 0.5
    assert found.quantile == 2 / 3


def scores_of(values, graph=GRAPH, level="edge"):
    return Scores(jnp.asarray(values), None, None, graph, level, "given")


def test_roc_of_scores_and_of_circuits():
    random = np.random.default_rng(0)
    truth = Circuit(GRAPH, joined(GRAPH, 40, 1))
    values = truth.edges + random.normal(0, 0.7, truth.edges.shape)
    scores = scores_of(values * GRAPH.edges)
    one = circuits.roc(scores, truth)
    chosen = [circuits.top(scores, n, prune=False) for n in range(263)]
    many = circuits.roc(chosen, truth)
    np.testing.assert_allclose(one.auroc, many.auroc)
    # The area is the chance that a true edge scores more than another.
    key, true = np.asarray(scores.values)[GRAPH.edges], truth.edges[GRAPH.edges]
    np.testing.assert_allclose(
        one.auroc, (key[true][:, None] > key[~true]).mean(), atol=1e-6
    )
    assert one.pessimistic <= one.auroc + 1e-9
    assert circuits.roc(scores_of(1.0 * truth.edges), truth).auroc == 1
    assert circuits.roc(scores_of(0.0 * truth.edges), truth).auroc == 0.5
    assert circuits.roc(scores_of(-1.0 * truth.edges), truth).auroc == 0
    flipped = scores_of(-1.0 * truth.edges)
    assert circuits.roc(flipped, truth, absolute=True).auroc == 1


def test_queries_keys_and_values_count_as_their_head():
    truth = Circuit.of(GRAPH, ["a1.h2<q> <- input", "logits <- a1.h2"])
    wrong_letter = np.zeros(GRAPH.edges.shape)
    wrong_letter[GRAPH.edge("a1.h2<v> <- input")] = 3.0
    for level, edges in (("head", 1.0), ("node", 1.0)):
        names = ["a1.h2<v> <- input", "logits <- a1.h2"]
        found = circuits.roc([Circuit.of(GRAPH, names)], truth, level=level)
        assert found.auroc == edges
        assert circuits.roc(scores_of(wrong_letter), truth, level=level).auroc == 1
    assert circuits.roc(scores_of(wrong_letter), truth).auroc < 0.5
    of_nodes = np.zeros(16)
    of_nodes[[0, GRAPH.sender("a1.h2")]] = 1
    nodes = scores_of(of_nodes, level="node")
    assert circuits.roc(nodes, truth, level="head").auroc == 1
    with pytest.raises(ConfigError, match="Scores of nodes do not rank edges"):
        circuits.roc(nodes, truth)


def test_pessimistic_areas():
    assert circuits.pessimistic_auc([0, 1], [0, 1]) == 0
    assert circuits.pessimistic_auc([1, 0.5, 0], [1, 0.5, 0]) == 0.25
    three = circuits.pessimistic_auc([0, 0, 0, 1], [0, 0.133, 0.2, 1])
    assert round(three, 6) == 0.2
    assert circuits.pessimistic_auc([0, 0.5, 0.6, 1], [0, 0.5, 0.4, 1]) == 0.25


@pytest.mark.parametrize(
    ("program", "kind", "area"),
    [
        ("reverse", "edge", 0.200),
        ("reverse", "node", 0.312),
        ("xproportion", "edge", 0.600),
        ("xproportion", "node", 0.727),
    ],
)
def test_published_points_have_the_published_areas(program, kind, area):
    points = json.loads(ROC.read_text())["points"][program]
    fpr, tpr = ([0, *points[f"{kind}_{rate}"], 1] for rate in ("fpr", "tpr"))
    assert abs(circuits.pessimistic_auc(fpr, tpr) - area) < 6e-4


def test_interpbench_area():
    truth = Circuit(GRAPH, joined(GRAPH, 40, 1))
    scores = scores_of(np.random.default_rng(0).normal(size=(16, 40)) * GRAPH.edges)
    sizes = np.ceil(np.array(circuits.MIB_FRACTIONS) * 262).astype(int)
    found = [circuits.greedy(scores, int(n), absolute=True).edges for n in sizes]
    rest = GRAPH.edges & ~truth.edges
    x = [(edges & rest).sum() / rest.sum() for edges in found]
    y = [(edges & truth.edges).sum() / 40 for edges in found]
    assert x[-1] == y[-1] == 1
    expected = np.trapezoid(y, x)
    np.testing.assert_allclose(circuits.interpbench_auroc(scores, truth), expected)


def test_stability():
    random = np.random.default_rng(0)
    signal = np.where(np.arange(16) < 5, 4.0, 0.0)
    clear = (signal + random.normal(0, 0.1, (20, 16))).astype(np.float32)
    noise = random.normal(0, 1, (20, 16)).astype(np.float32)

    def of(prompts):
        mean = jnp.asarray(prompts.mean(0))
        return Scores(mean, None, prompts, GRAPH, "node", "given")

    sure = circuits.stability(of(clear), 5)
    assert float(sure.interval.mean) == sure.pairs == 1
    np.testing.assert_array_equal(sure.frequency, signal > 0)
    unsure = circuits.stability(of(noise), 5, key=jax.random.key(3))
    low, mean, high = (
        float(getattr(unsure.interval, end)) for end in ("low", "mean", "high")
    )
    assert 0 < low < mean < high <= 1
    assert unsure.pairs < mean < 0.9
    np.testing.assert_allclose(unsure.frequency.sum(), 5)
    with pytest.raises(ConfigError, match="keep_prompts=True"):
        circuits.stability(scores_of(signal, level="node"), 5)


def test_stability_of_a_discovery():
    model, task, circuit = case("induction")
    scores = circuits.discover(model, task, circuits.EAP(), keep_prompts=True)
    found = circuits.stability(scores, circuit.n_edges, absolute=True)
    assert found.frequency.shape == circuit.edges.shape
    assert not found.frequency[~circuit.graph.edges].any()


def test_what_is_refused(unchecked):
    model, task, circuit = case("induction")
    graph = circuit.graph
    with pytest.raises(ConfigError, match="no path from the input"):
        circuits.completeness(model, task, Circuit.empty(graph))
    with pytest.raises(ConfigError, match=r"'a0\.h2' is not in the circuit"):
        circuits.completeness(model, task, circuit, subsets=[["a0.h2"]])
    with pytest.raises(ConfigError, match=r"'a0\.h2' is not in the circuit"):
        circuits.minimality(model, task, circuit, parts=["a0.h2"])
    with pytest.raises(ConfigError, match="A null takes a circuit with edges"):
        circuits.null(model, task, Circuit.empty(graph))
    with pytest.raises(ConfigError, match=r"one of 'edge', .* the str 'heads'"):
        circuits.roc([circuit], circuit, level="heads")
    with pytest.raises(ConfigError, match="some that are not"):
        circuits.roc([circuit], Circuit.full(graph))
    with pytest.raises(ShapeError, match="different graphs"):
        circuits.roc([circuit], Circuit.full(GRAPH).without("m0"))
