"""Every method runs on a known circuit, and what must hold is held."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mijax.experiment import Run, execute, load


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return execute("planted-circuits/quick", {}, out=tmp_path_factory.mktemp("r") / "a")


def test_it_holds_and_writes_everything(result):
    assert result.passed
    numbers = {number.name: number.value for number in result.numbers}
    assert numbers["exact_least"] == 1.0
    assert {"mean_exact", "mean_eap", "mean_ifr", "mean_pruning"} <= set(numbers)
    assert set(numbers["order"]) == {"exact", "acdc", "eap", "ifr", "pruning"}
    written = {path.name for path in result.folder.iterdir()}
    for name in ("auroc-edges", "auroc-nodes", "circuit-exact", "circuit-eap", "roc"):
        assert {f"{name}.png", f"{name}.svg"} <= written


def test_the_table(result):
    edges, nodes = result.tables
    assert edges.title == "Edges, corrupt activations: area"
    assert nodes.title == "Heads and MLPs, corrupt activations: area"
    rows = {row[0]: dict(zip(edges.columns, row, strict=True)) for row in edges.rows}
    assert list(rows) == ["exact", "acdc", "eap", "ifr", "pruning", "random"]
    assert rows["exact"]["copy"] == "1.00"
    # Cancelling parts mislead whoever removes one part at a time.
    assert float(rows["exact"]["cancelling"].split()[0]) < 0.95
    assert rows["random"]["mean"] == "0.50"
    assert rows["pruning"]["interval"] == "seeds"


def test_the_record(result):
    record = json.loads((result.folder / "record.json").read_text())
    assert record["seeds"] == {"prompts": 0}
    assert np.isfinite(result.seconds)


def test_a_nan_is_the_least_area(tmp_path):
    package = load("planted-circuits").function.__module__
    report = importlib.import_module(f"{package}._report")
    cases = [SimpleNamespace(label=x, name=x, traps=None) for x in ("a", "b")]
    table = {
        ("exact", case.label, "edge"): SimpleNamespace(
            case=case.label, level="edge", method="exact", area=area
        )
        for case, area in zip(cases, (0.9, float("nan")), strict=True)
    }
    run = Run(tmp_path)
    report.claims(table, cases, run)
    found = {number.name: number.value for number in run.notes.numbers}
    assert np.isnan(found["exact_least"])
