"""Picture of the readings of a lens at every layer and token."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float, Int, Real

from mijax._errors import ShapeError
from mijax.lens import LensReading
from mijax.viz._heatmap import finite, limits
from mijax.viz._labels import drawable, readable
from mijax.viz._style import name_axes, new_figure, wrapped, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Tokens in one panel; longer prompts continue in the panel below.
ACROSS = 24
CELL = (0.62, 0.2)


def lens_grid(
    reading: LensReading,
    *,
    tokens: Sequence[str],
    decode: Callable[[int], str],
    values: Real[Array | np.ndarray, "layer seq"] | None = None,
    label: str = "Entropy (nats)",
    title: str = "",
) -> "Figure":
    """Draw the most likely token of every layer and position, over a color.

    Cells whose best token is the target (`targets=` of `lens.read`) are bold, framed.

    Args:
        reading: what a lens reads in one prompt, with `top=1` or more.
        tokens: the pieces of text, one per position.
        decode: from a token id to its text (`lambda i: tokenizer.decode([i])`).
        values: what the color shows; the entropy by default, or for example
            `np.log10(1 + reading.target_ranks)`.
        label: name of it, with its unit.
        title: title of the picture.

    Returns:
        The figure: the last layer on top, 24 tokens to a row of the picture.

    Raises:
        ShapeError: a reading of several prompts, without best tokens, or that does not
            fit the tokens.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> reading = mijax.lens.read(model, [5, 6, 7], top=1)
        >>> figure = lens_grid(reading, tokens=["a", "b", "c"], decode=str)
        >>> len(figure.axes)  # the grid and its color bar
        2
    """
    best = best_tokens(reading, tokens)
    color = finite(reading.entropy if values is None else values)
    if color.shape != best.shape[:2]:
        raise ShapeError(
            f"Values of shape {color.shape} for {best.shape[0]} layers and "
            f"{best.shape[1]} tokens."
        )
    layers, seq = color.shape
    panels = -(-seq // ACROSS)
    across = -(-seq // panels)
    figure, axes = new_figure(
        width=across * CELL[0] + 2.2,
        height=panels * (layers * CELL[1] + 0.9) + 0.5,
        rows=panels,
    )
    ends = limits([color], None)
    hit = hits(reading)
    image: Any = None
    for i, panel in enumerate(axes):
        columns = slice(i * across, min(seq, (i + 1) * across))
        image = _draw(panel, color[:, columns], ends)
        _write(panel, best[:, columns, 0], hit[:, columns], decode)
        _ticks(panel, layers, tokens[columns])
        name_axes(panel, y="Layer")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=28)
    bar.set_label(wrapped(label, figure.get_figheight() - 1.0, size=10))
    write_title(figure, title)
    return figure


def best_tokens(
    reading: LensReading, tokens: Sequence[str]
) -> Int[np.ndarray, "layer seq k"]:
    """Return the best tokens of each place of one prompt.

    Raises:
        ShapeError: a reading of several prompts, without best tokens, or of other
            positions.
    """
    best = np.asarray(reading.tokens)
    if reading.ranks is None or best.ndim != 3 or not best.shape[-1]:
        raise ShapeError(
            "A picture shows one prompt, every position and its best tokens, got "
            f"tokens of shape {best.shape}: read(model, tokens, top=5) of one prompt."
        )
    if best.shape[1] != len(tokens):
        raise ShapeError(f"{len(tokens)} tokens for {best.shape[1]} positions.")
    return best


def hits(reading: LensReading) -> np.ndarray:
    """Return the places where the target is the best token, `[layer, seq]`."""
    ranks = reading.target_ranks
    return (
        np.zeros(reading.entropy.shape, bool)
        if ranks is None
        else np.asarray(ranks == 0)
    )


def _draw(
    axes: "Axes", values: Float[np.ndarray, "layer seq"], ends: tuple[float, float]
) -> Any:
    import matplotlib  # noqa: PLC0415

    colors = matplotlib.colormaps["YlGnBu_r"].with_extremes(bad="#9a9a9a")
    return axes.imshow(
        values,
        cmap=colors,
        vmin=ends[0],
        vmax=ends[1],
        aspect="auto",
        interpolation="nearest",
        origin="lower",
    )


def _write(
    axes: "Axes", best: np.ndarray, hit: np.ndarray, decode: Callable[[int], str]
) -> None:
    """Write a token into every cell, dark on light and light on dark."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    image: Any = axes.images[0]
    colors = image.cmap(image.norm(image.get_array()))
    bright = np.asarray(colors)[..., :3] @ np.array([0.299, 0.587, 0.114])
    for layer, at in np.ndindex(best.shape):
        text = drawable(readable(decode(int(best[layer, at])), longest=8))
        weight = "bold" if hit[layer, at] else "normal"
        color = "black" if bright[layer, at] > 0.5 else "white"
        axes.text(
            *(at, layer, text),
            fontsize=6.5,
            ha="center",
            va="center",
            color=color,
            weight=weight,
            parse_math=False,
            clip_on=True,
        )
        if hit[layer, at]:
            frame = Rectangle(
                (at - 0.47, layer - 0.44), 0.94, 0.88, fill=False, edgecolor="#D55E00"
            )
            axes.add_patch(frame)


def _ticks(axes: "Axes", layers: int, tokens: Sequence[str]) -> None:
    step = 1 if layers <= 16 else 2
    axes.set_yticks(
        range(0, layers, step), map(str, range(0, layers, step)), fontsize=7
    )
    texts = [drawable(readable(token, longest=9)) for token in tokens]
    axes.set_xticks(
        range(len(texts)), texts, fontsize=7, rotation=40, ha="right", parse_math=False
    )
