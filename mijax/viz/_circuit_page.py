"""A circuit to explore in a browser, without a network."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

import numpy as np

from mijax._errors import ShapeError
from mijax.circuits import Circuit, Scores
from mijax.viz._circuit import shortened, tip
from mijax.viz._html import Page
from mijax.viz._layout import Box, Layout, lay_out
from mijax.viz._selection import Edge, Mask, points, select, shares, strength

# Pixels of an inch, and around the drawing.
_INCH, _LEFT, _AROUND = 96, 64, 16


def circuit_page(
    scores: Scores | Mapping[str, float],
    *,
    edges: Circuit | Mask | None = None,
    top: int | None = None,
    shown: int = 60,
    title: str = "Circuit",
    measure: str = "Score",
) -> Page:
    """Writes a page that shows a circuit and the paths through it.

    The picture is that of `circuit_graph`. Pointing at a node or an edge shows its
    scores with their standard errors and highlights every path through it; a slider
    chooses how many edges are shown, largest first.

    Args:
        scores: scores of edges, or scores by name of edge.
        edges: the circuit, or a mask `[sender, receiver]`; without it, every edge with
            a score other than 0.
        top: how many edges the page holds; without it all of `edges`, or else 60.
        shown: how many of them are shown at first.
        title: title of the page.
        measure: what the scores measure.

    Returns:
        HTML with its style, program, picture and data inside it; a notebook shows it
        in a frame.

    Raises:
        ShapeError: the scores are not of edges, the mask does not fit, or there is
            nothing to draw.
        SiteError: a name is not that of an edge.

    Examples:
        >>> page = circuit_page({"a0.h1<v> <- input": 0.4, "logits <- a0.h1": -0.2})
        >>> page.startswith("<!doctype html>"), page.count('class="edge ')
        (True, 2)
    """
    if shown < 1:
        raise ShapeError(f"shown={shown}; expected at least one edge.")
    chosen = select(scores, edges=edges, top=top)
    layout = lay_out(chosen)
    names = [box.name for box in layout.boxes]
    data = {
        "nodes": names,
        "edges": [
            {
                "name": edge.name,
                "from": names.index(edge.sender),
                "to": names.index(edge.node),
                "port": edge.port,
                "score": _number(edge.score),
                "error": _number(edge.error),
            }
            for edge in chosen
        ],
        "shown": min(shown, len(chosen)),
        "measure": measure,
    }
    # A "</script>" inside a label must not end the script.
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    page = resources.files("mijax.viz").joinpath("_circuit.html").read_text("utf-8")
    parts = {"data": text, "picture": _svg(layout, chosen), "title": escape(title)}
    return Page(re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page))


def _number(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _svg(layout: Layout, edges: Sequence[Edge]) -> str:
    width = _INCH * layout.width + _LEFT + _AROUND
    height = _INCH * layout.height + 2 * _AROUND
    parts = [f'<svg viewBox="0 0 {width:.1f} {height:.1f}" role="img">']
    for row in layout.rows:
        if row.label:
            _, y = _pixels(layout, np.array([0.0, row.high + 0.07]))
            tall = _INCH * (row.high - row.low + 0.14)
            parts.append(
                f'<g class="row"><rect x="0" y="{y:.1f}" width="{width:.1f}" '
                f'height="{tall:.1f}"/><text x="8" y="{y + tall / 2 + 3:.1f}">'
                f"{escape(row.label)}</text></g>"
            )
    shared = shares(edges)
    for place in reversed(range(len(edges))):  # the largest on top
        parts.append(_edge(layout, edges[place].score, shared, place))
    parts += [_node(layout, box, place) for place, box in enumerate(layout.boxes)]
    return "\n".join([*parts, "</svg>"])


def _edge(layout: Layout, score: float, shared: Sequence[float], place: int) -> str:
    sign = "neutral"
    if np.isfinite(score) and score:
        sign = "positive" if score > 0 else "negative"
    width, alpha = (f(shared[place], len(shared)) for f in (points, strength))
    curve = layout.curves[place]
    arrow = tip(curve, width)
    line = _path(_pixels(layout, shortened(curve, arrow)))
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in _pixels(layout, arrow))
    return (
        f'<g class="edge {sign}" id="edge-{place}">'
        f'<path class="line" d="{line}" stroke-opacity="{alpha:.2f}" '
        f'style="--w:{width / 0.75:.2f}px;stroke-width:var(--w)"/>'
        f'<polygon class="tip" points="{head}" fill-opacity="{max(alpha, 0.5):.2f}"/>'
        f'<path class="hit" d="{line}"/></g>'
    )


def _path(curve: np.ndarray) -> str:
    start, rest = curve[0], curve[1:]
    bends = " ".join(f"{x:.1f},{y:.1f}" for x, y in rest)
    return f"M{start[0]:.1f},{start[1]:.1f}C{bends}"


def _node(layout: Layout, box: Box, place: int) -> str:
    x, y = _pixels(layout, np.array([box.x, box.y]))
    width, height = _INCH * box.width, _INCH * box.height
    rise = 5.5 * bool(box.ports)
    ports = "".join(
        f'<text class="port" x="{x + _INCH * shift:.1f}" y="{y + 13:.1f}">{port}</text>'
        for port, shift in box.ports.items()
    )
    return (
        f'<g class="node {box.kind}" id="node-{place}" tabindex="0" role="button" '
        f'aria-label="{escape(box.name)}"><rect x="{x - width / 2:.1f}" '
        f'y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6"/>'
        f'<text x="{x:.1f}" y="{y + 3.5 - rise:.1f}">{escape(box.name)}</text>'
        f"{ports}</g>"
    )


def _pixels(layout: Layout, inches: np.ndarray) -> np.ndarray:
    """Pixels from the upper left `[..., 2]` of inches from the lower left."""
    flipped = np.stack([inches[..., 0], layout.height - inches[..., 1]], -1)
    return _INCH * flipped + np.array([_LEFT, _AROUND])
