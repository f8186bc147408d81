"""How often latents are active."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._style import (
    COLOURS,
    Vector,
    clean_frame,
    name_axes,
    new_figure,
    write_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#55585f"


def density_histogram(
    density: Vector | Mapping[str, Vector],
    *,
    dense: float = 0.1,
    bins: int = 50,
    title: str = "",
    x: str = "Fraction of examples in which a latent is active",
) -> "Figure":
    """Draws how often latents are active, on a logarithmic axis.

    Latents that are never active have no logarithm: they stand in a bar of their own at
    the left. The legend counts them and those above `dense`.

    Args:
        density: share of examples in which each latent is active, `[latent]`, such as
            `evaluate(...).density`; of several dictionaries by name.
        dense: above which density latents count as dense.
        bins: of the histogram.
        title: title of the picture.
        x: name of the horizontal axis.

    Returns:
        The figure. Heights are shares of all latents of a dictionary, so that
        dictionaries of different size compare.

    Raises:
        ShapeError: there is no latent, or a density that is no share from 0 to 1.

    Examples:
        >>> import numpy as np
        >>> figure = density_histogram({"TopK": np.array([0.0, 0.01, 0.02, 0.3])})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['TopK: 4 latents, 1 dead, 1 dense']
    """
    named = density if isinstance(density, Mapping) else {"": density}
    shares = {label: _shares(label, values) for label, values in named.items()}
    if not shares:
        raise ShapeError("No dictionary; expected the densities of one at least.")
    active = np.concatenate([values[values > 0] for values in shares.values()])
    low = np.floor(np.log10(min(float(active.min(initial=1.0)), 0.1)))
    ends = np.linspace(low, 0.0, bins + 1)
    figure, (axes,) = new_figure(width=6.4, height=3.8)
    width = 0.045 * -low
    for index, (label, values) in enumerate(shares.items()):
        colour = COLOURS[index % len(COLOURS)]
        counts, _ = np.histogram(np.log10(values[values > 0]), ends)
        axes.stairs(
            counts / values.size,
            ends,
            fill=True,
            facecolor=(colour, 0.18),
            edgecolor=colour,
            linewidth=1.3,
            label=drawable(_count(label, values, dense)),
        )
        place = low - width * (1.5 + len(shares) - index)
        axes.bar(place, (values == 0).mean(), width=0.8 * width, color=colour)
    _marks(axes, low=low, middle=low - width * (1.5 + (len(shares) + 1) / 2))
    if dense < 1:
        axes.axvspan(np.log10(dense), 0, color="#000000", alpha=0.05, linewidth=0)
        axes.axvline(np.log10(dense), color=_GREY, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.set_xlim(low - width * (2.5 + len(shares)), 0)
    clean_frame(axes)
    name_axes(axes, title=title, x=x, y="Fraction of latents")
    # Room for the legend above the highest bar.
    axes.set_ylim(0, axes.get_ylim()[1] * (1.02 + 0.08 * len(shares)))
    write_legend(axes, loc="upper left", bbox_to_anchor=(0.12, 1.0))
    return figure


def _shares(label: str, values: Vector) -> Float[np.ndarray, " latent"]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.all((found >= 0) & (found <= 1)):
        raise ShapeError(
            f"Densities {label!r} of shape {found.shape}; expected a share from 0 to 1 "
            "for each latent."
        )
    return found


def _count(label: str, values: Float[np.ndarray, " latent"], dense: float) -> str:
    dead, many = int((values == 0).sum()), int((values > dense).sum())
    text = f"{values.size:,} latents, {dead:,} dead, {many:,} dense"
    return f"{label}: {text}" if label else text


def _marks(axes: "Axes", *, low: float, middle: float) -> None:
    """Powers of ten, and the bar of the dead beside them."""
    powers = np.arange(low, 1)
    step = max(1, -(-len(powers) // 7))
    shown = powers[::-1][::step][::-1]
    texts = ["Dead", *(f"{10.0**power:g}" for power in shown)]
    axes.set_xticks([middle, *shown], texts, fontsize=8)
