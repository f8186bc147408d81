"""Small toy models do as theory says, and everything is written."""

from mijax.experiment import execute


def test_tiny_holds_and_writes_everything(tmp_path):
    result = execute("toy-models/tiny", {}, out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number.value for number in result.numbers}
    assert numbers["geometry_steps_per_second"] > 0
    assert {table.title for table in result.tables} >= {"lines"}
    written = {path.name for path in result.folder.iterdir()}
    names = ("intro", "many", "geometry", "phases-2")
    assert {f"{name}.{kind}" for name in names for kind in ("png", "svg")} <= written
