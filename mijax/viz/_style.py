"""How every picture of mijax looks."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Array, Real

from mijax.viz._labels import axis_labels, drawable_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lengths are compared by the functions, whose errors say what to do.
Vector = Real[Array | np.ndarray, " _"]
Grid = Real[Array | np.ndarray, "row column"]

# Okabe and Ito's colours, which the colour-blind can tell apart; blue and vermilion
# first, as in the diverging maps.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(
    *, width: float, height: float, rows: int = 1, columns: int = 1
) -> "tuple[Figure, list[Axes]]":
    """A figure with panels, drawn without pyplot's global state.

    Args:
        width: inches.
        height: inches.
        rows: rows of panels.
        columns: columns of panels.

    Returns:
        The figure and its panels, row by row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415

    from mijax.viz._figure import NotebookFigure  # noqa: PLC0415 - slow to import

    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [cast("Any", a) for a in axes.ravel()]


def name_axes(axes: "Axes", *, title: str = "", x: str = "", y: str = "") -> None:
    """Write the title and the names of both axes, on several lines where they are long.

    Names are sentence case with units in parentheses: `Logit difference (nats)`.
    """
    wide, tall = _panel_inches(axes)
    if title:
        text = wrapped(title, wide, size=10)
        axes.set_title(text, fontsize=10, parse_math=False)
    if x:
        axes.set_xlabel(wrapped(x, wide, size=10), parse_math=False)
    if y:
        axes.set_ylabel(wrapped(y, tall, size=10), parse_math=False)


def write_title(figure: "Figure", title: str) -> None:
    """Write the title of a picture above all its panels, if there is one."""
    if title:
        text = wrapped(title, figure.get_figwidth() - 0.3, size=11)
        figure.suptitle(text, fontsize=11, parse_math=False)


def wrapped(text: str, inches: float, *, size: float) -> str:
    """Return a text without mathematical markup, on lines that fit a width.

    Args:
        text: the text; its line ends are kept.
        inches: width of a line.
        size: of the letters, in points.
    """
    # A letter is a little more than half as wide as it is high, on average.
    letters = max(8, int(inches * 72 / (0.58 * size)))
    lines = [textwrap.wrap(line, letters) or [""] for line in text.split("\n")]
    return drawable_lines("\n".join(part for line in lines for part in line))


def _panel_inches(axes: "Axes") -> tuple[float, float]:
    """Return about how wide and high a panel of a figure of panels is."""
    figure: Any = axes.figure
    width, height = figure.get_size_inches()
    place = axes.get_subplotspec()
    if place is None:
        return width, height
    grid = place.get_gridspec()
    return (width - 0.6) / grid.ncols, (height - 0.6) / grid.nrows


def tick(
    axes: "Axes",
    *,
    count: int,
    labels: Sequence[object] | None,
    vertical: bool = False,
    most: int = 48,
) -> None:
    """Puts one tick per cell, or every few cells when they are many.

    Args:
        axes: the panel.
        count: number of cells.
        labels: one per cell, or None for their indices.
        vertical: whether the cells run down the y axis.
        most: how many ticks there is room for.
    """
    texts = axis_labels(range(count) if labels is None else labels)
    step = max(1, -(-count // most))
    if labels is None and count > 24:
        step = max(step, 2)
    places = list(range(0, count, step))
    shown = [texts[place] for place in places]
    if vertical:
        axes.set_yticks(places, shown, fontsize=8, parse_math=False)
        return
    slanted = any(len(text) > 3 for text in shown) or len(places) > 32
    axes.set_xticks(
        places,
        shown,
        fontsize=8,
        parse_math=False,
        rotation=90 if slanted else 0,
    )


def clean_frame(axes: "Axes") -> None:
    """Leaves only the left and the lower line of the frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def write_legend(axes: "Axes", **options: Any) -> None:
    """Writes the names of what is drawn, without mathematical markup.

    Args:
        axes: the panel; without a name in it nothing is written.
        **options: of matplotlib's legend.
    """
    if not axes.get_legend_handles_labels()[1]:
        return
    options = {"fontsize": 8, "framealpha": 0.9, "edgecolor": "none"} | options
    for text in axes.legend(**options).get_texts():
        text.set_parse_math(False)


def legend_below(figure: "Figure", panels: Sequence["Axes"], *, columns: int) -> None:
    """Writes one legend below all panels, whichever of them hold what it names."""
    found: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found = dict(zip(labels, handles, strict=True)) | found
    legend = figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
