"""Heatmaps with honest colours: a diverging map that is white at its centre."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float, Real

from mijax._errors import ShapeError
from mijax.viz._style import Grid, name_axes, new_figure, tick, wrapped, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def heatmap(
    values: Grid,
    *,
    x_labels: Sequence[object] | None = None,
    y_labels: Sequence[object] | None = None,
    title: str = "",
    x: str = "",
    y: str = "",
    centre: float | None = 0.0,
    label: str = "",
) -> "Figure":
    """Draws a grid of numbers.

    Args:
        values: the grid, `[row, column]`; the first row is on top, NaN is grey.
        x_labels: one label per column, such as tokens; indices without them.
        y_labels: one label per row.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        centre: the value drawn white; the limits lie symmetrically around it, so that
            equal strength has equal colour. None for a sequential map between the
            least and the greatest value.
        label: what the colours measure, with its unit.

    Returns:
        The figure.

    Raises:
        ShapeError: when the grid is not of rank 2, or a label list does not fit it.

    Examples:
        >>> import numpy as np
        >>> figure = heatmap(np.eye(3), x_labels=["a", "b", "c"], title="identity")
        >>> len(figure.axes)  # the grid and its colour bar
        2
    """
    return heatmaps(
        {"": values},
        x_labels=x_labels,
        y_labels=y_labels,
        title=title,
        x=x,
        y=y,
        centre=centre,
        label=label,
    )


def heatmaps(
    panels: Mapping[str, Grid],
    *,
    x_labels: Sequence[object] | None = None,
    y_labels: Sequence[object] | None = None,
    title: str = "",
    x: str = "",
    y: str = "",
    centre: float | None = 0.0,
    label: str = "",
) -> "Figure":
    """Draws several grids of one shape on one scale.

    Args:
        panels: grids `[row, column]` by title.
        x_labels: one label per column.
        y_labels: one label per row.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        centre: the value drawn white, or None for a sequential map.
        label: what the colours measure, with its unit.

    Returns:
        The figure.

    Raises:
        ShapeError: when there is no panel, panels differ in shape or are not of rank
            2, or labels do not fit.

    Examples:
        >>> import numpy as np
        >>> figure = heatmaps({"attention": np.eye(2), "mlp": -np.eye(2)})
        >>> len(figure.axes)  # two grids and one colour bar
        3
    """
    grids = {name: finite(values) for name, values in panels.items()}
    rows, columns = _shape(grids, x_labels, y_labels)
    low, high = limits(grids.values(), centre)
    # Narrow grids stand side by side; wide ones below each other.
    most = max(1, min(5, 45 // columns))
    across = min(len(grids), most if rows > columns else 4, most)
    down = -(-len(grids) // across)
    width = float(np.clip(0.30 * columns, 2.6, 11.0))
    height = float(np.clip(0.26 * rows, 2.0, 10.0))
    figure, axes = new_figure(
        width=min(across * width + 1.8, 18.0),
        height=down * (height + 0.9) + 0.5,
        rows=down,
        columns=across,
    )
    colours = "RdBu_r" if centre is not None else "viridis"
    images = []
    for panel, (name, values) in zip(axes, grids.items(), strict=False):
        images.append(_draw(panel, values, (low, high), colours))
        first_column = axes.index(panel) % across == 0
        tick(panel, count=columns, labels=x_labels)
        tick(panel, count=rows, labels=y_labels, vertical=True)
        name_axes(panel, title=name, x=x, y=y if first_column else "")
    for panel in axes[len(grids) :]:
        panel.set_visible(False)
    bar = figure.colorbar(images[0], ax=axes, shrink=0.9, aspect=28)
    tall = figure.get_figheight() - 1.0
    bar.set_label(wrapped(label, tall, size=10), parse_math=False)
    write_title(figure, title)
    return figure


def attention_grid(
    patterns: Real[Array | np.ndarray, "heads seq key_seq"],
    *,
    tokens: Sequence[str] | None = None,
    title: str = "",
    columns: int = 4,
) -> "Figure":
    """Draws the attention pattern of every head of a layer.

    Args:
        patterns: attention probabilities `[heads, seq, key_seq]`.
        tokens: the pieces of text, one per position.
        title: title of the picture.
        columns: heads in one row of the picture.

    Returns:
        The figure, with one scale from 0 to 1.

    Raises:
        ShapeError: when there are not as many tokens as positions, or patterns are
            not of rank 3.

    Examples:
        >>> import numpy as np
        >>> figure = attention_grid(np.eye(3)[None], tokens=["The", " cat", " sat"])
        >>> figure.axes[0].get_title()
        'Head 0'
    """
    grid = finite(patterns)
    if grid.ndim != 3:
        raise ShapeError(
            f"patterns are [heads, seq, key_seq], got shape {grid.shape}: give those "
            "of one prompt and layer."
        )
    heads, queries, keys = grid.shape
    for count in (queries, keys):
        if tokens is not None and len(tokens) != count:
            raise ShapeError(
                f"{len(tokens)} tokens for a pattern of {count} positions; expected "
                "one token per position."
            )
    across = min(columns, heads)
    down = -(-heads // across)
    side = float(np.clip(0.17 * max(queries, keys), 1.7, 5.0))
    figure, axes = new_figure(
        width=across * (side + 0.5) + 1.0,
        height=down * (side + 0.8) + 0.4,
        rows=down,
        columns=across,
    )
    images = []
    for head, panel in enumerate(axes):
        if head >= heads:
            panel.set_visible(False)
            continue
        images.append(_draw(panel, grid[head], (0.0, 1.0), "Blues"))
        panel.set_aspect("equal")
        tick(panel, count=keys, labels=tokens, most=int(side / 0.14))
        tick(panel, count=queries, labels=tokens, vertical=True, most=int(side / 0.14))
        name_axes(panel, title=f"Head {head}")
    bar = figure.colorbar(images[0], ax=axes, shrink=0.8, aspect=30)
    bar.set_label("Attention probability")
    figure.supxlabel("Key", fontsize=9)
    figure.supylabel("Query", fontsize=9)
    write_title(figure, title)
    return figure


def finite(values: Real[Array | np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Values as float64 on the host, with infinities as NaN."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def limits(grids: Iterable[np.ndarray], centre: float | None) -> tuple[float, float]:
    """Ends of the colour scale that several grids share.

    Args:
        grids: the grids.
        centre: the value that the ends lie symmetrically around, or None.

    Returns:
        The lower and the upper end, which always differ.
    """
    values = np.concatenate([np.ravel(grid) for grid in grids])
    values = values[np.isfinite(values)]
    if centre is not None:
        reach = float(np.max(np.abs(values - centre), initial=0.0)) or 1.0
        return centre - reach, centre + reach
    low = float(np.min(values, initial=np.inf))
    high = float(np.max(values, initial=-np.inf))
    if not low <= high:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _shape(
    grids: Mapping[str, Float[np.ndarray, "row column"]],
    x_labels: Sequence[object] | None,
    y_labels: Sequence[object] | None,
) -> tuple[int, int]:
    shapes = {grid.shape for grid in grids.values()}
    if len(shapes) != 1 or 0 in (shape := shapes.pop()):
        raise ShapeError(
            f"grids of shapes {sorted(g.shape for g in grids.values())}; expected at "
            "least one, all of one shape that is not empty."
        )
    if len(shape) != 2:
        raise ShapeError(
            f"a grid is [row, column], got shape {shape}: average over the other axes, "
            "choose one of their entries, or give heatmaps one grid for each."
        )
    for labels, count, where in (
        (x_labels, shape[1], "columns"),
        (y_labels, shape[0], "rows"),
    ):
        if labels is not None and len(labels) != count:
            raise ShapeError(f"{len(labels)} labels for {count} {where}; give {count}.")
    return shape[0], shape[1]


def _draw(
    axes: "Axes",
    values: Float[np.ndarray, "row column"],
    ends: tuple[float, float],
    colours: str,
) -> "AxesImage":
    import matplotlib  # noqa: PLC0415

    colour_map = matplotlib.colormaps[colours].with_extremes(bad="#9a9a9a")
    return axes.imshow(
        values,
        cmap=colour_map,
        vmin=ends[0],
        vmax=ends[1],
        aspect="auto",
        interpolation="nearest",
    )
