"""Names beside points, where they hide little."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mijax.viz._labels import drawable
from mijax.viz._style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 7.0  # of the letters, in points
_AROUND = 16
_FAR = (6.0, 10.0, 16.0, 24.0, 38.0, 56.0)  # from the point to the name, in points


def name_points(
    axes: "Axes",
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    names: Mapping[int, str],
) -> None:
    """Marks points and writes their names, one after the other.

    Each name goes where it hides the fewest points, names and lines to names.

    Args:
        axes: the panel, with its limits and titles set.
        x: places of all points.
        y: heights of all points.
        names: the names by the index of the point.
    """
    axes.figure.canvas.draw()  # the places of the points are known from here on
    points = axes.transData.transform(np.stack([x, y], 1))
    scale = axes.figure.dpi / 72
    frame = np.array(axes.get_window_extent().extents)
    turns = np.arange(_AROUND) * 2 * np.pi / _AROUND
    ways = np.tile(np.stack([np.cos(turns), np.sin(turns)], 1), (len(_FAR), 1))
    far = np.repeat(_FAR, _AROUND)
    marked, margin = points[list(names)], 3 * scale * np.array([-1, -1, 1, 1])
    taken, lines = np.zeros((0, 4)), np.zeros((0, 2))
    axes.scatter(x[list(names)], y[list(names)], s=14, color=COLOURS[1], zorder=3)
    for index, name in names.items():
        half = _SIZE * np.array([0.31 * len(name), 0.62])
        shifts = ways * (far[:, None] + half * np.abs(ways))
        middles = points[index] + scale * shifts
        boxes = np.concatenate([middles - scale * half, middles + scale * half], 1)
        steps = np.linspace(0.2, 1, 12)[:, None]
        leads = points[index] + scale * steps * shifts[:, None]
        cost = 0.15 * far
        cost += np.minimum(_inside(points, boxes).sum(1), 20)
        cost += 6 * _inside(marked, boxes + margin).sum(1)
        cost += 6 * _inside(lines, boxes).sum(1)
        cost += 6 * np.array([_inside(lead, taken).sum() for lead in leads])
        cost += 40 * _overlap(boxes, taken).sum(1)
        cost += 100 * (boxes[:, :2] < frame[:2]).any(1)
        cost += 100 * (boxes[:, 2:] > frame[2:]).any(1)
        best = int(np.argmin(cost))
        taken = np.concatenate([taken, boxes[best : best + 1]])
        lines = np.concatenate([lines, leads[best, :9]])
        axes.annotate(
            drawable(name),
            xy=(float(x[index]), float(y[index])),
            xytext=(float(shifts[best, 0]), float(shifts[best, 1])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            arrowprops={"arrowstyle": "-", "color": "#888c94", "linewidth": 0.6},
            parse_math=False,
            zorder=4,
        )


def _inside(
    points: Float[np.ndarray, "n 2"], boxes: Float[np.ndarray, "box 4"]
) -> np.ndarray:
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return np.all((points > low) & (points < high), -1)


def _overlap(
    boxes: Float[np.ndarray, "box 4"], taken: Float[np.ndarray, "name 4"]
) -> np.ndarray:
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return np.all((taken[:, :2] < high) & (taken[:, 2:] > low), -1)
