import jax.numpy as jnp
import numpy as np
import pytest

from mijax import viz
from mijax._errors import OutputError, ShapeError

GRID = np.array([[1.0, -0.5, np.nan], [0.0, 2.0, np.inf]])


def limits(figure):
    return figure.axes[0].images[0].get_clim()


def test_scale_is_symmetric_around_the_centre():
    assert limits(viz.heatmap(GRID)) == (-2, 2)
    assert limits(viz.heatmap(GRID, centre=1.0)) == (-0.5, 2.5)
    assert limits(viz.heatmap(GRID, centre=None)) == (-0.5, 2)
    assert limits(viz.heatmap(np.zeros((2, 2)))) == (-1, 1)
    assert limits(viz.heatmap(np.full((1, 1), np.nan), centre=None)) == (0, 1)


def test_panels_share_their_scale():
    figure = viz.heatmaps({"a": np.ones((2, 2)), "b": np.full((2, 2), -3.0)})
    assert {axes.images[0].get_clim() for axes in figure.axes[:2]} == {(-3, 3)}


def test_labels():
    figure = viz.heatmap(
        jnp.ones((2, 3), jnp.bfloat16),
        x_labels=[" Mary", "\n", "日$x$_"],
        y_labels=[0, 1],
        title="$broken ^ 日",
    )
    texts = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert texts == ["·Mary", "↵", "\\u65e5$x$_"]
    figure.canvas.draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: viz.heatmap(np.ones((2, 3)), x_labels=["a"]),
        lambda: viz.heatmap(np.ones((0, 3))),
        lambda: viz.heatmaps({}),
        lambda: viz.heatmaps({"a": np.ones((1, 2)), "b": np.ones((2, 2))}),
        lambda: viz.attention_grid(np.ones((1, 2, 2)), tokens=["a"]),
        lambda: viz.bars(np.ones(2), labels=["a"]),
        lambda: viz.bars(np.ones(2), labels=["a", "b"], low=np.ones(2)),
        lambda: viz.line({"a": np.ones(2)}, points=np.ones(3)),
        lambda: viz.line({"a": np.ones(2)}, bands={"b": (np.ones(2), np.ones(2))}),
        lambda: viz.terminal_heatmap(np.ones((2, 2)), row_labels=["a"]),
        lambda: viz.terminal_heatmap(np.ones((0, 2))),
        lambda: viz.attention_page(np.ones((1, 2, 2)), tokens=["a"]),
        lambda: viz.heatmap(np.ones((2, 3, 4))),
        lambda: viz.heatmap(np.ones(3)),
        lambda: viz.heatmaps({"a": np.ones((2, 3, 1)), "b": np.ones((2, 3, 1))}),
        lambda: viz.attention_grid(np.ones((2, 2))),
    ],
)
def test_what_does_not_fit_is_refused(draw):
    with pytest.raises(ShapeError):
        draw()


def test_a_stack_of_grids_is_refused_by_its_shape():
    with pytest.raises(ShapeError, match=r"\[row, column\], got shape \(2, 3, 4\)"):
        viz.heatmap(np.ones((2, 3, 4)))


def test_saved_bytes_depend_on_the_figure_alone(tmp_path):
    def draw(stem):
        x = np.linspace(0, 1, 5)
        figure = viz.line(
            {"$a": x, "b": x**2}, points=x, bands={"b": (x - 1, x + 1)}, title="t"
        )
        return [file.read_bytes() for file in viz.save(figure, tmp_path / stem)]

    first, second = draw("a.b"), draw("a.b")
    assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.b.png", "a.b.svg"]
    assert first[0].startswith(b"\x89PNG")
    assert b"<dc:date>" not in first[1]
    assert b"<text" not in first[1]


@pytest.mark.parametrize("name", ["a.png", "a.b.svg", "a.PNG", "a.pdf"])
def test_a_name_with_a_format_makes_only_that_file(tmp_path, name):
    (file,) = viz.save(viz.heatmap(np.eye(2)), tmp_path / name)
    assert [file] == list(tmp_path.iterdir())
    assert file.name == name


def test_save_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        viz.save(viz.heatmap(np.eye(2)), tmp_path / "file" / "a")


def test_attention_grid_and_bars_draw():
    patterns = np.tril(np.ones((5, 6, 6))) / np.arange(1, 7)[:, None]
    figure = viz.attention_grid(patterns, tokens=list("abcdef"), columns=2)
    assert sum(axes.get_visible() for axes in figure.axes) == 6
    figure.canvas.draw()
    ends = np.array([0.5, -2.0]), np.array([1.5, -1.0])
    figure = viz.bars(
        np.array([1.0, -1.5]), labels=["a", "b"], low=ends[0], high=ends[1]
    )
    drawn = figure.axes[0].collections[0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in drawn], np.stack(ends, 1))


@pytest.mark.parametrize("size", [1, 100])
def test_extreme_sizes_draw(size):
    viz.heatmap(np.ones((size, size))).canvas.draw()
