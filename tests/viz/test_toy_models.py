"""Pictures of toy models: maps of kinds, and shares of a dimension."""

import numpy as np
import pytest

from mijax import viz
from mijax._errors import ShapeError


def test_maps_have_one_colour_for_each_kind():
    grids = {"theory": np.array([[0, 1], [2, 2]]), "trained": np.zeros((2, 2))}
    figure = viz.category_maps(grids, names=["absent", "own", "shared"])
    drawn = [axes.images[0] for axes in figure.axes]
    colours = [image.cmap(image.norm(image.get_array())) for image in drawn]
    assert len(np.unique(colours[0].reshape(4, -1), axis=0)) == 3
    np.testing.assert_array_equal(colours[0][0, 0], colours[1][1, 1])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["absent", "own", "shared"]


def test_features_stand_over_their_density():
    p = np.array([1.0, 0.5, 0.1])
    shares = np.linspace(0, 1, 15).reshape(3, 5)
    figure = viz.feature_dimensions(p, np.full((2, 3), 0.5), shares)
    above, below = figure.axes
    np.testing.assert_allclose(above.lines[0].get_xdata(), 1 / p)
    points = below.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], shares.ravel())
    near = np.abs(np.log(points[:, 0].reshape(3, 5) * p[:, None]))
    assert near.max() < 0.5 * np.log(10) / 2
    assert "2/3 triangle" in [text.get_text() for text in below.texts]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: viz.category_maps({}, names=["a"]),
        lambda: viz.category_maps({"a": np.full((2, 2), 1)}, names=["a"]),
        lambda: viz.category_maps({"a": np.zeros((2, 2))}, names=[]),
        lambda: viz.category_maps({"a": np.eye(2)}, names=["a", "b"], x_labels=[1]),
        lambda: viz.feature_dimensions(np.ones(2), np.ones((1, 3)), np.ones((2, 4))),
        lambda: viz.feature_dimensions(np.zeros(2), np.ones((1, 2)), np.ones((2, 4))),
    ],
)
def test_what_does_not_fit_is_refused(draw):
    with pytest.raises(ShapeError):
        draw()
