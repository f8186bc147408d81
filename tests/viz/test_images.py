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


def test_boxes_lie_where_they_are_and_have_their_labels():
    boxes = np.array([[1.0, 2.0, 5.0, 7.0], [0.0, 0.0, 8.0, 8.0]])
    labels = ["bus 0.91", "a_b $x"]
    figure = viz.image_boxes(COLOR, boxes, labels=labels)
    axes = figure.axes[0]
    found = [(*p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches]
    assert found == [(1, 2, 4, 5), (0, 0, 8, 8)]
    assert [text.get_text() for text in axes.texts] == labels
    with pytest.raises(ShapeError, match="1 labels for 2 boxes"):
        viz.image_boxes(np.zeros((4, 4, 3)), boxes, labels=["a"])
    with pytest.raises(ShapeError, match=r"shape \[4, 4\]"):
        viz.image_boxes(np.zeros((4, 4)), boxes, labels=labels)
