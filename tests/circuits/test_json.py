"""Graphs in the format of the reference implementation."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mijax import circuits
from mijax._errors import ConfigError, LoadError, OutputError
from mijax.circuits import Circuit, Graph, Scores

GOLDEN = Path(__file__).parent.parent / "golden" / "eap_ig"
GRAPH = Graph.decoder(3, heads=4)


def scores_at(level, graph=GRAPH):
    shape = {"edge": graph.edges.shape, "node": (16,), "neuron": (16, 8)}[level]
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values = values * graph.edges if level == "edge" else values
    return Scores(jnp.asarray(values), None, None, graph, level, "given")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_reference_s_files(name, tmp_path):
    with np.load(GOLDEN / f"{name}.npz") as file:
        expected = file["edge_eap_ig_inputs"]
    scores, circuit = circuits.load_json(GOLDEN / f"{name}.json")
    assert scores.graph == GRAPH
    assert scores.level == "edge"
    np.testing.assert_array_equal(scores.values, expected)
    assert circuit == circuits.top(scores, 52, absolute=True)
    again = tmp_path / "again.json"
    circuits.save_json(again, scores, circuit, embed=32)
    with open(GOLDEN / f"{name}.json") as theirs, open(again) as ours:
        assert json.load(theirs) == json.load(ours)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("level", ["edge", "node", "neuron"])
def test_round_trip(level, parallel, tmp_path):
    graph = Graph.decoder(3, heads=4, parallel=parallel)
    scores = scores_at(level, graph)
    circuit = circuits.top(scores, 10, prune=False)
    circuits.save_json(tmp_path / "graph.json", scores, circuit, embed=8)
    found, kept = circuits.load_json(tmp_path / "graph.json")
    assert found.graph == graph
    assert found.level == level
    np.testing.assert_array_equal(found.values, scores.values)
    assert kept == circuit
    assert (kept.neurons is None) == (level != "neuron")
    assert [file.name for file in tmp_path.iterdir()] == ["graph.json"]


def changed(change):
    content = json.loads((GOLDEN / "gpt2.json").read_text())
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("nodes"), "key 'nodes' is missing"),
        (lambda c: c.update(extra={}), "unknown key 'extra'"),
        (lambda c: c["cfg"].pop("d_model"), "cfg: key 'd_model' is missing"),
        (lambda c: c["cfg"].update(n_heads=2.5), "'n_heads' is not of type int"),
        (lambda c: c["cfg"].update(n_heads=True), "'n_heads' is not of type int"),
        (lambda c: c["cfg"].update(n_head=4), "Did you mean 'n_heads'"),
        (lambda c: c["cfg"].update(n_heads=3), r"edges: unknown key"),
        (lambda c: c["nodes"].pop("m1"), "nodes: key 'm1' is missing"),
        (lambda c: c["nodes"]["m1"].update(score="1"), "node m1: 'score' is not of"),
        (lambda c: c["nodes"]["m1"].update(score=1.0), "m1 has 'score' and input has"),
        (lambda c: c["edges"].pop("m1->m2"), "edges: key 'm1->m2' is missing"),
        (lambda c: c["edges"]["m1->m2"].pop("score"), "edge m1->m2: key 'score' is"),
        (lambda c: c["edges"]["m1->m2"].update(in_graph=1), "not of type bool: 1"),
        (
            lambda c: [c["nodes"][n].update(neurons=[True]) for n in GRAPH.senders],
            "'neurons' of node input is not bool, 32 of them",
        ),
    ],
)
def test_what_is_refused(change, message, tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(changed(change)))
    with pytest.raises(LoadError, match=message):
        circuits.load_json(path)


def test_files_that_are_not_there_or_not_graphs(tmp_path):
    with pytest.raises(LoadError, match="Cannot read"):
        circuits.load_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"cfg":')
    with pytest.raises(LoadError, match="is not JSON"):
        circuits.load_json(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(LoadError, match="not a dictionary"):
        circuits.load_json(tmp_path / "list.json")


def test_what_the_format_cannot_say(tmp_path):
    path = tmp_path / "graph.json"
    for inputs, mlp in ((("token", "position"), True), (("input",), False)):
        graph = Graph.decoder(1, heads=2, mlp=mlp, inputs=inputs)
        zeros = jnp.zeros(graph.edges.shape)
        scores = Scores(zeros, None, None, graph, "edge", "given")
        with pytest.raises(ConfigError, match="one input, and heads and an MLP"):
            circuits.save_json(path, scores, embed=8)
    with pytest.raises(ConfigError, match="have 8 neurons a node, embed is 9"):
        circuits.save_json(path, scores_at("neuron"), embed=9)
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "graph.json"
    with pytest.raises(OutputError, match="Cannot write"):
        circuits.save_json(inside, scores_at("edge"), Circuit.full(GRAPH), embed=8)
    assert not path.exists()
