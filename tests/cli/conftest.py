import importlib.util
from pathlib import Path

import pytest


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy experiment, in the current folder."""
    path = Path(__file__).parent.parent / "experiment" / "toy.py"
    spec = importlib.util.spec_from_file_location("toy_for_commands", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    return module.make_toy(tmp_path)
