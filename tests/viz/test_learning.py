import json

import jax.numpy as jnp
import numpy as np
import pytest

from mijax import viz
from mijax._errors import ShapeError
from mijax.core import interval
from mijax.train import Jsonl, Memory
from mijax.viz._pareto import front

MEAN = np.array([[0.5, 0.6], [0.7, 0.9], [0.8, 0.95]])
BAND = (MEAN, MEAN - 0.1, MEAN + 0.05)


def legend(axes):
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def heights(axes):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_training_curves_draw_what_sinks_keep(tmp_path):
    memory, lines = Memory(), Jsonl(tmp_path / "run.jsonl")
    lines.open(0, 3)
    for step in (1, 2, 3):
        for sink in (memory, lines):
            sink.write(step, {"loss": [1.0 / step, 2.0 / step], "l0": step, "at": "x"})
    lines.close()
    text = (tmp_path / "run.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == memory.rows
    figure = viz.training_curves({"a": rows, "b": memory.rows}, lanes=["$x", "y"])
    first, second = figure.axes[:2]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "l0"]
    assert set(heights(first)) == {"a $x", "a y", "b $x", "b y"}
    np.testing.assert_allclose(heights(first)["b y"], [2, 1, 2 / 3])
    assert set(heights(second)) == {"a", "b"}
    assert len(figure.legends[0].get_texts()) == 6
    figure.canvas.draw()


def test_a_run_has_one_colour_in_every_panel():
    one, other = [{"step": 1, "x": 1.0}], [{"step": 1, "x": 2.0, "y": 3.0}]
    figure = viz.training_curves({"a": one, "b": other}, log=["y"])
    x, y = figure.axes
    assert [line.get_label() for line in y.lines] == ["b"]
    assert x.lines[1].get_color() == y.lines[0].get_color() != x.lines[0].get_color()
    assert (x.get_yscale(), y.get_yscale()) == ("linear", "log")


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 9, (2, 40)).astype(float)
    kept = {tuple(point) for point in front(x, y).tolist()}
    every = set(zip(x.tolist(), y.tolist(), strict=True))
    best = {
        (a, b)
        for a, b in every
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in every)
    }
    assert kept == best


def test_pareto_has_a_series_per_architecture():
    l0, fvu = np.array([32.0, 8.0]), np.array([0.2, 0.4])
    figure = viz.pareto(
        {"TopK": (jnp.asarray(l0), fvu, fvu - 0.1, fvu + 0.1), "b$": (l0, fvu + 0.1)},
        names={"TopK": ["k=32", "k=8"]},
    )
    axes = figure.axes[0]
    assert legend(axes) == ["TopK", "b$", "Front"]
    one = viz.pareto({"one": (jnp.float32(8.0), 0.4)}).axes[0]
    np.testing.assert_array_equal(heights(one)["one"], [0.4])
    np.testing.assert_array_equal(heights(axes)["TopK"], [0.4, 0.2])
    assert {"k=32", "k=8", "Better"} <= {text.get_text() for text in axes.texts}
    figure.canvas.draw()


def test_densities_count_the_dead_and_the_dense():
    some = np.array([0.0, 0.0, 0.1, 0.001, 0.5, 1.0])
    figure = viz.density_histogram({"a": some, "b": jnp.asarray([1e-7, 0.01])})
    axes = figure.axes[0]
    assert legend(axes) == [
        "a: 6 latents, 2 dead, 2 dense",
        "b: 2 latents, 0 dead, 0 dense",
    ]
    bars = [bar.get_height() for bar in axes.patches if hasattr(bar, "get_height")]
    assert pytest.approx(2 / 6) in bars
    stairs = [p for p in axes.patches if hasattr(p, "get_data")]
    totals = [float(np.sum(one.get_data().values)) for one in stairs]
    assert totals == pytest.approx([4 / 6, 1.0])
    figure.canvas.draw()


@pytest.mark.parametrize("density", [np.zeros(3), np.ones(3)])
def test_densities_all_dead_or_all_dense_draw(density):
    viz.density_histogram(density, title="$t").canvas.draw()


def test_accuracy_has_a_panel_per_position_with_bands():
    found = interval(jnp.ones((5, 3, 2)))
    figure = viz.accuracy_bands(
        {"task": BAND, "control": found},
        positions=[" cat", "\n"],
        lines={"majority": jnp.float32(0.5)},
    )
    assert [axes.get_title() for axes in figure.axes] == ["·cat", "↵"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for place, axes in enumerate(figure.axes):
        np.testing.assert_allclose(heights(axes)["task"], MEAN[:, place])
        np.testing.assert_allclose(heights(axes)["majority"], 0.5)
        band = axes.collections[0].get_paths()[0].vertices
        assert band[:, 1].min() == pytest.approx(MEAN[:, place].min() - 0.1)
        assert band[:, 1].max() == pytest.approx(MEAN[:, place].max() + 0.05)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["majority", "task", "control"]
    figure.canvas.draw()


def test_accuracy_of_one_position_is_one_panel():
    figure = viz.accuracy_bands({"task": [part[:, 0] for part in BAND]})
    assert [axes.get_title() for axes in figure.axes] == [""]
    assert not figure.legends


@pytest.mark.parametrize(
    "draw",
    [
        lambda: viz.training_curves([]),
        lambda: viz.training_curves([{"step": 1}]),
        lambda: viz.training_curves([{"step": 1, "a": 1.0}], quantities=["b"]),
        lambda: viz.training_curves([{"step": 1, "a": 1.0}], log=["b"]),
        lambda: viz.training_curves([{"step": 1, "a": [1.0, 2.0]}], lanes=["x"]),
        lambda: viz.training_curves([{"step": 1, "a": 1.0}, {"step": 2, "a": [1.0]}]),
        lambda: viz.pareto({}),
        lambda: viz.pareto({"a": (np.ones(2),)}),
        lambda: viz.pareto({"a": (np.ones(2), np.ones(3))}),
        lambda: viz.pareto({"a": (np.zeros(2), np.ones(2))}),
        lambda: viz.pareto({"a": (np.ones(1), np.full(1, np.nan))}),
        lambda: viz.pareto({"a": (np.ones(1), np.ones(1))}, names={"a": []}),
        lambda: viz.density_histogram({}),
        lambda: viz.density_histogram(np.ones(0)),
        lambda: viz.density_histogram(np.full(2, 1.5)),
        lambda: viz.density_histogram(np.full(2, np.nan)),
        lambda: viz.accuracy_bands({}),
        lambda: viz.accuracy_bands({"a": (MEAN, MEAN)}),
        lambda: viz.accuracy_bands({"a": (MEAN, MEAN, MEAN[:1])}),
        lambda: viz.accuracy_bands({"a": BAND}, positions=["one"]),
        lambda: viz.accuracy_bands({"a": BAND}, layers=["one"]),
        lambda: viz.accuracy_bands({"a": BAND, "b": [p[:2] for p in BAND]}),
    ],
)
def test_what_does_not_fit_is_refused(draw):
    with pytest.raises(ShapeError):
        draw()
