"""An image with labeled boxes, such as the objects that a detector finds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Real

from mijax._errors import ShapeError
from mijax.viz._labels import drawable
from mijax.viz._style import COLOURS, new_figure, write_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGER = 6.0


def image_boxes(
    image: Real[Array | np.ndarray, "row column channel"],
    boxes: Real[Array | np.ndarray, "box 4"],
    *,
    labels: Sequence[str],
    title: str = "",
) -> "Figure":
    """Draw labeled boxes on an image.

    Args:
        image: 8 bits or floats from 0 to 1, one or three channels.
        boxes: left, top, right, bottom of each, in pixels.
        labels: text at the top of each box.
        title: title of the picture.

    Returns:
        The figure.

    Raises:
        ShapeError: an image of another rank or number of channels, or another number
            of labels than boxes.

    Examples:
        >>> import numpy as np
        >>> image, boxes = np.zeros((40, 60, 3)), np.array([[5, 10, 30, 35]])
        >>> figure = image_boxes(image, boxes, labels=["bus 0.91"])
        >>> len(figure.axes[0].patches)
        1
    """
    pixels, corners = np.asarray(image), np.asarray(boxes).reshape(-1, 4)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ShapeError(
            f"The image has shape {list(pixels.shape)}; expected [row, column, "
            "channel] with 1 or 3 channels."
        )
    if len(labels) != len(corners):
        raise ShapeError(
            f"{len(labels)} labels for {len(corners)} boxes; give one each."
        )
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - slow to import

    rows, columns, _ = pixels.shape
    inch = _LONGER / max(rows, columns)
    figure, (axes,) = new_figure(
        width=max(columns * inch, 3.0) + 0.3, height=rows * inch + 0.5
    )
    axes.imshow(pixels.repeat(3, -1) if pixels.shape[-1] == 1 else pixels)
    axes.axis("off")
    for i, (corner, label) in enumerate(zip(corners, labels, strict=True)):
        left, top, right, bottom = corner
        color = COLOURS[i % len(COLOURS)]
        frame = Rectangle(
            (left, top), right - left, bottom - top, fill=False, edgecolor=color
        )
        frame.set_linewidth(2)
        axes.add_patch(frame)
        axes.text(
            max(left, 0) + 0.01 * columns,
            max(top, 0) + 0.01 * rows,
            drawable(label),
            color="white",
            fontsize=8,
            va="top",
            parse_math=False,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )
    write_title(figure, title)
    return figure
