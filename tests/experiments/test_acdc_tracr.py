"""The experiment on ACDC counts as was published, and its cells are reproduced."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mijax.circuits import Graph
from mijax.experiment import execute
from mijax.testing import tracr

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "acdc" / "roc.json"
PROGRAMS = ("reverse", "xproportion")
SHORT = {"steps": 1, "regularisation": [0.0, 0.0, 1], "thresholds": [-4.0, -1.0, 3]}


@pytest.fixture(scope="module")
def counting():
    path = ROOT / "experiments" / "acdc-tracr" / "_counting.py"
    spec = importlib.util.spec_from_file_location("acdc_tracr_counting", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_truth_is_what_was_published(counting, golden, program):
    true = counting.truth(program)
    stream = golden["edges"][program]["stream"]
    assert true.edges == {f"{receiver} <- {sender}" for sender, receiver in stream}
    assert true.whole == set(golden["edges"][program]["direct"])


def test_edges_and_nodes_are_counted_as_was_published(counting):
    sizes = {"reverse": (106, 15, 35, 16), "xproportion": (38, 10, 19, 11)}
    for program, (edges, true_edges, nodes, true_nodes) in sizes.items():
        every = counting.full(Graph.of(tracr(program).model, split_input=True))
        true = counting.truth(program)
        assert (len(every), len(true)) == (edges, true_edges)
        assert (len(every.nodes), len(true.nodes)) == (nodes, true_nodes)
        assert counting.point(true, true, every) == ((0, 1), (0, 1))
        assert counting.point(every, true, every) == ((1, 1), (1, 1))


@pytest.mark.parametrize("program", PROGRAMS)
def test_areas_of_published_points(counting, golden, program):
    points = golden["points"][program]
    areas = [
        counting.area(
            list(zip(points[f"{kind}_fpr"], points[f"{kind}_tpr"], strict=True))
        )
        for kind in ("edge", "node")
    ]
    later = {"reverse": (0.2, 0.3125), "xproportion": (0.6, 8 / 11)}
    np.testing.assert_allclose(areas, later[program])


def test_the_area_has_stairs(counting):
    assert counting.area([]) == 0
    assert counting.area([(0, 1)]) == 1
    assert counting.area([(0.5, 0.5)]) == 0.25
    # A point below another one does not count.
    assert counting.area([(0.25, 0.5), (0.5, 0.25)]) == 0.75 * 0.5


def test_a_head_goes_with_its_last_part(counting):
    graph = Graph.of(tracr("xproportion").model, split_input=True)
    two = counting.without(graph, ["a0.h0<q>", "a0.h0<k>"])
    assert "m0 <- a0.h0" in two.edges
    assert "a0.h0<q> <- token" not in two.edges
    three = counting.without(graph, ["a0.h0<q>", "a0.h0<k>", "a0.h0<v>"])
    assert not any("a0.h0" in edge for edge in three.edges)
    assert "logits <- m0" not in counting.without(graph, ["m0"]).edges


def test_published_cells(tmp_path):
    """All that needs no training; ACDC on one program is the later table's."""
    result = execute("acdc-tracr", SHORT, out=tmp_path / "run")
    verdicts = {v.name: v.verdict for v in result.verdicts}
    assert len(verdicts) == 24
    different = {"xproportion_random_acdc_edges", "xproportion_random_acdc_nodes"}
    for name, verdict in verdicts.items():
        if "_sp_" not in name:
            assert (verdict == "FAIL") == (name in different), name
    ours = {number.name: number.value for number in result.numbers}
    assert ours["xproportion_random_acdc_edges"] == pytest.approx(0.6)
    assert ours["xproportion_random_acdc_nodes"] == pytest.approx(8 / 11)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    for program in PROGRAMS:
        for ablation in ("random", "zero"):
            for kind in ("edges", "nodes"):
                assert f"{program}-{ablation}-{kind}.png" in written
