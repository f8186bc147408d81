"""How well probes do, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float, Real

from mijax._errors import ShapeError
from mijax.core import Interval
from mijax.viz._labels import drawable, readable
from mijax.viz._style import (
    COLOURS,
    clean_frame,
    legend_below,
    name_axes,
    new_figure,
    tick,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cells = Real[Array | np.ndarray, "..."]
Ends = tuple[Float[np.ndarray, "layer position"], ...]

_ACROSS = 4
_MARKERS = "osD^vPX"
_DASHES = ((0, (5, 3)), (0, (1, 2)), (0, (5, 2, 1, 2)))


def accuracy_bands(
    series: Mapping[str, Interval | Sequence[Cells]],
    *,
    layers: Sequence[object] | None = None,
    positions: Sequence[object] | None = None,
    lines: Mapping[str, float | Cells] | None = None,
    title: str = "",
    x: str = "Layer",
    y: str = "Held-out accuracy",
) -> "Figure":
    """Draws accuracies by layer with bands, one panel per position.

    Args:
        series: by label, for instance of a task and its control, the mean and the ends
            of its confidence interval `(mean, low, high)`, each `[layer, position]` or
            `[layer]`; the `held_out` of a probe's fit is such an interval.
        layers: names of the layers; indices without them.
        positions: names of the positions, sites or tokens; indices without them.
        lines: heights to compare with, such as that of the most frequent class and of
            guessing, by name.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        The figure; panels share their axes.

    Raises:
        ShapeError: there is no series, series differ in shape, or names do not fit.

    Examples:
        >>> import numpy as np
        >>> mean = np.array([[0.5, 0.6], [0.7, 0.9]])
        >>> task = mean, mean - 0.1, mean + 0.1
        >>> figure = accuracy_bands(
        ...     {"parity": task}, positions=["The", " cat"], lines={"majority": 0.5}
        ... )
        >>> [axes.get_title() for axes in figure.axes]
        ['The', '·cat']
    """
    parts = {label: _ends(label, one) for label, one in series.items()}
    n_layers, n_positions = _shape(parts, layers, positions)
    across = min(_ACROSS, n_positions)
    down = -(-n_positions // across)
    figure, panels = new_figure(
        width=(5.6 if across == 1 else 2.7 * across) + 0.6,
        height=(3.6 if across == 1 else 2.3 * down) + 0.6,
        rows=down,
        columns=across,
    )
    low, high = _limits(parts, lines or {})
    for place, axes in enumerate(panels):
        if place >= n_positions:
            axes.set_visible(False)
            continue
        _draw(axes, parts, place, lines or {})
        axes.set_ylim(low, high)
        tick(axes, count=n_layers, labels=layers, most=16 if across == 1 else 8)
        clean_frame(axes)
        left, lowest = place % across == 0, place + across >= n_positions
        name_axes(axes, x=x if lowest else "", y=y if left else "")
        if n_positions > 1 or positions is not None:
            name = f"Position {place}" if positions is None else str(positions[place])
            name_axes(axes, title=readable(name))
    if len(parts) + len(lines or {}) > 1:
        columns = min(len(parts) + len(lines or {}), 2 * across + 1)
        legend_below(figure, panels[:1], columns=columns)
    write_title(figure, title)
    return figure


def _ends(label: str, one: Interval | Sequence[Cells]) -> Ends:
    """Mean, low and high as `[layer, position]`."""
    parts = (one.mean, one.low, one.high) if isinstance(one, Interval) else one
    found = [np.asarray(part, dtype=np.float64) for part in parts]
    shapes = {part.shape for part in found}
    if len(found) != 3 or len(shapes) != 1 or found[0].ndim not in (1, 2):
        raise ShapeError(
            f"{label!r} has parts of shapes {[part.shape for part in found]}; expected "
            "(mean, low, high), each [layer, position] or [layer]."
        )
    return tuple(part.reshape(part.shape[0], -1) for part in found)


def _shape(
    parts: Mapping[str, Ends],
    layers: Sequence[object] | None,
    positions: Sequence[object] | None,
) -> tuple[int, int]:
    shapes = {ends[0].shape for ends in parts.values()}
    if len(shapes) != 1 or 0 in (shape := shapes.pop()):
        raise ShapeError(
            f"Series of shapes {[ends[0].shape for ends in parts.values()]}; expected "
            "at least one, all of one shape that is not empty."
        )
    for names, count, what in (
        (layers, shape[0], "layers"),
        (positions, shape[1], "positions"),
    ):
        if names is not None and len(names) != count:
            raise ShapeError(f"{len(names)} names for {count} {what}; give one each.")
    return shape[0], shape[1]


def _limits(
    parts: Mapping[str, Ends], lines: Mapping[str, float | Cells]
) -> tuple[float, float]:
    """Ends of the y axis that all panels share."""
    rest = [np.ravel(np.asarray(height, np.float64)) for height in lines.values()]
    values = [np.ravel(part) for ends in parts.values() for part in ends] + rest
    every = np.concatenate(values)
    every = every[np.isfinite(every)]
    low, high = every.min(initial=1.0), every.max(initial=0.0)
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin


def _draw(
    axes: "Axes",
    parts: Mapping[str, Ends],
    place: int,
    lines: Mapping[str, float | Cells],
) -> None:
    for index, (name, height) in enumerate(lines.items()):
        axes.axhline(
            float(height),
            color="#55585f",
            linewidth=0.9,
            linestyle=_DASHES[index % len(_DASHES)],
            label=drawable(name),
            zorder=1,
        )
    for index, (label, ends) in enumerate(parts.items()):
        mean, low, high = (part[:, place] for part in ends)
        colour = COLOURS[index % len(COLOURS)]
        at = np.arange(mean.size)
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            at,
            mean,
            marker=_MARKERS[index % len(_MARKERS)],
            color=colour,
            label=drawable(label),
            linewidth=1.5,
            markersize=3.6,
            markeredgecolor="#ffffff",
            markeredgewidth=0.4,
            zorder=3,
        )
