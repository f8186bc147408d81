"""Graph files in the format of circuit-tracer and Neuronpedia."""

import dataclasses
import json
import os
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import LoadError
from mijax.graphs._graph import ERROR, FEATURE, LOGIT, TOKEN, AttributionGraph
from mijax.io import read_json, read_record, replace_file

TYPES = {
    "cross layer transcoder": FEATURE,
    "mlp reconstruction error": ERROR,
    "embedding": TOKEN,
    "logit": LOGIT,
}
NAMES = {kind: name for name, kind in TYPES.items()}


def save_graph(
    path: str | os.PathLike[str],
    graph: AttributionGraph,
    *,
    slug: str,
    scan: str,
    supernodes: Mapping[str, list[str]] | None = None,
    threshold: float | None = None,
) -> None:
    """Save a graph in the format of circuit-tracer and Neuronpedia.

    Error nodes are named `error_{layer}_{position}`, because circuit-tracer's name
    `0_{layer}_{position}` can clash with a feature in layer 0.

    Args:
        path: the JSON file, written atomically.
        graph: a graph, pruned first.
        slug: short name of the graph, used in its address.
        scan: name of the transcoders.
        supernodes: names of nodes (`f3.17@5`) that belong together, by label.
        threshold: fraction of influence kept in pruning, stored as metadata.

    Raises:
        OutputError: the file cannot be written.
        SiteError: a supernode contains a node that is not in the graph.

    Examples:
        >>> import tempfile
        >>> edges = np.array([[0.0, 2.0, 0.0], [0, 0, 0], [1.5, 0, 0]])
        >>> graph = AttributionGraph.by_hand(edges, ["feature", "token", "logit"])
        >>> path = f"{tempfile.mkdtemp()}/graph.json"
        >>> save_graph(path, graph, slug="toy", scan="toy")
        >>> load_graph(path)
        AttributionGraph(1 feature, 0 errors, 1 token, 1 logit; 2 edges)
    """
    ids = [_identity(graph, i) for i in range(len(graph.kind))]
    groups = [
        [label, *(ids[graph.node(name)] for name in names)]
        for label, names in (supernodes or {}).items()
    ]
    targets, sources = np.nonzero(graph.edges)
    content = {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": list(graph.words),
            "prompt": "".join(graph.words),
            "node_threshold": threshold,
            "schema_version": 1,
            "mijax": {"layers": graph.layers, "tokens": graph.tokens.tolist()},
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": groups,
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [_node(graph, i, ids[i]) for i in range(len(graph.kind))],
        "links": [
            {"source": ids[s], "target": ids[t], "weight": float(graph.edges[t, s])}
            for t, s in zip(targets, sources, strict=True)
        ],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def _identity(graph: AttributionGraph, i: int) -> str:
    """Return the name of a node in files."""
    layer, at, index = graph.layer[i], graph.position[i], graph.index[i]
    return {
        FEATURE: f"{layer}_{index}_{at}",
        ERROR: f"error_{layer}_{at}",
        TOKEN: f"E_{index}_{at}",
        LOGIT: f"{graph.layers + 1}_{index}_{at}",
    }[int(graph.kind[i])]


def _node(graph: AttributionGraph, i: int, name: str) -> dict[str, Any]:
    kind, at, index = (int(a[i]) for a in (graph.kind, graph.position, graph.index))
    layer = int(graph.layer[i])
    influence = None if graph.cumulative is None else float(graph.cumulative[i])
    chance = float(graph.probability[i])
    label = f'Output "{graph.label(i)}" (p={chance:.3f})' if kind == LOGIT else ""
    first = kind == LOGIT and i == int(np.flatnonzero(graph.kind == LOGIT)[0])
    return {
        "node_id": name,
        "feature": {FEATURE: paired(layer, index), ERROR: -1, TOKEN: at, LOGIT: index}[
            kind
        ],
        "layer": {TOKEN: "E", LOGIT: str(graph.layers + 1)}.get(kind, str(layer)),
        "ctx_idx": at,
        "feature_type": NAMES[kind],
        "token_prob": chance,
        "is_target_logit": first,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{name.rpartition('_')[0]}-0",
        "clerp": label,
        "influence": influence,
        "activation": float(graph.activation[i]) if kind == FEATURE else None,
    }


def paired(layer: int, index: int) -> int:
    """Encode two numbers as one with Cantor's pairing function."""
    return (layer + index) * (layer + index + 1) // 2 + index


def unpaired(number: int) -> tuple[int, int]:
    """Decode the two numbers.

    Examples:
        >>> unpaired(paired(3, 17))
        (3, 17)
    """
    total = (isqrt(8 * number + 1) - 1) // 2
    index = number - total * (total + 1) // 2
    return total - index, index


@dataclasses.dataclass(frozen=True)
class NodeRecord:
    """Keys to read from a node."""

    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: str
    token_prob: float = 0.0
    clerp: str = ""
    influence: float | None = None
    activation: float | None = None


@dataclasses.dataclass(frozen=True)
class LinkRecord:
    """Keys to read from a link."""

    source: str
    target: str
    weight: float


def load_graph(path: str | os.PathLike[str]) -> AttributionGraph:
    """Load a graph file from circuit-tracer, Neuronpedia or mijax.

    Args:
        path: the JSON file.

    Returns:
        The graph; token ids come from the names of the token nodes.

    Raises:
        LoadError: not a graph file, a link to a missing node, or two nodes with the
            same name, which circuit-tracer can write for an error and a feature in
            layer 0.
    """
    content = read_json(Path(path))
    if not isinstance(content, dict) or not {"nodes", "links", "metadata"} <= set(
        content
    ):
        raise LoadError(
            f"{path} is not a graph file: expected the keys metadata, nodes and links."
        )
    words = content["metadata"].get("prompt_tokens")
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise LoadError(f"{path}: metadata needs a list of strings prompt_tokens.")
    rows = [
        _read(NodeRecord, one, f"{path}: node {i}")
        for i, one in enumerate(content["nodes"])
    ]
    for row in rows:
        if row.feature_type not in TYPES or not 0 <= row.ctx_idx < len(words):
            raise LoadError(
                f"{path}: node {row.node_id!r} has feature_type {row.feature_type!r} "
                f"at position {row.ctx_idx}: expected one of {', '.join(TYPES)} at "
                f"a position below {len(words)}."
            )
    rows.sort(key=_order)
    where = {row.node_id: i for i, row in enumerate(rows)}
    if len(where) < len(rows):
        raise LoadError(
            f"{path}: two nodes have the same name, so links to them are ambiguous. "
            "circuit-tracer names errors like features in layer 0: save the file with "
            "mijax, or rename the nodes."
        )
    edges = np.zeros((len(rows), len(rows)), np.float32)
    for i, one in enumerate(content["links"]):
        link = _read(LinkRecord, one, f"{path}: link {i}")
        if link.source not in where or link.target not in where:
            raise LoadError(f"{path}: link {i} has an end that is not a node.")
        edges[where[link.target], where[link.source]] = link.weight
    return _assembled(rows, edges, words, content["metadata"], str(path))


def _read(record: Any, one: Any, path: str) -> Any:
    if not isinstance(one, dict):
        raise LoadError(f"{path} is not an object.")
    known = {f.name for f in dataclasses.fields(record)}
    return read_record(record, {k: v for k, v in one.items() if k in known}, path)


def _order(row: NodeRecord) -> tuple[int, ...]:
    """Return the sort key for the order of nodes in a graph; logits by probability."""
    kind = TYPES[row.feature_type]
    if kind == FEATURE:
        layer, index = unpaired(max(row.feature, 0))
        return (kind, layer, row.ctx_idx, index)
    if kind == ERROR:
        return (kind, int(row.layer) if row.layer.isdigit() else 0, row.ctx_idx)
    return (kind, row.ctx_idx)


def _assembled(
    rows: list[NodeRecord],
    edges: np.ndarray,
    words: list[str],
    metadata: dict[str, Any],
    path: str,
) -> AttributionGraph:
    kinds = np.array([TYPES[row.feature_type] for row in rows], int)
    tokens = np.full(len(words), -1)
    layer, index = np.full(len(rows), -1), np.full(len(rows), -1)
    labels = []
    for i, row in enumerate(rows):
        if kinds[i] == FEATURE:
            layer[i], index[i] = unpaired(max(row.feature, 0))
        elif kinds[i] == ERROR:
            layer[i] = int(row.layer) if row.layer.isdigit() else -1
        elif kinds[i] == TOKEN:
            named = row.node_id.split("_")[1:2]
            index[i] = int(named[0]) if named and named[0].isdigit() else -1
            tokens[row.ctx_idx] = index[i]
        else:
            index[i] = row.feature
            label = row.clerp.partition('"')[2].rpartition('"')[0]
            labels.append((int(row.feature), label or str(row.feature)))
    ours = metadata.get("mijax")
    ends = [int(r.layer) - 1 for r in rows if r.feature_type == "logit"]
    layers = max([*ends, int(layer.max(initial=0)) + 1])
    if isinstance(ours, dict) and isinstance(ours.get("tokens"), list):
        tokens = np.asarray(ours["tokens"])
    if tokens.shape != (len(words),):
        raise LoadError(
            f"{path}: expected one token id for each of {len(words)} words."
        )
    layer[kinds == LOGIT] = layers
    scores = [row.influence for row in rows]
    return AttributionGraph(
        tokens=tokens,
        words=tuple(words),
        layers=layers,
        kind=kinds,
        layer=layer,
        position=np.array([row.ctx_idx for row in rows], int),
        index=index,
        activation=np.array([row.activation or 0.0 for row in rows]),
        probability=np.array([row.token_prob for row in rows]),
        edges=edges,
        labels=tuple(labels),
        cumulative=None if None in scores else np.array(scores, float),
    )
