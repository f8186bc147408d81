"""How faithful circuits are, and how well cheap scores agree with exact ones."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float, Real

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._point_labels import name_points
from mijax.viz._style import COLOURS, Vector, clean_frame, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Real[Array | np.ndarray, "..."]

_MARKERS = "osD^vPX"
# A vector picture of more points than this is slow to show.
_MOST_VECTOR_POINTS = 3000
# A legend of more curves than this covers them.
_MOST_INSIDE = 6


def faithfulness_curves(
    curves: Mapping[str, Sequence[Vector]],
    *,
    log: bool = False,
    title: str = "",
    x: str = "Fraction of edges",
    y: str = "Faithfulness",
) -> "Figure":
    """Draws how faithful circuits of growing size are, with bands.

    The lines at 0 and 1 are what is left without any edge, and the whole model.

    Args:
        curves: for each label `(x, mean, low, high)`, or `(x, mean)` for a curve
            without a band, each `[point]`. Shares up to 1 are written in percent.
        log: whether the x axis is logarithmic; a share of 0 stands at its left end.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        The figure.

    Raises:
        ShapeError: there is no curve, or one whose parts differ in length, are empty
            or lie below 0 on the x axis.

    Examples:
        >>> import numpy as np
        >>> x, mean = np.array([0.01, 0.1, 1.0]), np.array([0.2, 0.8, 1.0])
        >>> curves = {"EAP": (x, mean, mean - 0.1, mean + 0.1)}
        >>> figure = faithfulness_curves(curves, log=True)
        >>> len(figure.axes[0].collections)  # one band
        1
    """
    if not curves:
        raise ShapeError("No curve; expected at least one (x, mean, low, high).")
    parts = {label: _curve(label, curve) for label, curve in curves.items()}
    figure, (axes,) = new_figure(width=6.4, height=4.2)
    axes.axhline(1.0, color="#55585f", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    axes.axhline(0.0, color="#55585f", linewidth=0.9, zorder=1)
    for index, (label, (places, mean, *band)) in enumerate(parts.items()):
        colour = COLOURS[index % len(COLOURS)]
        if band:
            low, high = band
            axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            places,
            mean,
            ("-", "--", ":", "-.")[index // len(COLOURS) % 4],
            marker=_MARKERS[index % len(_MARKERS)],
            color=colour,
            label=drawable(label),
            linewidth=1.6,
            markersize=4.2,
            markeredgecolor="#ffffff",
            markeredgewidth=0.5,
        )
    _scale(axes, np.concatenate([places for places, *_ in parts.values()]), log)
    clean_frame(axes)
    name_axes(axes, title=title, x=x, y=y)
    # Beside the axes where it would cover the curves.
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    where: dict[str, Any] = beside if len(curves) > _MOST_INSIDE else {}
    legend = axes.legend(fontsize=8, framealpha=0.9, edgecolor="none", **where)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def score_scatter(
    exact: Values,
    estimate: Values,
    *,
    labels: Sequence[str] | None = None,
    outliers: int = 8,
    title: str = "",
    x: str = "Exact score",
    y: str = "Estimated score",
) -> "Figure":
    r"""Draws estimated scores against exact ones.

    The title holds Pearson's correlation and the number of points; the line is where
    both are equal. Pairs of which one is not finite are left out. For scores of edges,
    give `scores.values[graph.edges]`, else all pairs that are no edges count as 0.

    Args:
        exact: exact scores, of any shape.
        estimate: estimates, of the same shape.
        labels: names of the points, in the order of the flattened scores.
        outliers: how many points are named: those farthest from equality.
        title: first line of the title.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        The figure.

    Raises:
        ShapeError: the arrays differ in shape, hold nothing finite, or there are not as
            many labels as points.

    Examples:
        >>> import numpy as np
        >>> exact = np.array([0.0, 0.5, 1.0, -0.5])
        >>> figure = score_scatter(exact, 2 * exact, title="twice")
        >>> figure.axes[0].get_title()
        "twice\nPearson's r = 1.000, n = 4"
    """
    one, two, names = _pairs(exact, estimate, labels)
    figure, (axes,) = new_figure(width=5.4, height=5.2)
    axes.axline((0, 0), slope=1, color="#55585f", linewidth=0.9, zorder=1)
    axes.scatter(
        one,
        two,
        s=float(np.clip(6000 / len(one), 5, 26)),
        color=COLOURS[0],
        alpha=float(np.clip(30 / np.sqrt(len(one)), 0.35, 0.75)),
        linewidth=0,
        zorder=2,
        rasterized=len(one) > _MOST_VECTOR_POINTS,
    )
    _limits(axes, one, two)
    clean_frame(axes)
    axes.grid(color="#dddddd", linewidth=0.6)
    head = f"{title}\n" if title else ""
    name_axes(axes, title=f"{head}{_agreement(one, two)}", x=x, y=y)
    if names:
        far = np.argsort(-np.abs(two - one), kind="stable")[:outliers]
        name_points(axes, one, two, {i: names[i] for i in far.tolist()})
    return figure


def _curve(label: str, curve: Sequence[Vector]) -> list[Float[np.ndarray, " point"]]:
    parts = [np.asarray(part, dtype=np.float64) for part in curve]
    sizes = {part.shape for part in parts}
    if len(parts) not in (2, 4) or len(sizes) != 1 or parts[0].ndim != 1:
        raise ShapeError(
            f"{label!r} has parts of shapes {[part.shape for part in parts]}; expected "
            "(x, mean, low, high) or (x, mean), each [point]."
        )
    if not parts[0].size or not np.all(parts[0] >= 0):
        raise ShapeError(f"{label!r} has no point, or an x that is not 0 or above.")
    order = np.argsort(parts[0], kind="stable")
    return [part[order] for part in parts]


def _scale(axes: "Axes", places: Float[np.ndarray, " point"], log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    some = places[places > 0]
    if log and some.size:
        least = float(some.min())
        if some.size < places.size:
            axes.set_xscale("symlog", linthresh=least, linscale=0.4)
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator())
    if places.max() <= 1:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.6g} %"))


def _pairs(
    exact: Values, estimate: Values, labels: Sequence[str] | None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], list[str]]:
    one, two = (np.asarray(v, dtype=np.float64) for v in (exact, estimate))
    if one.shape != two.shape:
        raise ShapeError(
            f"Exact scores of shape {one.shape}, estimates of shape {two.shape}; give "
            "arrays of one shape."
        )
    if labels is not None and len(labels) != one.size:
        raise ShapeError(f"{len(labels)} labels for {one.size} points; give one each.")
    one, two = one.ravel(), two.ravel()
    keep = np.isfinite(one) & np.isfinite(two)
    if not keep.any():
        raise ShapeError("There is no pair of finite scores to draw.")
    names = [] if labels is None else list(itertools.compress(labels, keep))
    return one[keep], two[keep], names


def _agreement(one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"]) -> str:
    count = f"n = {len(one):,}"
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return f"Pearson's r undefined, {count}"
    return f"Pearson's r = {np.corrcoef(one, two)[0, 1]:.3f}, {count}"


def _limits(
    axes: "Axes", one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"]
) -> None:
    """One scale for both axes, unless one of them would be a line then."""
    ends = np.array([[v.min(), v.max()] for v in (one, two)])
    reach = np.abs(ends).max(axis=1)
    if reach.min() > reach.max() / 4:
        ends[:] = ends[:, 0].min(), ends[:, 1].max()
    margin = 0.08 * (np.ptp(ends, axis=1) + (np.ptp(ends, axis=1) == 0))
    axes.set_xlim(ends[0, 0] - margin[0], ends[0, 1] + margin[0])
    axes.set_ylim(ends[1, 0] - margin[1], ends[1, 1] + margin[1])
