"""Effect and cost of steering over strengths, one curve per layer."""

from typing import TYPE_CHECKING

import numpy as np

from mijax._errors import ShapeError
from mijax.steering import DoseResponse
from mijax.viz._style import clean_frame, name_axes, new_figure, write_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Up to this many layers have entries in a legend; more have a color bar.
_MOST_NAMED = 6


def steering_curves(
    found: DoseResponse,
    *,
    title: str = "",
    effect: str = "Effect",
    cost: str = "Extra loss on neutral text (nats)",
) -> "Figure":
    """Draw effect and cost of steering against its strength.

    Curves are means over prompts, one per layer. The gray band spans the means of the
    random directions in all layers: an effect inside it is not one of the direction.

    Args:
        found: what `mijax.steering.dose_response` measured.
        title: title of the picture.
        effect: name of the effect metric, with its unit.
        cost: name of the cost metric, with its unit.

    Returns:
        The figure.

    Raises:
        ShapeError: a single strength, which makes no curve.

    Examples:
        >>> import jax.numpy as jnp
        >>> zeros = jnp.zeros((2, 1, 3))
        >>> base, random = jnp.zeros(2), jnp.zeros((1, 2, 1, 3))
        >>> strengths = (-1.0, 0.0, 1.0)
        >>> found = DoseResponse(
        ...     (4,), strengths, zeros, zeros, random, random, base, base
        ... )
        >>> len(steering_curves(found).axes)
        2
    """
    if len(found.strengths) < 2:
        raise ShapeError("A curve needs at least 2 strengths, got 1.")
    from matplotlib import cm, colormaps, colors  # noqa: PLC0415 - slow to import

    order = np.argsort(found.strengths)
    x = np.asarray(found.strengths)[order]
    figure, panels = new_figure(width=8.4, height=3.8, columns=2)
    scale = colors.Normalize(min(found.layers), max(*found.layers, 1))
    colors_of = colormaps["viridis"]
    sides = (
        (panels[0], found.effect, found.random_effect, found.base_effect, effect),
        (panels[1], found.cost, found.random_cost, 0 * found.base_cost, cost),
    )
    for axes, values, random, base, name in sides:
        axes.axhline(float(np.mean(base)), color="#55585f", linewidth=0.9, zorder=1)
        if len(random):
            means = np.asarray(random).mean(1)[..., order]
            low, high = means.min((0, 1)), means.max((0, 1))
            label = "random directions"
            axes.fill_between(x, low, high, color="#b9bcc4", alpha=0.6, label=label)
        for layer, curve in zip(found.layers, np.asarray(values).mean(0), strict=True):
            color, label = colors_of(scale(layer)), f"layer {layer}"
            axes.plot(x, curve[order], color=color, label=label, linewidth=1.5)
        clean_frame(axes)
        name_axes(axes, x="Strength", y=name)
    if len(found.layers) > _MOST_NAMED:
        paint = cm.ScalarMappable(scale, colors_of)
        figure.colorbar(paint, ax=panels, label="Layer", fraction=0.03)
    else:
        panels[1].legend(frameon=False, fontsize=8)
    write_title(figure, title)
    return figure
