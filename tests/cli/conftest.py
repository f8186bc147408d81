import pytest
from toy import make_toy


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy experiment, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return make_toy(tmp_path)
