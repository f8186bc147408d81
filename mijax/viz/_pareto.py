"""What sparsity costs: L0 against FVU."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float, Real

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._style import (
    COLOURS,
    clean_frame,
    name_axes,
    new_figure,
    write_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A vector, or a number for one point.
Costs = float | Real[Array | np.ndarray, "..."]

_MARKERS = "osD^vPX"
_GREY = "#55585f"


def pareto(
    points: Mapping[str, Sequence[Costs]],
    *,
    names: Mapping[str, Sequence[object]] | None = None,
    log: bool = True,
    title: str = "",
    x: str = "L0 (active latents per example)",
    y: str = "FVU (fraction of variance unexplained)",
) -> "Figure":
    """Draws two costs against each other, and the front that nothing beats.

    Both are better where they are smaller; an arrow marks that corner. The grey
    staircase is the front: left of it and below it lies none of the points.

    Args:
        points: by label, for instance of an architecture, `(x, y)` or
            `(x, y, low, high)` with the ends of the interval of `y`, each `[point]`, or
            a number for one point.
        names: by the same labels, a name for each point, written beside it.
        log: whether the x axis is logarithmic.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        The figure.

    Raises:
        ShapeError: there is no point, or a label whose parts differ in length, hold
            what is not finite, or lie at 0 or below on a logarithmic axis.

    Examples:
        >>> import numpy as np
        >>> l0, fvu = np.array([8.0, 16.0, 32.0]), np.array([0.4, 0.3, 0.2])
        >>> figure = pareto({"TopK": (l0, fvu), "ReLU": (l0, fvu + 0.1)})
        >>> len(figure.axes[0].lines)  # two series and the front
        3
    """
    if not points:
        raise ShapeError("No point; expected (x, y) by label, at least one.")
    series = {label: _series(label, parts, log) for label, parts in points.items()}
    figure, (axes,) = new_figure(width=6.2, height=4.4)
    for index, (label, (places, heights, *ends)) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        if ends:
            low, high = ends
            axes.vlines(places, low, high, color=colour, linewidth=1.2, alpha=0.7)
        axes.plot(
            places,
            heights,
            ("-", "--", ":", "-.")[index // len(COLOURS) % 4],
            marker=_MARKERS[index % len(_MARKERS)],
            color=colour,
            label=drawable(label),
            linewidth=1.3,
            markersize=5.5,
            markeredgecolor="#ffffff",
            markeredgewidth=0.6,
            zorder=3,
        )
        _name(axes, label, (places, heights), names)
    if log:
        axes.set_xscale("log")
        _plain_ticks(axes)
    _front(axes, [(parts[0], parts[1]) for parts in series.values()])
    _better(axes)
    clean_frame(axes)
    name_axes(axes, title=title, x=x, y=y)
    write_legend(axes)
    return figure


def front(
    x: Float[np.ndarray, " point"], y: Float[np.ndarray, " point"]
) -> Float[np.ndarray, "best 2"]:
    """The points that no other beats in one cost without losing in the other.

    Args:
        x: a cost.
        y: another.

    Returns:
        Their places, from small `x` to large.
    """
    order = np.lexsort((y, x))
    best = np.minimum.accumulate(y[order])
    keep = np.concatenate([[True], y[order][1:] < best[:-1]])
    return np.stack([x[order][keep], y[order][keep]], axis=1)


def _series(
    label: str, parts: Sequence[Costs], log: bool
) -> list[Float[np.ndarray, " point"]]:
    found = [np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in parts]
    sizes = {part.shape for part in found}
    if len(found) not in (2, 4) or len(sizes) != 1 or found[0].ndim != 1:
        raise ShapeError(
            f"{label!r} has parts of shapes {[part.shape for part in found]}; expected "
            "(x, y) or (x, y, low, high), each [point]."
        )
    if not found[0].size or not all(np.isfinite(part).all() for part in found):
        raise ShapeError(f"{label!r} has no point, or one that is not finite.")
    if log and not np.all(found[0] > 0):
        raise ShapeError(
            f"{label!r} has an x of 0 or below, which a logarithmic axis does not "
            "hold: give log=False or leave the point out."
        )
    order = np.argsort(found[0], kind="stable")
    return [part[order] for part in found]


def _name(
    axes: "Axes",
    label: str,
    places: tuple[np.ndarray, np.ndarray],
    names: Mapping[str, Sequence[object]] | None,
) -> None:
    given = (names or {}).get(label)
    if given is None:
        return
    if len(given) != len(places[0]):
        raise ShapeError(
            f"{len(given)} names for the {len(places[0])} points of {label!r}; give "
            "one each."
        )
    for text, place, height in zip(given, *places, strict=True):
        axes.annotate(
            drawable(str(text)),
            (place, height),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=_GREY,
            parse_math=False,
        )


def _plain_ticks(axes: "Axes") -> None:
    """Writes 1, 2, 5, 10, 20, … where the axis is short, powers of ten elsewhere."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    low, high = axes.get_xlim()
    if high / low > 10**4:
        return
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _front(axes: "Axes", series: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    x, y = (np.concatenate(parts) for parts in zip(*series, strict=True))
    best = front(x, y)
    axes.plot(
        *best.T,
        color="#b9bcc4",
        drawstyle="steps-post",
        linewidth=4,
        solid_joinstyle="round",
        zorder=1,
        label="Front",
    )


def _better(axes: "Axes") -> None:
    axes.annotate(
        "Better",
        xy=(0.02, 0.03),
        xytext=(0.1, 0.13),
        xycoords="axes fraction",
        textcoords="axes fraction",
        ha="center",
        va="center",
        fontsize=8,
        color=_GREY,
        arrowprops={"arrowstyle": "->", "color": _GREY, "linewidth": 1.0},
    )
