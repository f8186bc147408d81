"""Rows of images are drawn with their boxes and captions, and checked."""

import numpy as np
import pytest

from mijax import viz
from mijax._errors import ShapeError

COLOR = np.linspace(0, 1, 6 * 8 * 3).reshape(6, 8, 3)
GREY = np.zeros((4, 4, 1), np.uint8)


def test_rows_of_different_lengths_with_boxes_and_captions():
    rows = {"a": [COLOR, GREY], "b": [GREY]}
    boxes = {"a": [(1, 2, 4, 8), None], "b": [None]}
    captions = {"a": ["cat", "dog"], "b": ["$x$"]}
    figure = viz.image_grid(rows, boxes=boxes, captions=captions, title="Units")
    panels = figure.axes
    assert [len(panel.images) for panel in panels] == [1, 1, 1, 0]
    (frame,) = panels[0].patches
    assert frame.get_bbox().bounds == (1.5, 0.5, 6, 3)
    assert [panel.get_xlabel() for panel in panels[:3]] == ["cat", "dog", "$x$"]
    assert panels[2].get_ylabel() == "b"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: viz.image_grid({}), "no images to draw"),
        (lambda: viz.image_grid({"a": [COLOR[0]]}), r"'a' has shape \[8, 3\]"),
        (
            lambda: viz.image_grid({"a": [COLOR]}, boxes={"a": []}),
            "boxes of 'a': 0 for 1 images",
        ),
        (
            lambda: viz.image_grid({"a": [COLOR]}, captions={"b": ["x"]}),
            "captions of 'a': 0 for 1 images",
        ),
    ],
)
def test_refuses(call, says):
    with pytest.raises(ShapeError, match=says):
        call()
