"""Dictionaries find known features, and the table says how well."""

from mijax.experiment import execute


def test_tiny_holds_and_writes_everything(tmp_path):
    result = execute("sae-toy/tiny", {}, out=tmp_path / "run")
    assert result.passed
    (table,) = result.tables
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["ReLU", "TopK", "random", "PCA"]
    numbers = {number.name: number.value for number in result.numbers}
    assert numbers["synthetic_random_mmcs"] < 0.7 < numbers["synthetic_least_mmcs"]
    written = {path.name for path in result.folder.iterdir()}
    assert {"mmcs-synthetic.png", "mmcs-synthetic.svg"} <= written
