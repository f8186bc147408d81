import shutil

import pytest
from toy import CONFIG, make_toy

from mijax._errors import ConfigError
from mijax.experiment import _discover as discover
from mijax.experiment import entries, load


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    file = make_toy(folder)
    (file.parent / "long.yaml").write_text(CONFIG.replace("that counts", "for long"))
    (file.parent / "broken.yaml").write_text("a: [")
    monkeypatch.setattr(discover, "shipped_folder", lambda: folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def test_list(shipped):
    found = {entry.name: entry.description for entry in entries()}
    assert list(found) == ["toy", "toy/broken", "toy/long"]
    assert found["toy/long"] == "A toy for long."
    assert "cannot be read" in found["toy/broken"]


def test_names_work_from_any_folder(shipped):
    assert load("toy").reference == "toy"
    assert load("toy/long").name == "toy/long"
    with pytest.raises(ConfigError, match="Did you mean 'toy/long'"):
        load("toy/lnog")


def test_own_experiments(shipped, tmp_path):
    file = make_toy(tmp_path / "own")
    beside = file.parent.parent / "variant.yaml"
    shutil.copy(file, beside)
    for source in (file, file.parent, beside):
        assert load(source).reference == str(file.parent)
    assert load(beside).name == "toy/variant"
    file.unlink()
    assert load(file.parent).config.prompts == 3


def test_own_experiments_by_name(shipped, tmp_path, monkeypatch):
    file = make_toy(tmp_path / "own")
    folder = file.parent.rename(tmp_path / "own" / "my-exp")
    text = CONFIG.replace("experiment: toy", "experiment: my-exp")
    (folder / "other.yaml").write_text(text)
    (folder / "toy.yaml").rename(folder / "my-exp.yaml")
    (folder / "my-exp.yaml").write_text(text)
    monkeypatch.chdir(folder.parent)
    for source, name in (
        ("my-exp", "my-exp"),
        ("my-exp/other", "my-exp/other"),
        ("my-exp/other.yaml", "my-exp/other"),
        (str(folder / "other"), "my-exp/other"),
    ):
        found = load(source)
        assert (found.name, found.reference) == (name, str(folder))
    for wrong, meant in (("my_exp", "'my-exp'"), ("my-exp/othr", "'my-exp/other'")):
        with pytest.raises(ConfigError, match=f"Did you mean {meant}"):
            load(wrong)


def test_an_unknown_name_does_not_list_everything(shipped):
    with pytest.raises(ConfigError, match="no experiment 'zzz'") as caught:
        load("zzz")
    assert "toy" not in str(caught.value)


def test_folder_with_several_configs_and_no_default(shipped, tmp_path):
    file = make_toy(tmp_path / "own")
    shutil.copy(file, file.with_name("a.yaml"))
    file.rename(file.with_name("b.yaml"))
    with pytest.raises(ConfigError, match=r"a\.yaml, .*b\.yaml"):
        load(file.parent)


def test_script_imports_its_neighbours(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    (file.parent / "_values.py").write_text("WORD = 'beside'")
    script.write_text("from ._values import WORD\n" + script.read_text())
    assert load(file).function.__globals__["WORD"] == "beside"
