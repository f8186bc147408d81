"""The JSON of scores and circuits of any model, by name."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from mijax._errors import LoadError
from mijax.circuits._circuit import Circuit
from mijax.circuits._json_checks import check_keys, record, typed
from mijax.circuits._scores import Scores
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._ports import Port, Ports
from mijax.circuits.nodes._circuit import NodeCircuit, mask_of
from mijax.circuits.nodes._nodes import Nodes, NodeSite
from mijax.circuits.nodes._scores import NodeScores

VERSION_KEY, VERSION = "mijax_circuit", 1
TABLE = {"scores": dict, "errors": object, "circuit": list, "method": str}
EDGES = {VERSION_KEY: int, "graph": dict, "level": str, "embed": object} | TABLE
EDGES |= {"neurons": object}
NODES = {VERSION_KEY: int, "nodes": list} | TABLE
GRAPH = {"inputs": list, "n_layers": int, "ports": list, "opened": list}
PORT = {"name": str, "writes": bool, "heads": object, "stream": str, "layer": int}
SITE = {"site": str, "axes": list, "shapes": list}


def native_edges(scores: Scores, circuit: Circuit) -> dict[str, Any]:
    """Returns the content of a file about edges."""
    graph, neurons = scores.graph, circuit.neurons
    index = np.flatnonzero(scores.real)
    names = [scores.name(int(i)) for i in index]
    size = scores.values.shape[-1] if scores.level == "neuron" else None
    if neurons is not None:
        size, rows = neurons.shape[-1], [np.flatnonzero(row) for row in neurons]
        pairs = zip(graph.senders, rows, strict=True)
        neurons = {name: row.tolist() for name, row in pairs}
    return {
        VERSION_KEY: VERSION,
        "graph": {
            "inputs": graph.inputs,
            "n_layers": graph.n_layers,
            "ports": [port._asdict() for port in graph.ports.order],
            "opened": graph.opened,
        },
        "level": scores.level,
        "embed": size,
        "scores": _by_name(names, np.asarray(scores.values).reshape(-1)[index]),
        "errors": _by_name(names, scores.error, index),
        "circuit": circuit.names(),
        "neurons": neurons,
        "method": scores.method,
    }


def native_nodes(scores: NodeScores, circuit: Any) -> dict[str, Any]:
    """Returns the content of a file about nodes.

    Raises:
        ShapeError: a circuit of other nodes.
    """
    names, sites = scores.nodes.names(), scores.nodes.sites
    empty = NodeCircuit(scores.nodes, np.zeros(len(names), bool))
    chosen = empty if circuit is None else circuit
    mask_of(scores.nodes, chosen)
    return {
        VERSION_KEY: VERSION,
        "nodes": [{key: getattr(one, key) for key in SITE} for one in sites],
        "scores": _by_name(names, scores.values),
        "errors": _by_name(names, scores.error),
        "circuit": chosen.names(),
        "method": scores.method,
    }


def read_native(content: dict[str, Any], where: str) -> Any:
    """Returns scores and circuit of a file.

    Raises:
        LoadError: another version, or keys, names and values that are not its format.
    """
    version = content[VERSION_KEY]
    if version != VERSION or isinstance(version, bool):
        raise LoadError(
            f"{where} has version {version!r:.20} of {VERSION_KEY}, this mijax reads "
            f"version {VERSION}: update mijax, or save the file again."
        )
    if "nodes" in content:
        return _read_nodes(record(content, NODES, where), where)
    return _read_edges(record(content, EDGES, where), where)


def _read_edges(content: dict[str, Any], where: str) -> tuple[Scores, Circuit]:
    """Returns scores and circuit of edges."""
    graph = _graph(content, where)
    level, embed = content["level"], content["embed"] or 0
    senders = len(graph.senders)
    sizes = {"edge": graph.edges.shape, "node": (senders,), "neuron": (senders, embed)}
    neural = level == "neuron" or content["neurons"] is not None
    if level not in sizes or not typed(embed, int) or (embed > 0) != neural:
        raise LoadError(
            f"{where}: level is {level!r:.20} and embed {embed!r:.20}, expected "
            "'edge', 'node' or 'neuron', and embed where there are neurons."
        )
    empty = np.zeros(sizes[level], np.float32)
    scores = Scores(jnp.asarray(empty), None, None, graph, level, content["method"])
    index = np.flatnonzero(scores.real)
    names = [scores.name(int(i)) for i in index]

    def spread(key: str) -> Any:
        if key == "errors" and content[key] is None:
            return None
        values = empty.copy()
        values.reshape(-1)[index] = _values(content[key], names, f"{where}: {key}")
        return jnp.asarray(values)

    method = content["method"]
    scores = Scores(spread("scores"), spread("errors"), None, graph, level, method)
    edges = [graph.name(int(s), int(r)) for s, r in np.argwhere(graph.edges)]
    chosen = _known(content["circuit"], edges, f"{where}: circuit")
    circuit = Circuit.of(graph, chosen)
    if content["neurons"] is None:
        return scores, circuit
    rows = record(
        content["neurons"], dict.fromkeys(graph.senders, list), f"{where}: neurons"
    )
    neurons = np.zeros((senders, embed), bool)
    for i, name in enumerate(graph.senders):
        at = f"{where}: neurons of {name}"
        neurons[i, _known(rows[name], range(embed), at)] = True
    return scores, Circuit(graph, circuit.edges, neurons)


def _graph(content: dict[str, Any], where: str) -> Graph:
    """Returns the graph of a file."""
    found, ports = record(content["graph"], GRAPH, f"{where}: graph"), []
    for i, one in enumerate(found["ports"]):
        port = Port(**record(one, PORT, f"{where}: port {i}"))
        if not (port.heads is None or (typed(port.heads, int) and port.heads > 0)):
            raise LoadError(f"{where}: port {i} has heads {port.heads!r:.20}.")
        ports.append(port)
    keys = {(port.name, port.layer) for port in ports}
    texts = [*found["inputs"], *found["opened"]]
    opened = len(found["opened"]) in (0, len(found["inputs"]))
    # A wrong size must be found before there is a graph of that size.
    size = found["n_layers"] * sum(port.size for port in ports)
    fits = 0 < size <= 8 * len(content["scores"])
    if len(keys) < len(ports) or not opened or not fits:
        raise LoadError(
            f"{where}: the graph has {found['n_layers']!r:.20} layers and {len(ports)} "
            "ports, expected different ports, an input or more, and scores of all."
        )
    if not all(typed(text, str) for text in texts):
        raise LoadError(f"{where}: inputs and streams are texts.")
    inputs, opened = tuple(found["inputs"]), tuple(found["opened"])
    return Graph(inputs, found["n_layers"], Ports(tuple(ports)), opened)


def _read_nodes(content: dict[str, Any], where: str) -> tuple[NodeScores, NodeCircuit]:
    """Returns scores and circuit of nodes."""
    sites, start = [], 0
    for i, one in enumerate(content["nodes"]):
        found = record(one, SITE, f"{where}: site {i}")
        shapes = found["shapes"]
        if not shapes or not all(
            isinstance(shape, list) and all(typed(n, int) and n > 0 for n in shape)
            for shape in shapes
        ):
            raise LoadError(f"{where}: site {found['site']!r} has no list of shapes.")
        shapes = tuple(tuple(shape) for shape in shapes)
        sites.append(NodeSite(found["site"], tuple(found["axes"]), shapes, start))
        start = sites[-1].stop
    if start > len(content["scores"]) or not sites:
        raise LoadError(f"{where}: {start} nodes have {len(content['scores'])} scores.")
    nodes = Nodes(tuple(sites))
    names, errors = nodes.names(), content["errors"]
    values = _values(content["scores"], names, f"{where}: scores")
    if errors is not None:
        errors = _values(errors, names, f"{where}: errors")
    chosen = set(_known(content["circuit"], names, f"{where}: circuit"))
    mask = np.array([name in chosen for name in names])
    scores = NodeScores(values, errors, nodes, content["method"])
    return scores, NodeCircuit(nodes, mask)


def _by_name(names: Iterable[str], values: Any, index: Any = ...) -> Any:
    """Returns numbers by name, `None` for none."""
    if values is None:
        return None
    flat = np.asarray(values).reshape(-1)[index]
    return dict(zip(names, flat.tolist(), strict=True))


def _values(found: Any, names: Iterable[str], where: str) -> np.ndarray:
    """Returns the number of each name, in order."""
    record(found, dict.fromkeys(names, float), where)
    return np.array([found[name] for name in names], np.float32)


def _known(found: list[Any], known: Iterable[Any], where: str) -> list[Any]:
    """Returns entries that are known and occur once."""
    if not all(isinstance(one, str | int) for one in found):
        raise LoadError(f"{where} is not a list of names: {found!r:.60}.")
    check_keys(dict.fromkeys(found), known, where, needed=())
    if len(set(found)) < len(found):
        raise LoadError(f"{where} has an entry twice.")
    return found
