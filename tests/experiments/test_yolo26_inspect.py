"""The detector's units are swept, attributed, removed and drawn."""

from mijax.experiment import execute


def test_tiny_checks_the_sweep_and_the_attribution_and_writes_everything(tmp_path):
    result = execute("yolo26-inspect/tiny", {}, out=tmp_path / "run")
    assert result.passed
    sites, stages, _, units = result.tables
    assert {"conv", "stage", "pattern", "logits"} <= {row[0] for row in sites.rows}
    assert len(stages.rows) == 23
    assert len(units.rows) == 4
    written = {path.name for path in result.folder.iterdir()}
    assert {
        "agreement.png",
        "first-convolution.png",
        "objects.svg",
        "removed.png",
        "shared.png",
        "units.png",
    } <= written
