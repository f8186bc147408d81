"""A circuit as a graph: layers from below, edges by their scores."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mijax.circuits import Circuit, Scores
from mijax.viz._labels import drawable
from mijax.viz._layout import Box, Layout, lay_out
from mijax.viz._selection import Edge, Mask, largest, points, select, shares, strength
from mijax.viz._style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The ends of the heatmaps' diverging map.
POSITIVE, NEGATIVE, NEUTRAL = "#b2182b", "#2166ac", "#8a8d93"

_FILL = {"head": "#ffffff", "mlp": "#ececf0", "input": "#3d4048", "logits": "#3d4048"}
_LEFT, _RIGHT, _ABOVE, _BELOW = 0.66, 0.14, 0.42, 0.72


def circuit_graph(
    scores: Scores | Mapping[str, float],
    *,
    edges: Circuit | Mask | None = None,
    top: int | None = None,
    title: str = "",
    measure: str = "Score",
) -> "Figure":
    """Draws the edges of a circuit that matter most.

    The input is at the bottom, the logits on top, the heads and the MLP of a layer in
    one row between them; nodes without an edge are left out. The width of an edge is
    the size of its score, red above 0 and blue below, grey where it is 0 or not
    finite; small ones fade. An edge enters a head at the q, k or v that it reads into.

    Args:
        scores: scores of edges, or scores by name of edge, such as
            `{"a9.h6<q> <- a7.h3": 0.2}`.
        edges: the circuit, or a mask `[sender, receiver]`; without it, every edge with
            a score other than 0.
        top: how many edges, largest first; without it all of `edges`, or else 60.
        title: title of the picture.
        measure: what the scores measure, for the legend.

    Returns:
        The figure. Every edge is an artist with the identifier `edge-<place>`.

    Raises:
        ShapeError: the scores are not of edges, the mask does not fit, or there is
            nothing to draw.
        SiteError: a name is not that of an edge.

    Examples:
        >>> figure = circuit_graph({"a0.h1<v> <- input": 0.4, "logits <- a0.h1": -0.2})
        >>> sum(str(a.get_gid()).startswith("edge-") for a in figure.axes[0].patches)
        2
    """
    chosen = select(scores, edges=edges, top=top)
    layout = lay_out(chosen)
    width = max(layout.width + _LEFT + _RIGHT, 3.4)
    lines = textwrap.wrap(drawable(title), int(width / 0.092))
    above = _ABOVE + 0.17 * max(len(lines) - 1, 0)
    figure, (axes,) = new_figure(width=width, height=layout.height + above + _BELOW)
    # Inches of the layout are inches on paper, so that letters fit their boxes.
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    left = -_LEFT - (width - layout.width - _LEFT - _RIGHT) / 2
    axes.set_xlim(left, left + width)
    axes.set_ylim(-_BELOW, layout.height + above)
    axes.set_axis_off()
    _bands(axes, layout, left, width)
    parts = shares(chosen)
    for place in reversed(range(len(chosen))):
        _edge(axes, ink(chosen[place].score), parts, place, layout.curves[place])
    for box in layout.boxes:
        _box(axes, box)
    _legend(axes, chosen, measure, middle=left + width / 2)
    axes.text(
        left + width / 2,
        layout.height + above / 2,
        "\n".join(lines),
        ha="center",
        va="center",
        fontsize=10,
        parse_math=False,
    )
    return figure


def ink(score: float) -> str:
    """Colour of an edge; grey for scores of 0 and for those that are not finite."""
    if not np.isfinite(score) or score == 0:
        return NEUTRAL
    return POSITIVE if score > 0 else NEGATIVE


def tip(curve: np.ndarray, width: float) -> np.ndarray:
    """The arrowhead at the end of an edge `[3, 2]`, in inches.

    Args:
        curve: the edge, in inches.
        width: of its line, in points.

    Returns:
        The corners of a triangle, the point last.
    """
    end = curve[-1]
    back = curve[-2] - end
    back = back / (np.hypot(*back) or 1.0)
    length, half = 0.05 + width / 110, 0.018 + width / 130
    across = half * np.array([-back[1], back[0]])
    return np.stack([end + length * back + across, end + length * back - across, end])


def shortened(curve: np.ndarray, arrow: np.ndarray) -> np.ndarray:
    """The edge up to the base of its arrowhead."""
    return np.concatenate([curve[:-1], arrow[:2].mean(0, keepdims=True)])


def _bands(axes: "Axes", layout: Layout, left: float, width: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    for row in layout.rows:
        if not row.label:
            continue
        low, high = row.low - 0.07, row.high + 0.07
        axes.add_patch(
            Rectangle(
                (left, low), width, high - low, color="#f6f6f8", linewidth=0, zorder=0
            )
        )
        axes.text(
            left + 0.08,
            (low + high) / 2,
            row.label,
            va="center",
            fontsize=7,
            color="#70747c",
            zorder=1,
        )


def _edge(
    axes: "Axes", colour: str, parts: Sequence[float], place: int, curve: np.ndarray
) -> None:
    from matplotlib.patches import PathPatch, Polygon  # noqa: PLC0415
    from matplotlib.path import Path  # noqa: PLC0415

    part = parts[place]
    width, alpha = points(part, len(parts)), strength(part, len(parts))
    arrow = tip(curve, width)
    codes = [Path.MOVETO] + [Path.CURVE4] * (len(curve) - 1)
    axes.add_patch(
        PathPatch(
            Path(shortened(curve, arrow), codes),
            fill=False,
            edgecolor=colour,
            linewidth=width,
            alpha=alpha,
            capstyle="butt",
            joinstyle="round",
            zorder=2 + part,
            gid=f"edge-{place}",
        )
    )
    axes.add_patch(
        Polygon(
            arrow,
            facecolor=colour,
            linewidth=0,
            alpha=max(alpha, 0.5),
            zorder=2 + part,
        )
    )


def _box(axes: "Axes", box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch  # noqa: PLC0415

    dark = box.kind in ("input", "logits")
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2, box.y - box.height / 2),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=_FILL[box.kind],
            edgecolor="#3d4048",
            linewidth=0.8,
            zorder=4,
            gid=f"node-{box.name}",
        )
    )
    axes.text(
        box.x,
        box.y + 0.055 * bool(box.ports),
        box.name,
        ha="center",
        va="center",
        fontsize=7.5,
        color="#ffffff" if dark else "#1c1e21",
        zorder=5,
    )
    for letter, shift in box.ports.items():
        axes.text(
            box.x + shift,
            box.y - 0.30 * box.height,
            letter,
            ha="center",
            va="center_baseline",
            fontsize=6,
            color="#5b5f68",
            zorder=5,
        )


def _legend(
    axes: "Axes", edges: Sequence[Edge], measure: str, *, middle: float
) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415

    reach = largest(edges)
    shown = [POSITIVE] * any(edge.score > 0 for edge in edges)
    shown += [NEGATIVE] * any(edge.score < 0 for edge in edges)
    entries = []
    for colour in shown:
        sign = 1 if colour == POSITIVE else -1
        for part in (1.0, 0.25):
            entries.append(
                Line2D(
                    [],
                    [],
                    color=colour,
                    linewidth=points(part, len(edges)),
                    alpha=strength(part, len(edges)),
                    label=drawable(f"{measure} {sign * part * reach:+.3g}"),
                )
            )
    legend = axes.legend(
        handles=entries,
        loc="center",
        bbox_to_anchor=(middle, -0.42 * _BELOW),
        bbox_transform=axes.transData,
        ncols=2 if len(entries) < 4 or axes.get_xlim()[1] < 5 else 4,
        frameon=False,
        fontsize=7.5,
        handlelength=2.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    if any(edge.port for edge in edges):
        axes.text(
            middle,
            -0.86 * _BELOW,
            "q, k, v: query, key or value that an edge enters",
            ha="center",
            va="center",
            fontsize=7,
            color="#70747c",
        )
