"""An attribution graph to explore in a browser, without a network."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from mijax._errors import ShapeError
from mijax.graphs import AttributionGraph, Verified
from mijax.viz._html import Page

# Pixels: radius of a node, between nodes of a cell, height of a layer, margins.
_RADIUS, _STEP, _ROW, _LEFT, _TOP = 5, 13, 34, 60, 14
# Nodes of a cell that are next to each other before another line begins.
_ACROSS = 8


def graph_page(
    graph: AttributionGraph,
    *,
    title: str = "Attribution graph",
    examples: Mapping[str, Sequence[str]] | None = None,
    verified: Verified | None = None,
) -> Page:
    """Write a page that shows an attribution graph.

    Columns are tokens, rows are layers. Pointing at a node draws its strongest edges
    and lists its sources and targets; clicking holds it.

    Args:
        graph: a graph, pruned first: every node is drawn.
        title: title of the page.
        examples: texts on which a feature fires, by its name `f3.17@5` or, for every
            position, `f3.17`.
        verified: interventions from `graphs.verify`, shown at the features removed.

    Returns:
        HTML with its style, program, picture and data inside it; a notebook shows it
        in a frame.

    Raises:
        ShapeError: a graph of more than 3,000 nodes.

    Examples:
        >>> import numpy as np
        >>> from mijax.graphs import AttributionGraph
        >>> edges = np.array([[0.0, 2.0, 0.0], [0, 0, 0], [1.5, 0, 0]])
        >>> graph = AttributionGraph.by_hand(edges, ["feature", "token", "logit"])
        >>> page = graph_page(graph)
        >>> page.startswith("<!doctype html>"), page.count('class="node ')
        (True, 3)
    """
    if len(graph.kind) > 3000:
        raise ShapeError(
            f"A page draws at most 3,000 nodes, the graph has {len(graph.kind)}: give "
            "graph.prune()."
        )
    places, width, height, parts = _layout(graph)
    influence = graph.influence()
    nodes = []
    for i, name in enumerate(graph.names):
        texts = examples or {}
        own = texts.get(name, texts.get(name.partition("@")[0]))
        nodes.append(
            {
                "label": _label(graph, i),
                "about": _about(graph, i, float(influence[i])),
                "influence": float(influence[i]),
                "x": places[i][0],
                "y": places[i][1],
            }
            | ({"examples": list(own)} if own else {})
            | _removed(graph, verified, name)
        )
    targets, sources = np.nonzero(graph.edges)
    edges = [
        [int(s), int(t), float(f"{graph.edges[t, s]:.4g}")]
        for t, s in zip(targets, sources, strict=True)
    ]
    text = json.dumps({"nodes": nodes, "edges": edges}, ensure_ascii=True)
    drawn = "\n".join([*parts, *map(_shape, range(len(nodes)), graph.kind, places)])
    page = resources.files("mijax.viz").joinpath("_graph.html").read_text("utf-8")
    quality = graph.quality()
    filled = {
        # A "</script>" inside a label must not end the script.
        "data": text.replace("<", "\\u003c"),
        "picture": f'<svg width="{width}" height="{height}" viewBox="0 0 {width} '
        f'{height}" role="img">{drawn}</svg>',
        "title": escape(title),
        "summary": escape(
            f"{repr(graph)[17:-1]}. Of what is shown, {quality.replacement:.0%} of the "
            "influence starts at tokens and not at errors."
        ),
    }
    return Page(re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], page))


def _layout(
    graph: AttributionGraph,
) -> tuple[list[tuple[float, float]], int, int, list[str]]:
    """Return the place of each node, the size, and the axes."""
    cells: dict[tuple[int, int], list[int]] = {}
    for i, kind in enumerate(graph.kind):
        # Tokens below layer 0, logits above the last.
        row = 0 if kind == 2 else graph.layers + 1 if kind == 3 else graph.layer[i] + 1
        cells.setdefault((int(row), int(graph.position[i])), []).append(i)
    rows = range(graph.layers + 2)
    lines = {
        r: max([1, *(-(-len(c) // _ACROSS) for (q, _), c in cells.items() if q == r)])
        for r in rows
    }
    columns = []
    for at, word in enumerate(graph.words):
        widest = max([1, *(len(c) for (_, p), c in cells.items() if p == at)])
        text = 7 * len(_short(word)) + 10
        columns.append(max(_STEP * min(widest, _ACROSS) + 12, text, 34))
    left = np.concatenate([[_LEFT], _LEFT + np.cumsum(columns)])
    tall = {r: max(_ROW, _STEP * lines[r] + 12) for r in rows}
    top, base = {}, _TOP
    for r in reversed(rows):
        top[r] = base
        base += tall[r]
    places: list[tuple[float, float]] = [(0.0, 0.0)] * len(graph.kind)
    for (row, at), members in cells.items():
        for n, i in enumerate(members):
            line, step = divmod(n, _ACROSS)
            count = min(_ACROSS, len(members) - line * _ACROSS)
            x = (left[at] + left[at + 1]) / 2 + _STEP * (step - (count - 1) / 2)
            y = top[row] + tall[row] / 2
            y += _STEP * (line - (-(-len(members) // _ACROSS) - 1) / 2)
            places[i] = (round(float(x), 1), round(float(y), 1))
    width, height = int(left[-1]) + 12, base + 26
    parts = []
    for r in rows:
        name = (
            "tokens" if r == 0 else "logits" if r > graph.layers else f"layer {r - 1}"
        )
        if r % 2 == 0:
            parts.append(
                f'<rect class="row" x="0" y="{top[r]}" width="{width}" '
                f'height="{tall[r]}"/>'
            )
        parts.append(
            f'<text class="axis" x="6" y="{top[r] + tall[r] / 2 + 3:.0f}">{name}</text>'
        )
    for at, word in enumerate(graph.words):
        middle = (left[at] + left[at + 1]) / 2
        parts.append(
            f'<text class="word" x="{middle:.0f}" y="{base + 14}">'
            f"{escape(_short(word))}</text>"
        )
    return places, width, height, [*parts, '<g id="edges"></g>']


def _short(word: str) -> str:
    """Return a token as people read it: spaces and line ends shown."""
    shown = word.replace(" ", "·").replace("\n", "↵")
    return shown if len(shown) <= 14 else shown[:13] + "…"


def _shape(i: int, kind: int, place: tuple[float, float]) -> str:
    x, y = place
    r = _RADIUS
    common = f'class="node kind{kind}" id="node-{i}" tabindex="0"'
    if kind == 0:
        return f'<circle {common} cx="{x}" cy="{y}" r="{r}"/>'
    if kind == 1:
        corners = f"{x},{y - r} {x + r},{y} {x},{y + r} {x - r},{y}"
        return f'<polygon {common} points="{corners}"/>'
    return f'<rect {common} x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}"/>'


def _label(graph: AttributionGraph, i: int) -> str:
    """Return the name of a node with its token."""
    word = _short(graph.words[graph.position[i]])
    if graph.kind[i] >= 2:
        return f"{'token' if graph.kind[i] == 2 else 'logit'} {_short(graph.label(i))}"
    return f"{graph.names[i].partition('@')[0]} at {word} ({graph.position[i]})"


def _about(graph: AttributionGraph, i: int, influence: float) -> str:
    parts = [f"influence {influence:.3g}"]
    if graph.kind[i] == 0:
        parts.insert(0, f"activation {graph.activation[i]:.3g}")
    if graph.kind[i] == 3:
        parts = [f"probability {graph.probability[i]:.3g}"]
    return ", ".join(parts)


def _removed(
    graph: AttributionGraph, verified: Verified | None, name: str
) -> dict[str, Any]:
    """Return the measured and predicted effects of removing a feature."""
    if verified is None or name not in verified.features:
        return {}
    at = verified.features.index(name)
    logits = [t for t in verified.targets if t.startswith("logit")]
    lines = []
    for target, path, total in zip(
        logits, verified.path[at], verified.total[at], strict=True
    ):
        # A pruned graph may have lost the logit.
        shown = graph.label(graph.node(target)) if target in graph.names else target
        lines.append(
            f"removed: {_short(shown)} changes by {total:+.3g}, predicted {path:+.3g}"
        )
    return {"removed": lines}
