import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch

from mijax import viz
from mijax._errors import ShapeError, SiteError
from mijax.circuits import Circuit, Graph, Scores
from mijax.viz._layout import lay_out
from mijax.viz._selection import select

GRAPH = Graph.decoder(3, heads=4)
OUTSIDE = ("http://", "https://", "src=", "href=", "url(", "@import", "<link")


def scores(graph=GRAPH, seed=0, level="edge"):
    values = np.random.default_rng(seed).normal(size=graph.edges.shape)
    values = jnp.asarray(np.where(graph.edges, values, 0.0), jnp.float32)
    return Scores(values, jnp.abs(values) / 10, None, graph, level, "random")


def drawn(figure):
    ids = (str(artist.get_gid()) for artist in figure.axes[0].patches)
    return sorted(int(i.removeprefix("edge-")) for i in ids if i.startswith("edge-"))


def names_in(figure):
    return {text.get_text() for text in figure.axes[0].texts}


def along(curve):
    """Points on Bézier curves that lie end to end, `[2, point]`."""
    t = np.linspace(0, 1, 40)[:, None]
    parts = [curve[i : i + 4] for i in range(0, len(curve) - 1, 3)]
    return np.concatenate(
        [
            (1 - t) ** 3 * a
            + 3 * (1 - t) ** 2 * t * b
            + 3 * (1 - t) * t**2 * c
            + t**3 * d
            for a, b, c, d in parts
        ]
    ).T


def read_data(page):
    block = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert block is not None
    return json.loads(block.group(1))


@pytest.mark.parametrize("top", [1, 20, 10_000])
def test_as_many_edges_are_drawn_as_are_asked_for(top):
    figure = viz.circuit_graph(scores(), top=top)
    assert drawn(figure) == list(range(min(top, GRAPH.n_edges)))


def test_without_a_mask_sixty_edges_are_drawn_with_one_all_of_it():
    assert len(drawn(viz.circuit_graph(scores()))) == 60
    assert len(drawn(viz.circuit_graph(scores(), edges=GRAPH.edges))) == GRAPH.n_edges
    circuit = Circuit.of(GRAPH, ["m1 <- a1.h2", "a1.h2<k> <- input"])
    for edges in (circuit, circuit.edges):
        figure = viz.circuit_graph(scores(), edges=edges)
        assert drawn(figure) == [0, 1]
        assert {"m1", "a1.h2", "input", "k"} <= names_in(figure)


def test_only_nodes_that_take_part_are_drawn():
    figure = viz.circuit_graph({"a5.h1<v> <- token": 1.0, "logits <- a5.h1": -2.0})
    boxes = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    assert {p.get_gid() for p in boxes} == {"node-token", "node-a5.h1", "node-logits"}
    assert {"Layer 5", "v"} <= names_in(figure)
    assert not {"q", "k", "Layer 0"} & names_in(figure)


def test_colours_and_widths_follow_the_scores():
    figure = viz.circuit_graph(
        {"m0 <- input": 1.0, "m1 <- input": -0.5, "logits <- m0": 0.1}
    )
    lines = {str(p.get_gid()): p for p in figure.axes[0].patches}
    first, second, third = (lines[f"edge-{i}"] for i in range(3))
    assert first.get_linewidth() > second.get_linewidth() > third.get_linewidth()
    assert first.get_alpha() > second.get_alpha() > third.get_alpha()
    red, _, blue, _ = first.get_edgecolor()
    assert red > 2 * blue
    red, _, blue, _ = second.get_edgecolor()
    assert blue > 2 * red


def test_edges_of_a_mask_are_drawn_though_their_scores_are_not_numbers():
    found = scores()
    found = Scores(found.values * jnp.nan, None, None, GRAPH, "edge", "unknown")
    circuit = Circuit.of(GRAPH, ["m0 <- input", "logits <- m0"])
    assert len(drawn(viz.circuit_graph(found, edges=circuit))) == 2
    data = read_data(viz.circuit_page(found, edges=circuit))
    assert [edge["score"] for edge in data["edges"]] == [None, None]
    with pytest.raises(ShapeError, match="no edge"):
        viz.circuit_graph(found)


@pytest.mark.parametrize("draw", [viz.circuit_graph, viz.circuit_page])
@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ShapeError, {"scores": {}}),
        (ShapeError, {"scores": {"m0 <- input": 0.0}}),
        (ShapeError, {"scores": scores(), "top": 0}),
        (ShapeError, {"scores": scores(), "edges": np.zeros((2, 2), bool)}),
        (ShapeError, {"scores": scores(), "edges": Circuit.empty(GRAPH)}),
        (ShapeError, {"scores": {"m0 <- input": 1.0}, "edges": GRAPH.edges}),
        (ShapeError, {"scores": scores(level="node")}),
        (SiteError, {"scores": {"m0": 1.0}}),
        (SiteError, {"scores": {"m0 <- h5": 1.0}}),
        (SiteError, {"scores": {"m0 <- m1": 1.0}}),
        (SiteError, {"scores": {"a1.h0<q> <- a1.h1": 1.0}}),
        (SiteError, {"scores": {"a1.h0 <- input": 1.0}}),
        (SiteError, {"scores": {"input <- input": 1.0}}),
        (SiteError, {"scores": {"logits <- a1.h0<q>": 1.0}}),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, error, arguments):
    with pytest.raises(error):
        draw(**arguments)


@pytest.mark.parametrize("top", [20, 300])
def test_nodes_do_not_overlap_and_edges_run_upwards_between_their_nodes(top):
    gpt2 = Graph.decoder(12, heads=12)
    edges = select(scores(gpt2), edges=None, top=top)
    layout = lay_out(edges)
    boxes = {box.name: box for box in layout.boxes}
    for row in layout.rows:
        here = sorted(
            (b.x - b.width / 2, b.x + b.width / 2)
            for b in layout.boxes
            if row.low < b.y < row.high
        )
        ends, starts = [b for _, b in here[:-1]], [a for a, _ in here[1:]]
        assert all(a > b for a, b in zip(starts, ends, strict=True))
    for edge, curve in zip(edges, layout.curves, strict=True):
        start, end = boxes[edge.sender], boxes[edge.node]
        assert np.isclose(curve[0, 1], start.y + start.height / 2)
        assert abs(curve[0, 0] - start.x) <= start.width / 2
        assert abs(curve[-1, 0] - end.x) <= end.width / 2 + 1e-9
        assert np.all(np.diff(curve[:, 1]) >= -1e-9)
        x, y = along(curve)
        for box in layout.boxes:
            inside = np.abs(x - box.x) < box.width / 2 - 1e-6
            inside &= np.abs(y - box.y) < box.height / 2 - 1e-6
            assert not inside.any(), (edge.name, box.name)


def test_a_circuit_without_crossings_is_drawn_without_one():
    heads = range(6)
    edges = {f"a1.h{h}<v> <- a0.h{5 - h}": 1.0 + h for h in heads}
    edges |= {f"a2.h{(h + 2) % 6}<q> <- a1.h{h}": 1.0 + h for h in heads}
    curves = lay_out(select(edges, edges=None, top=None)).curves
    for one in curves:
        for two in curves:
            if one[0, 1] == two[0, 1]:
                left = one[[0, -1], 0] < two[[0, -1], 0]
                assert left[0] == left[1]


def test_pictures_are_written(tmp_path):
    figure = viz.circuit_graph(scores(), top=30, title="$x", measure="$y_")
    png, svg = viz.save(figure, tmp_path / "circuit")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert all(text.count(f'id="edge-{i}"') == 1 for i in range(30))
    assert text.count('id="edge-') == 30


def test_page_is_offline_and_escaped():
    page = viz.circuit_page(
        scores(), top=30, title="<i>&{{data}}", measure="</script>{{picture}}"
    )
    assert all(outside not in page for outside in OUTSIDE)
    assert page.count("</script>") == 2
    assert page.count("<svg ") == 1
    assert "<i>" not in page


def test_page_keeps_names_scores_and_errors():
    found = scores()
    page = viz.circuit_page(found, top=30, shown=12)
    data = read_data(page)
    assert data["shown"] == 12
    assert page.count('class="edge ') == len(data["edges"]) == 30
    for edge, best in zip(data["edges"], found.best(30), strict=True):
        assert (edge["name"], edge["score"], edge["error"]) == best
        receiver, sender = edge["name"].split(" <- ")
        assert data["nodes"][edge["from"]] == sender
        assert data["nodes"][edge["to"]] == receiver.split("<")[0]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert set(data["nodes"]) <= set(texts)


def test_page_shows_at_least_one_edge_and_no_more_than_it_holds():
    assert read_data(viz.circuit_page(scores(), top=5))["shown"] == 5
    with pytest.raises(ShapeError):
        viz.circuit_page(scores(), shown=0)


X = np.array([1.0, 0.01, 0.1])
MEAN = np.array([1.0, 0.2, 0.8])


def test_curves_are_drawn_in_order_with_bands_and_lines_at_both_ends():
    figure = viz.faithfulness_curves(
        {"$a": (X, MEAN, MEAN - 0.1, MEAN + 0.1), "b": (X, jnp.asarray(MEAN))}
    )
    axes = figure.axes[0]
    assert len(axes.collections) == 1
    heights = [line.get_ydata() for line in axes.lines]
    assert sorted(float(y[0]) for y in heights[:2]) == [0, 1]
    np.testing.assert_array_equal(axes.lines[2].get_xdata(), np.sort(X))
    np.testing.assert_array_equal(heights[2], np.sort(MEAN))
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["$a", "b"]
    figure.canvas.draw()


@pytest.mark.parametrize(("first", "scale"), [(1e-3, "log"), (0.0, "symlog")])
def test_a_log_axis_also_holds_the_empty_circuit(first, scale, tmp_path):
    x = np.array([first, 0.01, 1.0])
    figure = viz.faithfulness_curves({"a": (x, MEAN)}, log=True)
    axes = figure.axes[0]
    assert axes.get_xscale() == scale
    viz.save(figure, tmp_path / "curve")
    assert "1 %" in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"a": (X,)},
        {"a": (X, MEAN, MEAN)},
        {"a": (X, MEAN[:2])},
        {"a": (X[:0], MEAN[:0])},
        {"a": (-X, MEAN)},
    ],
)
def test_curves_that_do_not_fit_are_refused(curves):
    with pytest.raises(ShapeError):
        viz.faithfulness_curves(curves)


def test_scatter_says_how_well_both_agree():
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(20, 5))
    estimate = exact + rng.normal(size=exact.shape) / 5
    estimate[3, 4] = 9.0
    estimate[0, 0] = np.nan
    names = [f"edge {i}" for i in range(100)]
    figure = viz.score_scatter(exact, jnp.asarray(estimate), labels=names, outliers=3)
    keep = np.isfinite(estimate)
    r = np.corrcoef(exact[keep], estimate[keep])[0, 1]
    assert figure.axes[0].get_title() == f"Pearson's r = {r:.3f}, n = 99"
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 3
    assert texts[0] == "edge 19"
    points = figure.axes[0].collections[0].get_offsets()
    assert len(np.asarray(points)) == 99
    figure.canvas.draw()


def test_scatter_of_constants_has_no_correlation():
    figure = viz.score_scatter(np.ones(3), np.arange(3.0), title="$t")
    assert figure.axes[0].get_title() == "$t\nPearson's r undefined, n = 3"


@pytest.mark.parametrize(
    ("exact", "estimate", "labels"),
    [
        (np.ones(3), np.ones(2), None),
        (np.ones(3), np.ones(3), ["a"]),
        (np.full(3, np.nan), np.ones(3), None),
        (np.ones(0), np.ones(0), None),
    ],
)
def test_scatter_that_does_not_fit_is_refused(exact, estimate, labels):
    with pytest.raises(ShapeError):
        viz.score_scatter(exact, estimate, labels=labels)
