"""The page of an attribution graph."""

import json
import re

import jax
import numpy as np
import pytest

import mijax
from mijax import dictionaries as d
from mijax import graphs, viz


@pytest.fixture(scope="module")
def found():
    model = mijax.testing.tiny_llama(jax.random.key(0))
    coders = {
        i: d.untrained(d.TopK(4), d.Transcoder(32), latents=64, key=key)
        for i, key in enumerate(jax.random.split(jax.random.key(1), 3))
    }
    both = graphs.Replacement.of(model, coders)
    graph = graphs.attribute(both, [5, 6, 7, 11], targets=[9, 3], left_out=0)
    return graph, graphs.verify(both, [5, 6, 7, 11], graph, features=3)


def data_of(page):
    return json.loads(re.findall(r'id="data">(.*?)</script>', page, re.S)[0])


def test_the_page_has_every_node_and_edge(found):
    graph, verified = found
    page = viz.graph_page(
        graph, verified=verified, examples={"f0.53": ["</script><b>x"]}, title="<A>"
    )
    data = data_of(page)
    assert len(data["nodes"]) == len(graph.kind) == page.count('class="node ')
    dense = np.zeros_like(graph.edges)
    for source, target, weight in data["edges"]:
        dense[target, source] = weight
    np.testing.assert_allclose(dense, graph.edges, rtol=1e-3, atol=1e-12)
    removed = [n for n in data["nodes"] if "removed" in n]
    assert len(removed) == 3
    assert all(len(node["removed"]) == 2 for node in removed)
    with_examples = [n for n in data["nodes"] if "examples" in n]
    assert {n["label"].split()[0] for n in with_examples} == {"f0.53"}
    assert "<A>" not in page
    assert page.count("</script>") == 2
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_nodes_are_apart_and_inside(found):
    graph, _ = found
    data = data_of(page := viz.graph_page(graph))
    places = np.array([[n["x"], n["y"]] for n in data["nodes"]])
    far = np.linalg.norm(places[:, None] - places, axis=-1)
    assert far[np.triu_indices(len(places), 1)].min() >= 10
    size = re.findall(r'<svg width="(\d+)" height="(\d+)"', page)[0]
    assert (places > 0).all()
    assert (places < np.array(size, float)).all()
    # Later layers are higher up.
    features = graph.where("feature")
    y = places[features, 1]
    assert y[graph.layer[features] == 0].min() > y[graph.layer[features] == 2].max()


def test_too_many_nodes_are_refused():
    kinds = ["feature"] * 3000 + ["logit"]
    graph = graphs.AttributionGraph.by_hand(np.zeros((3001, 3001)), kinds)
    with pytest.raises(ValueError, match="at most 3,000"):
        viz.graph_page(graph)
