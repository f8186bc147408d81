"""How much of a dimension features have, from dense to sparse."""

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._style import COLOURS, clean_frame, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#55585f"
_CLOSE = 0.04
SHAPES = {
    "own dimension": 1.0,
    "tetrahedron": 3 / 4,
    "triangle": 2 / 3,
    "digon": 1 / 2,
    "pentagon": 2 / 5,
    "antiprism": 3 / 8,
}


def feature_dimensions(
    density: Float[Array | np.ndarray, " instance"],
    per_feature: Float[Array | np.ndarray, "seed instance"],
    dimensions: Float[Array | np.ndarray, "instance feature"],
    *,
    lines: Mapping[str, float] = SHAPES,
    title: str = "",
) -> "Figure":
    r"""Draws dimensions per feature, and the share that each feature has.

    Args:
        density: chance that a feature is there, of each model.
        per_feature: $D^*$ of each model and seed; a line for the mean of the seeds and
            a band from the least to the largest.
        dimensions: $D_i$ of each feature of each model, of one seed.
        lines: fractions of a dimension to mark, by name.
        title: title of the picture.

    Returns:
        The figure: $D^*$ above, $D_i$ below, over $1/p$ for a density $p$.

    Raises:
        ShapeError: not a column of numbers for each density, or a density that is not
            above 0.

    Examples:
        >>> p, half = np.array([1.0, 0.1]), np.full((2, 4), 0.5)
        >>> figure = feature_dimensions(p, half[:1, :2], half)
        >>> len(figure.axes)
        2
    """
    p, stars, shares = (
        np.asarray(a, dtype=np.float64) for a in (density, per_feature, dimensions)
    )
    if stars.shape[1:] != p.shape or len(shares) != len(p) or not (p > 0).all():
        raise ShapeError(
            f"{p.shape} densities, D* of shape {stars.shape} and dimensions of shape "
            f"{shares.shape}; expected [instance], [seed, instance] and "
            "[instance, feature], and densities above 0."
        )
    figure, (above, below) = new_figure(width=7.4, height=7.2, rows=2)
    places = 1 / p
    above.plot(places, stars.mean(0), "o-", color=COLOURS[0], markersize=4)
    if len(stars) > 1:
        ends = (stars.min(0), stars.max(0))
        above.fill_between(places, *ends, color=COLOURS[0], alpha=0.2, linewidth=0)
    _mark(above, {"": 1.0, " ": 0.5})
    name_axes(above, title=title, y="Dimensions per feature, D*")
    # Features of one model stand side by side, over the width of the gap to the next.
    step = np.log(places.max() / places.min()) / max(len(p) - 1, 1) or 0.1
    spread = np.linspace(-0.35, 0.35, shares.shape[1]) * step
    x = np.exp(np.log(places)[:, None] + spread)
    below.scatter(x, shares, s=3, color=COLOURS[1], alpha=0.6, linewidth=0)
    _mark(below, lines)
    name_axes(below, x="1 / density, 1 / (1 - S)", y="Dimensionality of a feature, D")
    for axes, heights in ((above, stars), (below, shares)):
        axes.set_xscale("log")
        axes.set_xlim(x.min() / 1.02, x.max() * 1.02)
        axes.set_ylim(0, 1.05 * max(1.03, heights.max()))
        _plain_ticks(axes)
        clean_frame(axes)
        axes.grid(visible=False)
    return figure


def _mark(axes: "Axes", lines: Mapping[str, float]) -> None:
    """Draws lines with their fractions beside the right end."""
    heights = np.array(list(lines.values()))
    for name, height in lines.items():
        # Names of lines that are close to each other move apart.
        above = ((heights > height) & (heights < height + _CLOSE)).any()
        below = ((heights < height) & (heights > height - _CLOSE)).any()
        axes.axhline(height, color=_GREY, linewidth=0.7, linestyle=(0, (4, 3)))
        text = f"{Fraction(height).limit_denominator(16)} {name}".strip()
        axes.annotate(
            drawable(text),
            (1.0, height),
            xytext=(4, 4 * (int(below) - int(above))),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=_GREY,
            parse_math=False,
        )


def _plain_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
