"""The channels that carry a class are found, ranked and ablated exactly."""

from mijax.experiment import execute


def test_tiny_finds_the_planted_channels_and_writes_everything(tmp_path):
    result = execute("unit-circuits/tiny", {}, out=tmp_path / "run")
    assert result.passed
    classes, units = result.tables
    assert [row[0] for row in classes.rows] == ["red", "green", "blue"]
    assert len(units.rows) == 6
    written = {path.name for path in result.folder.iterdir()}
    assert {"agreement.png", "layers.svg", "sets.png", "units-red.png"} <= written
