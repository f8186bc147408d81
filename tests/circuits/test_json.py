"""Scores and circuits as files: those of the reference implementation, and ours."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mijax import circuits
from mijax._errors import ConfigError, LoadError, OutputError, ShapeError
from mijax.circuits import Circuit, Graph, Nodes, NodeScores, Port, Ports, Scores
from mijax.circuits.nodes._nodes import NodeSite

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


# mijax's own files, of any graph and any nodes.


def towers():
    ports = [
        *(Port("encoder.q", False, 2, "encoder"), Port("encoder.attn_out", True, 2)),
        *(Port("mlp_in", False, stream="encoder"), Port("mlp_out", True)),
        *(Port("mlp_in", False, layer=1), Port("mlp_out", True, layer=1)),
        Port("logits", False),
    ]
    return Graph(("source", "target"), 1, Ports(tuple(ports)), ("encoder", ""))


GRAPHS = {
    "towers": towers(),
    "attention": Graph.decoder(2, heads=2, mlp=False, inputs=("token", "position")),
    "sum": Graph(("input",), 2, Ports((Port("sum_in", False), Port("sum_out", True)))),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("level", ["edge", "node", "neuron"])
def test_round_trip_of_any_graph(level, name, tmp_path):
    graph, draw = GRAPHS[name], np.random.default_rng(0)
    size = len(graph.senders)
    shape = {"edge": graph.edges.shape, "node": (size,), "neuron": (size, 3)}[level]
    values, errors = draw.normal(size=(2, *shape)).astype(np.float32)
    if level == "edge":
        values, errors = values * graph.edges, errors * graph.edges
    errors = None if level == "neuron" else jnp.asarray(errors)
    scores = Scores(jnp.asarray(values), errors, None, graph, level, "given")
    circuit = circuits.top(scores, 3, prune=False)
    circuits.save_json(tmp_path / "graph.json", scores, circuit)
    found, kept = circuits.load_json(tmp_path / "graph.json")
    assert (found.graph, found.level, found.method) == (graph, level, "given")
    np.testing.assert_array_equal(found.values, values)
    assert (found.error is None) == (errors is None)
    if errors is not None:
        np.testing.assert_array_equal(found.error, errors)
    assert kept == circuit
    assert (kept.neurons is None) == (level != "neuron")
    circuits.save_json(tmp_path / "scores.json", scores)
    assert circuits.load_json(tmp_path / "scores.json")[1] == Circuit.empty(graph)


def node_scores():
    sites = (
        NodeSite("relu", ("layer", "channel"), ((3,), (2,)), 0),
        NodeSite("z", ("head",), ((4,),), 5),
        NodeSite("error", (), ((),), 9),
    )
    values, error = np.random.default_rng(0).normal(size=(2, 10)).astype(np.float32)
    return NodeScores(values, error, Nodes(sites), "given")


def test_round_trip_of_nodes(tmp_path):
    scores = node_scores()
    for given, circuit in ((scores, scores.top(4)), (scores, None)):
        circuits.save_json(tmp_path / "nodes.json", given, circuit)
        found, kept = circuits.load_json(tmp_path / "nodes.json")
        assert (found.nodes, found.method) == (scores.nodes, "given")
        np.testing.assert_array_equal(found.values, scores.values)
        np.testing.assert_array_equal(found.error, scores.error)
        assert kept == (scores.top(0) if circuit is None else circuit)
    assert set(found["relu"][1].tolist()) == set(scores["relu"][1].tolist())


def test_circuits_of_something_else_are_not_saved(unchecked, tmp_path):
    nodes, edges = node_scores(), scores_at("edge")
    with pytest.raises(ShapeError, match="got a NodeCircuit"):
        circuits.save_json(tmp_path / "a.json", edges, nodes.top(1))
    with pytest.raises(ShapeError, match="Expected a NodeCircuit"):
        circuits.save_json(tmp_path / "a.json", nodes, Circuit.full(GRAPH))
    with pytest.raises(ShapeError, match="different graphs"):
        circuits.save_json(tmp_path / "a.json", edges, Circuit.full(towers()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        *(
            (kind, lambda c: c.update(mijax_circuit=2), "version 2 of mijax_circuit")
            for kind in ("edges", "nodes")
        ),
        ("edges", lambda c: c.update(mijax_circuit=True), "version True"),
        ("edges", lambda c: c.update(extra=1), "unknown key 'extra'"),
        ("edges", lambda c: c.pop("method"), "'method' is missing"),
        ("edges", lambda c: c.update(level="edges"), "level is 'edges'"),
        ("edges", lambda c: c.update(embed=3), "embed 3"),
        ("edges", lambda c: c["scores"].pop("m1 <- target"), "'m1 <- target' is miss"),
        ("edges", lambda c: c["scores"].update({"m1 <- target": "1"}), "of type float"),
        ("edges", lambda c: c["circuit"].append("m9 <- x"), "unknown key 'm9 <- x'"),
        ("edges", lambda c: c["circuit"].extend(c["circuit"]), "has an entry twice"),
        ("edges", lambda c: c["graph"].update(n_layers=10**9), "layers and 7 ports"),
        ("edges", lambda c: c["graph"]["ports"].pop(2), "unknown key"),
        ("edges", lambda c: c["graph"]["ports"][0].update(heads=0), "has heads 0"),
        ("edges", lambda c: c["graph"]["ports"].append(c["graph"]["ports"][0]), "diff"),
        ("edges", lambda c: c["graph"].update(inputs=[1, 2]), "are texts"),
        ("nodes", lambda c: c["nodes"][0].update(shapes=[[10**9]]), "10 scores"),
        ("nodes", lambda c: c["nodes"][0].update(shapes=3), "'shapes' is not of type"),
        ("nodes", lambda c: c["nodes"][0].update(shapes=[3]), "no list of shapes"),
        ("nodes", lambda c: c["circuit"].append("relu[7, 7]"), r"unknown key 'relu\[7"),
        ("nodes", lambda c: c["circuit"].append([1]), "not a list of names"),
    ],
)
def test_own_files_that_are_refused(kind, change, message, tmp_path):
    path = tmp_path / "file.json"
    if kind == "nodes":
        circuits.save_json(path, node_scores())
    else:
        zeros = jnp.zeros(towers().edges.shape)
        scores = Scores(zeros, None, None, towers(), "edge", "given")
        circuits.save_json(path, scores, Circuit.full(towers()))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(LoadError, match=message) as caught:
        circuits.load_json(path)
    assert "\n" not in str(caught.value)
