"""Relations are found in a network's first layer, and not without a rotation."""

from mijax.experiment import execute


def test_tiny_holds_and_writes_everything(tmp_path):
    result = execute("hierarchical-equality/tiny", {}, out=tmp_path / "run")
    assert result.passed
    fitted, sized = result.tables
    assert len(fitted.rows) == len(sized.rows) == 9
    written = {path.name for path in result.folder.iterdir()}
    assert {"accuracy-das.png", "by-layer.svg", "networks.png"} <= written
    assert "rotations-left-equality.png" in written
