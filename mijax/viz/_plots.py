"""Lines with bands and bars with confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._style import COLOURS, Vector, clean_frame, name_axes, new_figure, tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def line(
    series: Mapping[str, Vector],
    *,
    points: Vector | None = None,
    bands: Mapping[str, tuple[Vector, Vector]] | None = None,
    title: str = "",
    x: str = "",
    y: str = "",
    log: bool = False,
) -> "Figure":
    """Draws curves, with bands around those that have them.

    Args:
        series: heights `[point]` by name; the names go into the legend.
        points: places `[point]` along the x axis; 0, 1, 2, … without them.
        bands: lower and upper ends `[point]` by the name of a curve.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        log: whether the vertical axis is logarithmic.

    Returns:
        The figure.

    Raises:
        ShapeError: when a curve or band does not fit the points, or a band has no
            curve.

    Examples:
        >>> import numpy as np
        >>> figure = line({"loss": np.array([3.0, 2.0, 1.5])}, x="step", y="nats")
        >>> len(figure.axes[0].lines)
        1
    """
    curves = {name: _vector(values) for name, values in series.items()}
    count = max((len(curve) for curve in curves.values()), default=0)
    places = np.arange(count) if points is None else _vector(points)
    figure, (axes,) = new_figure(width=6.4, height=3.8)
    for name in sorted(set(bands or {}) - set(curves)):
        raise ShapeError(
            f"a band for {name!r}, which is no curve; curves: {', '.join(curves)}."
        )
    for index, (name, curve) in enumerate(curves.items()):
        _fits(name, curve, len(places))
        colour = COLOURS[index % len(COLOURS)]
        dashes = ("-", "--", ":", "-.")[index // len(COLOURS) % 4]
        if any(_covers(curve, other) for other in list(curves.values())[:index]):
            # Dashes let the curve below be seen.
            dashes = "--"
        label = drawable(name)
        axes.plot(places, curve, dashes, color=colour, label=label, linewidth=1.6)
        if bands is not None and name in bands:
            low, high = (_vector(end) for end in bands[name])
            _fits(name, low, len(places))
            _fits(name, high, len(places))
            axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    if log:
        axes.set_yscale("log")
    if np.all(places == np.round(places)):
        # Layers and numbers of units have no halves.
        axes.locator_params(axis="x", integer=True)
    clean_frame(axes)
    name_axes(axes, title=title, x=x, y=y)
    if len(curves) > 1:
        for text in axes.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)
    return figure


def _covers(curve: Vector, other: Vector) -> bool:
    """Return True if a curve would hide another one."""
    if len(curve) != len(other) or not len(other):
        return False
    return bool(np.abs(curve - other).max(initial=0) <= 0.01 * np.ptp(other))


def bars(
    values: Vector,
    *,
    labels: Sequence[object],
    low: Vector | None = None,
    high: Vector | None = None,
    title: str = "",
    x: str = "",
    y: str = "",
) -> "Figure":
    """Draws bars, with error bars from `low` to `high`.

    Args:
        values: heights `[bar]`.
        labels: one per bar.
        low: lower ends of the confidence intervals `[bar]`.
        high: upper ends `[bar]`.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        The figure.

    Raises:
        ShapeError: when labels or ends do not fit the bars, or one end is missing.

    Examples:
        >>> import numpy as np
        >>> figure = bars(np.array([0.4, 0.9]), labels=["head 0", "head 1"])
        >>> len(figure.axes[0].patches)
        2
    """
    heights = _vector(values)
    if len(labels) != len(heights):
        raise ShapeError(
            f"{len(labels)} labels for {len(heights)} bars; give one each."
        )
    if (low is None) != (high is None):
        raise ShapeError("low and high go together; give both ends of the intervals.")
    width = float(np.clip(1.2 + 0.42 * len(heights), 3.6, 14.0))
    figure, (axes,) = new_figure(width=width, height=3.8)
    colours = [COLOURS[0] if height >= 0 else COLOURS[1] for height in heights]
    places = np.arange(len(heights))
    axes.bar(places, heights, color=colours, width=0.72)
    if low is not None and high is not None:
        ends = np.stack([_vector(low), _vector(high)])
        _fits("low and high", ends[0], len(heights))
        # An interval from a bootstrap need not contain the mean.
        middle, reach = ends.mean(axis=0), np.maximum(ends[1] - ends[0], 0) / 2
        axes.errorbar(
            places, middle, yerr=reach, fmt="none", ecolor="#222222", capsize=3
        )
    axes.axhline(0.0, color="#222222", linewidth=0.8)
    clean_frame(axes)
    tick(axes, count=len(heights), labels=labels)
    name_axes(axes, title=title, x=x, y=y)
    return figure


def _vector(values: Vector) -> Vector:
    return np.asarray(values, dtype=np.float64)


def _fits(name: str, values: Vector, count: int) -> None:
    if values.shape != (count,):
        raise ShapeError(
            f"{name!r} has shape {values.shape}; expected ({count},), one per point."
        )
