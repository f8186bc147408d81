"""Rows of images, such as those that excite a unit most."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Real

from mijax._errors import ShapeError
from mijax.viz._labels import drawable_lines
from mijax.viz._style import COLOURS, new_figure, wrapped, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = Real[Array | np.ndarray, "row column channel"]
Box = tuple[int, int, int, int]
_SIDE = 1.15
_LABEL = 1.5


def image_grid(
    rows: Mapping[str, Sequence[Pixels]],
    *,
    boxes: Mapping[str, Sequence[Box | None]] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> "Figure":
    """Draw rows of images with a label in front of each row.

    Args:
        rows: images `[row, column, channel]` by label, 8 bits or floats from 0 to 1;
            rows may have different lengths, images different sizes.
        boxes: for each label and image a box to draw, `(top, left, bottom, right)` in
            pixels, or `None`.
        captions: for each label and image a line below it.
        title: title of the picture.

    Returns:
        The figure.

    Raises:
        ShapeError: no image, an image of another rank or number of channels, or boxes
            or captions that do not fit the rows.

    Examples:
        >>> import numpy as np
        >>> image = np.zeros((8, 8, 3))
        >>> boxes = {"unit 3": [(0, 0, 4, 4), None]}
        >>> figure = image_grid({"unit 3": [image, image]}, boxes=boxes)
        >>> len(figure.axes)
        2
    """
    across = max((len(images) for images in rows.values()), default=0)
    if not across:
        raise ShapeError("There are no images to draw: give rows of images by label.")
    for what, parts in (("boxes", boxes), ("captions", captions)):
        _check(what, parts, rows)
    line = 0.22 if captions else 0.0
    figure, axes = new_figure(
        width=across * _SIDE + _LABEL,
        height=len(rows) * (_SIDE + line) + (0.5 if title else 0.1),
        rows=len(rows),
        columns=across,
    )
    for i, (label, images) in enumerate(rows.items()):
        for j in range(across):
            panel = axes[i * across + j]
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
            if j < len(images):
                _draw(panel, label, images[j], boxes[label][j] if boxes else None)
                below = captions[label][j] if captions else ""
                panel.set_xlabel(drawable_lines(below), fontsize=7, parse_math=False)
        text = wrapped(label, _LABEL - 0.2, size=8)
        axes[i * across].set_ylabel(
            text, fontsize=8, rotation=0, ha="right", va="center", parse_math=False
        )
    write_title(figure, title)
    return figure


def _draw(axes: "Axes", label: str, image: Pixels, box: Box | None) -> None:
    """Draw one image and its box."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - slow to import

    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ShapeError(
            f"An image of {label!r} has shape {list(pixels.shape)}; expected "
            "[row, column, channel] with 1 or 3 channels."
        )
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, -1)
    axes.imshow(pixels, interpolation="nearest")
    if box is not None:
        top, left, bottom, right = box
        frame = Rectangle(
            (left - 0.5, top - 0.5),
            right - left,
            bottom - top,
            fill=False,
            edgecolor=COLOURS[1],
            linewidth=1.4,
        )
        axes.add_patch(frame)


def _check(
    what: str,
    parts: Mapping[str, Sequence[object]] | None,
    rows: Mapping[str, Sequence[Pixels]],
) -> None:
    """Refuse parts that do not fit the rows."""
    for label, images in rows.items():
        if parts is not None and len(parts.get(label, ())) != len(images):
            raise ShapeError(
                f"{what} of {label!r}: {len(parts.get(label, ()))} for {len(images)} "
                "images; give one per image."
            )
