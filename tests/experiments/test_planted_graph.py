"""Planted graphs are recovered, and the page is written."""

from mijax.experiment import execute


def test_tiny_recovers_every_graph(tmp_path):
    result = execute("planted-graph/tiny", {}, out=tmp_path / "run")
    assert result.passed
    assert len(result.tables[0].rows) == 3
    written = {path.name for path in result.folder.iterdir()}
    assert {"graph.html", "removals.png"} <= written
