"""Names beside points, where they hide little."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mijax.viz._labels import drawable
from mijax.viz._style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 7.0  # of the letters
_AROUND = 16
_CELLS = 60  # along each side of the panel
# From a point to its name, in points of type.
_FAR = (6.0, 10.0, 16.0, 24.0, 38.0, 56.0, 80.0)


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
    ends = frame.reshape(2, 2).T
    crowd, *_ = np.histogram2d(*points.T, bins=_CELLS, range=ends.tolist())
    turns = np.arange(_AROUND) * 2 * np.pi / _AROUND
    ways = np.tile(np.stack([np.cos(turns), np.sin(turns)], 1), (len(_FAR), 1))
    far = np.repeat(_FAR, _AROUND)
    marked, margin = points[list(names)], 3 * scale * np.array([-1, -1, 1, 1])
    taken, lines = np.zeros((0, 4)), np.zeros((0, 2))
    chosen = list(names)
    axes.scatter(x[chosen], y[chosen], s=14, color=COLOURS[1], zorder=3)
    # From above, so that the names of near points come to lie in the order of these.
    for index in sorted(names, key=lambda i: -y[i]):
        name = names[index]
        half = _SIZE * np.array([0.31 * len(name), 0.62])
        shifts = ways * (far[:, None] + half * np.abs(ways))
        middles = points[index] + scale * shifts
        boxes = np.concatenate([middles - scale * half, middles + scale * half], 1)
        steps = np.linspace(0.2, 1, 16)[:, None]
        leads = points[index] + scale * steps * shifts[:, None]
        cost = 0.08 * far
        cost += np.minimum(_inside(points, boxes).sum(1), 20)
        cost += 6 * _inside(marked, boxes + margin).sum(1)
        cost += 6 * _inside(lines, boxes).sum(1)
        cost += 6 * np.array([_inside(lead, taken).sum() for lead in leads])
        cost += 4 * _busy(crowd, frame, leads[:, 3:]).sum(1)
        others = np.delete(marked, list(names).index(index), 0)
        near = np.concatenate([others, others], 1) + margin
        cost += 6 * np.array([_inside(lead, near).sum() for lead in leads])
        cost += 40 * _overlap(boxes, taken).sum(1)
        cost += 100 * (boxes[:, :2] < frame[:2]).any(1)
        cost += 100 * (boxes[:, 2:] > frame[2:]).any(1)
        best = int(np.argmin(cost))
        taken = np.concatenate([taken, boxes[best : best + 1]])
        lines = np.concatenate([lines, leads[best, :12]])
        _write(axes, name, (float(x[index]), float(y[index])), shifts[best])


def _write(
    axes: "Axes", name: str, place: tuple[float, float], shift: Float[np.ndarray, " 2"]
) -> None:
    axes.annotate(
        drawable(name),
        xy=place,
        xytext=(float(shift[0]), float(shift[1])),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_SIZE,
        arrowprops={"arrowstyle": "-", "color": "#888c94", "linewidth": 0.6},
        parse_math=False,
        zorder=4,
    )


def _busy(
    crowd: Float[np.ndarray, "cell cell"],
    frame: Float[np.ndarray, " 4"],
    places: Float[np.ndarray, "way step 2"],
) -> np.ndarray:
    """Which places lie in a cell of the frame that holds several points."""
    shares = (places - frame[:2]) / (frame[2:] - frame[:2])
    cells = np.clip((_CELLS * shares).astype(int), 0, _CELLS - 1)
    return crowd[cells[..., 0], cells[..., 1]] > 2


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
