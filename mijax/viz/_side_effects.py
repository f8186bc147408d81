"""Effects and side effects of an edit, next to a placebo."""

from typing import TYPE_CHECKING

import numpy as np

from mijax._errors import ShapeError
from mijax.core import Interval
from mijax.editing import Effects, SideEffects
from mijax.viz._style import (
    COLOURS,
    clean_frame,
    legend_below,
    name_axes,
    new_figure,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    (
        "Fraction of prompts",
        {
            "efficacy": "Efficacy",
            "paraphrase": "Paraphrase",
            "neighborhood": "Neighbors",
            "related": "Other facts",
        },
    ),
    (
        "Margin (probability)",
        {
            "efficacy_margin": "Efficacy",
            "paraphrase_margin": "Paraphrase",
            "neighborhood_margin": "Neighbors",
        },
    ),
    ("KL on held-out text (nats per token)", {"divergence": ""}),
    ("Entropy of generated text (bits)", {"entropy": ""}),
    ("Growth of the weight's norm", {"growth": ""}),
)
MODELS = ("before", "edited", "placebo")
MARKERS = "osD"
STEP = 0.22


def side_effects(report: SideEffects, *, title: str = "") -> "Figure":
    """Draws the report of an edit: before, after, and after a placebo.

    Points are means with 95 % intervals; what was not measured is left out.

    Args:
        report: of `mijax.editing.side_effects`.
        title: title of the picture.

    Returns:
        The figure, one panel per unit.

    Raises:
        ShapeError: nothing was measured.
    """
    kept = []
    for name, rows in PANELS:
        found = {key: label for key, label in rows.items() if _any(report, key)}
        if found:
            kept.append((name, found))
    if not kept:
        raise ShapeError("The report has no measurements to draw.")
    columns = 2 if len(kept) == 4 else min(3, len(kept))
    down = -(-len(kept) // columns)
    figure, panels = new_figure(
        width=3.1 * columns + 0.4, height=2.6 * down + 0.7, rows=down, columns=columns
    )
    for axes, (name, rows) in zip(panels, kept, strict=False):
        _draw(axes, report, rows)
        clean_frame(axes)
        name_axes(axes, y=name)
    for axes in panels[len(kept) :]:
        axes.set_visible(False)
    legend_below(figure, panels[:1], columns=3)
    write_title(figure, title)
    return figure


def _any(report: SideEffects, key: str) -> bool:
    return any(getattr(report, m).interval(key) is not None for m in MODELS)


def _draw(axes: "Axes", report: SideEffects, rows: dict[str, str]) -> None:
    """Draw the measurements of one unit side by side."""
    for i, model in enumerate(MODELS):
        effects: Effects = getattr(report, model)
        found = {at: effects.interval(key) for at, key in enumerate(rows)}
        known = {at: one for at, one in found.items() if one is not None}
        ends = np.array([_ends(one) for one in known.values()]).reshape(-1, 3)
        reach = np.stack([ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 0]])
        axes.errorbar(
            np.array([*known]) + STEP * (i - 1),
            ends[:, 0],
            np.maximum(reach, 0),
            fmt=MARKERS[i],
            color=COLOURS[(6, 0, 1)[i]],
            markersize=5,
            capsize=2,
            linewidth=1.2,
            label=model.capitalize(),
        )
    names = [*rows.values()] if len(rows) > 1 else []
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)


def _ends(one: Interval) -> tuple[float, float, float]:
    return float(one.mean), float(one.low), float(one.high)
