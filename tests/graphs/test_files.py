"""Graph files: round trip, the schema of circuit-tracer, and refusals."""

import json

import jax
import numpy as np
import pytest

import mijax
from mijax import dictionaries as d
from mijax import graphs


@pytest.fixture(scope="module")
def graph():
    model = mijax.testing.tiny_llama(jax.random.key(0))
    coders = {
        i: d.untrained(d.TopK(4), d.Transcoder(32), latents=64, key=key)
        for i, key in enumerate(jax.random.split(jax.random.key(1), 3))
    }
    both = graphs.Replacement.of(model, coders)
    return graphs.attribute(both, [5, 6, 7, 11], targets=[9, 3], left_out=0).prune()


def test_round_trip(graph, tmp_path):
    path = tmp_path / "graph.json"
    name = graph.names[0]
    graphs.save_graph(path, graph, slug="a", scan="b", supernodes={"one": [name]})
    found = graphs.load_graph(path)
    assert found.names == graph.names
    assert found.labels == graph.labels
    np.testing.assert_array_equal(found.edges, graph.edges)
    for field in ("tokens", "kind", "layer", "position", "index"):
        np.testing.assert_array_equal(getattr(found, field), getattr(graph, field))
    for field in ("activation", "probability", "cumulative"):
        np.testing.assert_allclose(getattr(found, field), getattr(graph, field))
    content = json.loads(path.read_text())
    assert content["qParams"]["supernodes"][0][0] == "one"
    assert len({node["node_id"] for node in content["nodes"]}) == len(graph.kind)


def test_pairing():
    from mijax.graphs._json import paired, unpaired  # noqa: PLC0415

    pairs = [(layer, index) for layer in range(30) for index in range(0, 9000, 7)]
    assert all(unpaired(paired(*pair)) == pair for pair in pairs)


def broken(content, *, case):
    nodes = content["nodes"]
    if case == "no nodes":
        del content["nodes"]
    elif case == "two of one name":
        nodes[1]["node_id"] = nodes[0]["node_id"]
    elif case == "link to nothing":
        content["links"][0]["source"] = "9_9_9"
    elif case == "unknown type":
        nodes[0]["feature_type"] = "lorsa"
    elif case == "position":
        nodes[0]["ctx_idx"] = 99
    elif case == "weight":
        content["links"][0]["weight"] = "strong"
    elif case == "words":
        content["metadata"]["prompt_tokens"] = 3
    return content


@pytest.mark.parametrize(
    "case",
    [
        "no nodes",
        "two of one name",
        "link to nothing",
        "unknown type",
        "position",
        "weight",
        "words",
    ],
)
def test_broken_files_are_refused(graph, tmp_path, case):
    path = tmp_path / "graph.json"
    graphs.save_graph(path, graph, slug="a", scan="b")
    path.write_text(json.dumps(broken(json.loads(path.read_text()), case=case)))
    with pytest.raises(mijax.MijaxError) as error:
        graphs.load_graph(path)
    assert "\n" not in str(error.value)
