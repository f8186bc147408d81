"""How numbers change while something is trained."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._style import (
    COLOURS,
    clean_frame,
    legend_below,
    name_axes,
    new_figure,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
Curve = tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]

_ACROSS = 3


def training_curves(
    runs: Records | Mapping[str, Records],
    *,
    quantities: Sequence[str] | None = None,
    lanes: Sequence[object] | None = None,
    log: Sequence[str] = (),
    title: str = "",
) -> "Figure":
    """Draws what a training run reported, one panel per quantity.

    Args:
        runs: records as the sinks of `mijax.train` keep them (`Memory().rows`, the
            lines of `Jsonl`): a mapping with a `"step"` and numbers. Several runs by
            name are lines of the same panels.
        quantities: names of the numbers to draw; all by default. A run that lacks one
            has no line there.
        lanes: names of the lanes of runs that train several objectives at once.
        log: quantities whose axis is logarithmic; numbers that are not above 0 are left
            out there.
        title: title of the picture.

    Returns:
        The figure.

    Raises:
        ShapeError: there is no record, a quantity that no run has, or names that do
            not fit the lanes.

    Examples:
        >>> rows = [{"step": 1, "loss": 2.0, "l0": 9.0}, {"step": 2, "loss": 1.0}]
        >>> figure = training_curves({"TopK": rows}, log=["loss"])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss', 'l0']
    """
    named = runs if isinstance(runs, Mapping) else {"": runs}
    names = _names(named, quantities, log)
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    figure, panels = new_figure(
        width=3.5 * across + 0.4,
        height=2.5 * down + 0.5,
        rows=down,
        columns=across,
    )
    curves = {
        name: {
            label: curve
            for run, rows in named.items()
            for label, curve in _lines(run, rows, name, lanes)
        }
        for name in names
    }
    styles = _styles(dict.fromkeys(label for one in curves.values() for label in one))
    for axes, (name, lines) in zip(panels, curves.items(), strict=False):
        for label, (steps, values) in lines.items():
            axes.plot(steps, values, label=drawable(label), **styles[label])
        if name in log:
            axes.set_yscale("log", nonpositive="mask")
        clean_frame(axes)
        name_axes(axes, x="Step", y=name)
    if len(styles) > 1:
        legend_below(figure, panels, columns=min(len(styles), 2 * across))
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    write_title(figure, title)
    return figure


def _names(
    runs: Mapping[str, Records], quantities: Sequence[str] | None, log: Sequence[str]
) -> list[str]:
    """Names of the panels, in the order in which runs report them."""
    there = dict.fromkeys(
        name
        for rows in runs.values()
        for row in rows
        for name, value in row.items()
        if name != "step" and np.asarray(value).dtype.kind in "fiub"
    )
    if not there:
        raise ShapeError(
            "No record with numbers; give those of a run, such as Memory().rows."
        )
    for name in (*(quantities or ()), *log):
        if name not in there:
            raise ShapeError(
                f"No run reports {name!r}; they report {', '.join(there)}."
            )
    return list(there if quantities is None else dict.fromkeys(quantities))


def _lines(
    run: str, rows: Records, name: str, lanes: Sequence[object] | None
) -> list[tuple[str, Curve]]:
    """The lines of a run with their labels; none if it does not report the quantity."""
    kept = [row for row in rows if name in row]
    if not kept:
        return []
    steps = np.asarray([row["step"] for row in kept], np.float64)
    shapes = {np.shape(row[name]) for row in kept}
    if len(shapes) > 1 or len(shape := shapes.pop()) > 1:
        raise ShapeError(f"{name!r} is not a number, or one per lane, in every record.")
    values = np.asarray([row[name] for row in kept], np.float64)
    if not shape:
        return [(run, (steps, values))]
    if lanes is not None and len(lanes) != shape[0]:
        raise ShapeError(f"{len(lanes)} names for {shape[0]} lanes; give one each.")
    labels = range(shape[0]) if lanes is None else lanes
    texts = [f"{run} {label}".strip() for label in labels]
    return [(text, (steps, values[:, i])) for i, text in enumerate(texts)]


def _styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of every label, the same in all panels."""
    dashes = ("-", "--", ":", "-.")
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": dashes[i // len(COLOURS) % len(dashes)],
            "linewidth": 1.5,
        }
        for i, label in enumerate(labels)
    }
