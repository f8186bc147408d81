"""Scores and circuits as files: mijax's own, and those of EAP-IG."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mijax._errors import ConfigError, LoadError, ShapeError
from mijax.circuits._circuit import Circuit, owners, same_graph
from mijax.circuits._json_checks import check_keys, record, typed
from mijax.circuits._json_native import (
    VERSION_KEY,
    native_edges,
    native_nodes,
    read_native,
)
from mijax.circuits._scores import Level, Scores
from mijax.circuits.forward._graph import Graph
from mijax.circuits.nodes._circuit import NodeCircuit
from mijax.circuits.nodes._scores import NodeScores
from mijax.core.internal import checked
from mijax.io import replace_file
from mijax.io.internal import unique

CFG = {"n_layers": int, "n_heads": int, "parallel_attn_mlp": bool, "d_model": int}
OF_NODES = {"in_graph": bool, "score": float, "neurons": list, "neurons_scores": list}
OF_EDGES = {"score": float, "in_graph": bool}


@checked
def save_json(
    path: str | os.PathLike[str],
    scores: Scores | NodeScores,
    circuit: Circuit | NodeCircuit | None = None,
    *,
    embed: int | None = None,
) -> None:
    """Writes scores and a circuit, of edges or of nodes, of any model.

    Without `embed` the file is mijax's own: the graph (or the nodes), a score and its
    standard error by name, and the names in the circuit. With it the file is that of
    the reference implementation of EAP-IG, for graphs of decoders:
    `{"cfg": ..., "nodes": {name: {"in_graph"}}, "edges": {"a0.h1->m0": {"score",
    "in_graph"}}}`; nodes carry `"score"` if nodes were scored, `"neurons_scores"` if
    neurons were, and `"neurons"` if the circuit selects some. Edges that were not
    scored have score 0. The file appears atomically.

    Args:
        path: the file.
        scores: at any level, or of nodes of a `NodeTask`.
        circuit: edges or nodes that are in; none by default.
        embed: size of the residual stream, to write a file of EAP-IG.

    Raises:
        ConfigError: a graph that EAP-IG does not know: several inputs, or blocks
            without an MLP; or neurons that are not `embed` many.
        ShapeError: scores and circuit of different graphs or nodes.
        OutputError: the file cannot be written.

    Examples:
        >>> import tempfile
        >>> graph = Graph.decoder(1, heads=1)
        >>> values = jnp.asarray(graph.edges, jnp.float32)
        >>> scores = Scores(values, None, None, graph, "edge", "by hand")
        >>> path = f"{tempfile.mkdtemp()}/graph.json"
        >>> save_json(path, scores, Circuit.full(graph))
        >>> load_json(path)[1]
        Circuit(8 of 8 edges)
    """
    if isinstance(scores, NodeScores):
        content = native_nodes(scores, circuit)
    else:
        chosen = Circuit.empty(scores.graph) if circuit is None else circuit
        if not isinstance(chosen, Circuit):
            raise ShapeError("Scores of edges take a Circuit, got a NodeCircuit.")
        same_graph(Circuit.empty(scores.graph), chosen)
        if embed is None:
            content = native_edges(scores, chosen)
        else:
            content = reference_content(scores, chosen, embed)
    text = json.dumps(content)
    replace_file(path, lambda scratch: scratch.write_text(text) and None)


def reference_content(scores: Scores, circuit: Circuit, embed: int) -> dict[str, Any]:
    """Returns the content of a file of EAP-IG.

    Raises:
        ConfigError: a graph that the format does not know.
    """
    graph = scores.graph
    heads = next((port.heads for port in graph.ports.writes if port.heads), 0)
    known = {
        Graph.decoder(graph.n_layers, heads=heads, parallel=parallel): parallel
        for parallel in (False, True)
    }
    if graph not in known:
        raise ConfigError(
            "The format of EAP-IG knows one input, and heads and an MLP in every "
            f"block; this graph has inputs {', '.join(graph.inputs)}, and its blocks "
            "read and write "
            f"{', '.join(port.name for port in graph.ports.order)}: leave embed out."
        )
    for name, array in (
        ("scores", scores.values if scores.level == "neuron" else None),
        ("circuit", circuit.neurons),
    ):
        if array is not None and array.shape[-1] != embed:
            raise ConfigError(
                f"The {name} have {array.shape[-1]} neurons a node, embed is {embed}."
            )
    sizes = graph.n_layers, heads, known[graph], embed
    return {
        "cfg": dict(zip(CFG, sizes, strict=True)),
        "nodes": nodes_of(scores, circuit),
        "edges": edges_of(scores, circuit),
    }


def load_json(
    path: str | os.PathLike[str],
) -> tuple[Scores, Circuit] | tuple[NodeScores, NodeCircuit]:
    """Reads scores and a circuit from a file of `save_json` or of EAP-IG.

    Which edges are in the circuit is what the edges say; nodes of a file of EAP-IG say
    it once more and are not needed for it.

    Args:
        path: the file.

    Returns:
        Scores, at the finest level that the file has any of, and the circuit.

    Raises:
        LoadError: no such file, not JSON, a version that this mijax does not know, or a
            key or value that is missing, unknown or of another type.

    Examples:
        >>> load_json("none.json")
        Traceback (most recent call last):
        mijax._errors.LoadError: Cannot read none.json: No such file or directory.
    """
    path = Path(path)
    try:
        # Scores may be infinite, which Python's JSON can write.
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise LoadError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not JSON: {error}.") from error
    if isinstance(content, dict) and VERSION_KEY in content:
        return read_native(content, f"{path}")
    return read_reference(content, path)


def read_reference(content: Any, path: Path) -> tuple[Scores, Circuit]:
    """Returns scores and circuit of a file of EAP-IG."""
    content = record(content, dict.fromkeys(("cfg", "nodes", "edges"), dict), f"{path}")
    cfg = record(content["cfg"], CFG, f"{path}: cfg")
    layers, heads, parallel = (cfg[key] for key in list(CFG)[:3])
    nodes = content["nodes"]
    # A wrong size must be found before there is a graph of that size.
    if min(layers, heads, cfg["d_model"]) < 1 or layers * (heads + 1) > 2 * len(nodes):
        raise LoadError(
            f"{path}: cfg has {layers!r:.20} layers of {heads!r:.20} heads, and the "
            f"file {len(nodes)} nodes, expected input, logits, and heads and one MLP "
            "per layer."
        )
    graph = Graph.decoder(layers, heads=heads, parallel=parallel)
    edges, values = read_edges(graph, content["edges"], path)
    check_keys(nodes, (*graph.senders, "logits"), f"{path}: nodes")
    for name, found in nodes.items():
        record(found, OF_NODES, f"{path}: node {name}", needed=("in_graph",))
    level: Level = "edge"
    size = cfg["d_model"]
    scored = read_nodes(graph, nodes, "score", (), path)
    if scored is not None:
        level, values = "node", scored
    scored = read_nodes(graph, nodes, "neurons_scores", (size,), path)
    if scored is not None:
        level, values = "neuron", scored
    neurons = read_nodes(graph, nodes, "neurons", (size,), path)
    method = f"read from {path.name}"
    scores = Scores(jnp.asarray(values, jnp.float32), None, None, graph, level, method)
    return scores, Circuit(graph, edges, neurons)


def nodes_of(scores: Scores, circuit: Circuit) -> dict[str, dict[str, Any]]:
    """Returns what the format says of nodes."""
    graph, values = scores.graph, np.asarray(scores.values)
    entered = np.zeros(len(graph.senders), bool)
    entered[owners(graph)[:-1][circuit.edges[:, :-1].any(0)]] = True
    entered[0] = True
    inside = np.any(circuit.edges, axis=1) & entered
    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(graph.senders):
        found[name] = {"in_graph": bool(inside[i])}
        if scores.level == "node":
            found[name]["score"] = float(values[i])
        if circuit.neurons is not None:
            found[name]["neurons"] = circuit.neurons[i].tolist()
        if scores.level == "neuron":
            found[name]["neurons_scores"] = values[i].tolist()
    return {**found, "logits": {"in_graph": True}}


def edges_of(scores: Scores, circuit: Circuit) -> dict[str, dict[str, Any]]:
    """Returns what the format says of edges."""
    graph = scores.graph
    scored = scores.level == "edge"
    values = np.asarray(scores.values) if scored else np.zeros(graph.edges.shape)
    return {
        f"{graph.senders[s]}->{graph.receivers[r]}": {
            "score": float(values[s, r]),
            "in_graph": bool(circuit.edges[s, r]),
        }
        for s, r in np.argwhere(graph.edges)
    }


def read_edges(graph: Graph, found: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """Returns which edges are in, and their scores."""
    place = {
        f"{graph.senders[s]}->{graph.receivers[r]}": (int(s), int(r))
        for s, r in np.argwhere(graph.edges)
    }
    check_keys(found, place, f"{path}: edges")
    edges = np.zeros(graph.edges.shape, bool)
    values = np.zeros(graph.edges.shape, np.float32)
    for name, where in place.items():
        edge = record(found[name], OF_EDGES, f"{path}: edge {name}")
        edges[where], values[where] = edge["in_graph"], edge["score"]
    return edges, values


def read_nodes(
    graph: Graph,
    nodes: dict[str, Any],
    key: str,
    shape: tuple[int, ...],
    path: Path,
) -> np.ndarray | None:
    """Returns one entry of all nodes, `None` if no node has it."""
    having = [name for name in graph.senders if key in nodes[name]]
    if not having:
        return None
    lacking = next((name for name in graph.senders if key not in nodes[name]), None)
    if lacking is not None:
        raise LoadError(
            f"{path}: node {having[0]} has {key!r} and {lacking} has not: give it to "
            "all nodes or to none."
        )
    kind = bool if key == "neurons" else float
    rows = [nodes[name][key] for name in graph.senders]
    for name, row in zip(graph.senders, rows, strict=True):
        entries = row if isinstance(row, list) else [row]
        if (len(entries),) * len(shape) != shape or not all(
            typed(entry, kind) for entry in entries
        ):
            size = f"{shape[0]} of them" if shape else "one"
            raise LoadError(
                f"{path}: {key!r} of node {name} is not {kind.__name__}, {size}."
            )
    return np.array(rows)
