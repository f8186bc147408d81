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


LONG = "A title that says more than fits on one line of a picture of this width, " * 3


@pytest.mark.parametrize(
    "draw",
    [
        lambda: viz.heatmap(np.eye(3), title=LONG, x=LONG, y=LONG, label=LONG),
        lambda: viz.heatmaps({LONG: np.eye(3), "b": np.eye(3)}, title=LONG),
        lambda: viz.attention_grid(np.eye(3)[None], title=LONG),
        lambda: viz.bars(np.ones(2), labels=["a", "b"], title=LONG),
        lambda: viz.line({"a": np.ones(2)}, title=LONG),
        lambda: viz.score_scatter(np.arange(3), np.arange(3), title=LONG),
        lambda: viz.density_histogram(np.full(3, 0.1), title=LONG),
        lambda: viz.pareto({"a": (1.0, 0.5)}, title=LONG),
        lambda: viz.category_maps({LONG: np.eye(2)}, names=["a", "b"], title=LONG),
        lambda: viz.training_curves([{"step": 1, "loss": 2.0}], title=LONG),
    ],
)
def test_long_titles_stay_in_the_picture(draw):
    figure = draw()
    figure.canvas.draw()
    texts = [t for axes in figure.axes for t in (axes.title, axes.xaxis.label)]
    if figure._suptitle is not None:
        texts.append(figure._suptitle)
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= -1, text.get_text()
        assert box.x1 <= figure.bbox.x1 + 1, text.get_text()
        assert box.y1 <= figure.bbox.y1 + 1, text.get_text()


def test_figures_and_pages_show_in_a_notebook():
    data, shown = viz.heatmap(np.eye(2))._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert 200 < shown["width"] < 1000
    page = viz.attention_page(np.eye(2)[None], tokens=["<b>", '"'])
    frame = page._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "<style>" not in frame  # the styles are inside the attribute
    assert frame.count('"') == frame.split("srcdoc=")[0].count('"') + 8
    assert len(repr(page)) < 60


def test_layers_have_no_half_ticks():
    figure = viz.line({"a": np.arange(19.0)}, x="Layer")
    ticks = figure.axes[0].get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_a_curve_on_another_is_dashed():
    x = np.arange(5.0)
    figure = viz.line({"a": x, "b": x + 0.01, "c": 2 * x, "d": 0 * x})
    styles = [line.get_linestyle() for line in figure.axes[0].lines]
    assert styles == ["-", "--", "-", "-"]
