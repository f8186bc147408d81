"""Small toy models do as theory says, and everything is written."""

import pytest

from mijax._errors import ConfigError
from mijax.experiment import execute, load


def test_tiny_holds_and_writes_everything(tmp_path):
    result = execute("toy-models/tiny", {}, out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number.value for number in result.numbers}
    assert numbers["geometry_steps_per_second"] > 0
    assert {table.title for table in result.tables} >= {"lines"}
    written = {path.name for path in result.folder.iterdir()}
    names = ("intro", "many", "geometry", "phases-2")
    assert {f"{name}.{kind}" for name in names for kind in ("png", "svg")} <= written


def test_no_seeds_are_refused():
    with pytest.raises(ConfigError, match="seeds"):
        load("toy-models").override({"seeds": 0})
