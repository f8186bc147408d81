"""Supernodes and comparisons keep what they add up."""

import numpy as np
import pytest

from mijax import graphs


def random_graph(seed, features=8):
    """Effects that run forwards only: features, 2 errors, 2 tokens, 2 logits."""
    random = np.random.default_rng(seed)
    kinds = ["feature"] * features + ["error"] * 2 + ["token"] * 2 + ["logit"] * 2
    edges = random.normal(size=(len(kinds), len(kinds)))
    edges[:features, :features] = np.tril(edges[:features, :features], -1)
    edges[features:-2] = 0
    edges[:, -2:] = 0
    return graphs.AttributionGraph.by_hand(edges, kinds)


def test_groups_add_up():
    graph = random_graph(0)
    groups = {"a": graph.names[:3], "b": graph.names[3:5]}
    found = graphs.contract(graph, groups)
    assert found.names[:2] == ("a", "b")
    np.testing.assert_allclose(found.edges[1, 0], graph.edges[3:5, :3].sum(), rtol=1e-6)
    np.testing.assert_allclose(found.edges[2, 0], graph.edges[5, :3].sum(), rtol=1e-6)
    np.testing.assert_allclose(found.influence.sum(), graph.influence().sum())
    alone = graphs.contract(graph, {})
    assert alone.names == graph.names
    np.testing.assert_array_equal(alone.edges, graph.edges)


def test_planted_groups_are_found():
    # Three features with the sources and targets of each of two others, up to noise.
    base = random_graph(1, features=2)
    random = np.random.default_rng(2)
    twin = np.repeat([0, 1], 3)
    rest = np.arange(2, len(base.kind))
    order = np.concatenate([twin, rest])
    edges = base.edges[np.ix_(order, order)]
    edges[:6, :6] = 0
    edges *= 1 + 0.05 * random.normal(size=edges.shape)
    kinds = ["feature"] * 6 + ["error"] * 2 + ["token"] * 2 + ["logit"] * 2
    graph = graphs.AttributionGraph.by_hand(edges, kinds)
    found = graphs.cluster(graph, groups=2)
    names = graph.names
    assert set(map(frozenset, found.values())) == {
        frozenset(names[:3]),
        frozenset(names[3:6]),
    }
    assert len(graphs.cluster(graph, groups=6)) == 6


def test_features_are_compared_over_positions():
    one, two = random_graph(3), random_graph(4)
    found = graphs.compare([one, two])
    assert found.influence.shape == (2, 8)
    for row, graph in zip(found.influence, (one, two), strict=True):
        np.testing.assert_allclose(row.sum(), graph.influence()[:8].sum())
    np.testing.assert_allclose(np.diag(found.similarity), 1)
    assert found.similarity[0, 1] < 0.999


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda g: graphs.contract(g, {"a": ["f9.9@9"]}), KeyError, "no node"),
        (
            lambda g: graphs.contract(g, {"a": g.names[:1], "b": g.names[:1]}),
            ValueError,
            "two groups",
        ),
        (
            lambda g: graphs.contract(g, {g.names[0]: []}),
            ValueError,
            "names a node",
        ),
        (lambda g: graphs.cluster(g, groups=0), ValueError, "1 to 8 groups"),
        (lambda g: graphs.compare([]), ValueError, "one replacement model"),
    ],
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(random_graph(0))
