"""Maps of what is the case where: one colour for each kind."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._style import Grid, name_axes, new_figure, tick, write_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILLS = ("#e6e7ea", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")


def category_maps(
    panels: Mapping[str, Grid],
    *,
    names: Sequence[str],
    x_labels: Sequence[object] | None = None,
    y_labels: Sequence[object] | None = None,
    title: str = "",
    x: str = "",
    y: str = "",
) -> "Figure":
    """Draws grids of kinds side by side, such as phase diagrams.

    Args:
        panels: grids `[row, column]` of indices into `names`, by title; the first row
            is on top.
        names: of the kinds, seven at most.
        x_labels: one label per column; indices without them.
        y_labels: one label per row.
        title: title of the picture.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        The figure, with a legend of all kinds.

    Raises:
        ShapeError: there is no panel, panels differ in shape, an entry is no kind,
            there are too many kinds, or labels do not fit.

    Examples:
        >>> figure = category_maps({"theory": np.eye(2)}, names=["absent", "there"])
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['absent', 'there']
    """
    from matplotlib.colors import ListedColormap  # noqa: PLC0415 - slow to import
    from matplotlib.patches import Patch  # noqa: PLC0415

    grids = {label: np.asarray(grid) for label, grid in panels.items()}
    rows, columns = _shape(grids, names, (y_labels, x_labels))
    side = float(np.clip(0.17 * max(rows, columns), 2.6, 6.0))
    figure, axes = new_figure(
        width=len(grids) * (side + 0.5) + 0.8, height=side + 1.3, columns=len(grids)
    )
    colours = ListedColormap(_FILLS[: len(names)])
    for place, (panel, (label, grid)) in enumerate(
        zip(axes, grids.items(), strict=True)
    ):
        panel.imshow(
            grid,
            cmap=colours,
            vmin=-0.5,
            vmax=len(names) - 0.5,
            aspect="auto",
            interpolation="nearest",
        )
        most = int(side / 0.32)
        tick(panel, count=columns, labels=x_labels, most=most)
        tick(panel, count=rows, labels=y_labels, vertical=True, most=most)
        name_axes(panel, title=label, x=x, y=y if place == 0 else "")
    patches = [Patch(facecolor=fill, edgecolor="#55585f") for fill in _FILLS]
    legend = figure.legend(
        patches[: len(names)],
        [drawable(name) for name in names],
        loc="outside lower center",
        ncols=len(names),
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    write_title(figure, title)
    return figure


def _shape(
    grids: Mapping[str, np.ndarray],
    names: Sequence[str],
    labels: tuple[Sequence[object] | None, Sequence[object] | None],
) -> tuple[int, int]:
    shapes = {grid.shape for grid in grids.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or 0 in shape:
        raise ShapeError(
            f"Grids of shapes {sorted(grid.shape for grid in grids.values())}; "
            "expected at least one, all [row, column] of one shape."
        )
    if not 0 < len(names) <= len(_FILLS):
        raise ShapeError(f"{len(names)} kinds; expected 1 to {len(_FILLS)}.")
    for label, grid in grids.items():
        if not np.isin(grid, np.arange(len(names))).all():
            raise ShapeError(
                f"The grid {label!r} holds {grid.min():g} to {grid.max():g}; expected "
                f"indices of {len(names)} kinds, from 0."
            )
    for given, count, where in zip(labels, shape, ("rows", "columns"), strict=True):
        if given is not None and len(given) != count:
            raise ShapeError(f"{len(given)} labels for {count} {where}; give {count}.")
    return shape[0], shape[1]
