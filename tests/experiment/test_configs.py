import re

import pytest
from toy import CONFIG, make_toy

from mijax._errors import ConfigError
from mijax.experiment import Expected, load
from mijax.experiment._yaml import dump_yaml, read_yaml


def broken(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load(make_toy(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("prompts: 3", "promts: 3", 4, "'config.promts'. Did you mean 'prompts'"),
        ("prompts: 3", "prompts: three", 4, "valid integer, got 'three'"),
        ("prompts: 3", "prompts: 3.0", 4, "config.prompts: input should be"),
        ("prompts: 3", "prompts: true", 4, "valid integer"),
        ("rate: 1e-3", "word: 1e-3", 5, "valid string"),
        ("rate: 1e-3", "train:\n    stepz: 2", 6, "Did you mean 'steps'"),
        ("rate: 1e-3", "heads: [1, b]", 5, "config.heads.1"),
        ("rate: 1e-3", "rate: [", 7, "begins on line 5"),
        ("rate: 1e-3", "prompts: 4", 5, "twice"),
        ("config:", "confg:", 3, "Did you mean 'config'"),
        ("experiment: toy", "experiment: tyo", 1, "Did you mean 'toy'"),
        ("experiment: toy", "about: toy", 1, "'experiment'"),
        ('{equals: 4, source: "by hand"}', "{equals: 4}", 8, "source"),
        ("{equals: 4,", "{at_least: 4, at_most: 5,", 8, "exactly one"),
        ("tolerance: 0.1", "tolerence: 0.1", 7, "Did you mean 'tolerance'"),
        ("tolerance: 0.1, ", "", 7, "go together"),
        ("tolerance: 0.1", "tolerance: -1", 7, "greater than or equal to 0"),
        ("rate: 1e-3", "heads: &a [*a]", 5, "contains itself"),
    ],
)
def test_error_points_at_its_line(tmp_path, old, new, line, words):
    assert old in CONFIG
    message = broken(tmp_path, CONFIG.replace(old, new))
    assert re.search(rf"toy\.yaml:{line}: ", message), message
    assert words in message


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read.*none\.yaml"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="no experiment"):
        load(tmp_path)


def test_script_without_config_or_run(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    script.write_text("")
    with pytest.raises(ConfigError, match="class Config"):
        load(file)
    script.write_text(
        "import mijax.experiment\nclass Config(mijax.experiment.Config): ..."
    )
    with pytest.raises(ConfigError, match="function run"):
        load(file)


def test_values_are_read_as_people_write_them(tmp_path):
    config = load(make_toy(tmp_path, CONFIG.replace("prompts: 3", "heads: [3]"))).config
    assert config.rate == 0.001
    assert config.heads == (3,)
    integer = load(make_toy(tmp_path, CONFIG.replace("1e-3", "2"))).config
    assert integer.rate == 2.0


@pytest.mark.parametrize("value", ["1e-3", "1e5", 1e-5, 1e300, "no", "a: b", "", None])
def test_yaml_round_trip(tmp_path, value):
    file = tmp_path / "a.yaml"
    file.write_text(dump_yaml({"value": value, "list": [value]}))
    assert read_yaml(file).value == {"value": value, "list": [value]}


def test_empty_sections_are_empty(tmp_path):
    plan = load(make_toy(tmp_path, "experiment: toy\nconfig:\nexpected:\n"))
    assert plan.config.prompts == 3
    assert not plan.expected


@pytest.mark.parametrize("name", ["out", "size", "which", "page", "all"])
def test_reserved_names_are_refused(tmp_path, name):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    good = script.read_text()
    inside = good.replace(
        "    steps: int = 4", f"    {name}: int = 4\n    steps: int = 4"
    )
    script.write_text(inside)
    assert load(file).override([f"--train.{name}", "5"])
    script.write_text(good.replace("    word: str", f"    {name}: str"))
    with pytest.raises(ConfigError, match=f"'{name}' is an option"):
        load(file)


@pytest.mark.parametrize(
    ("entry", "ours", "accepted"),
    [
        ({"value": 1.0, "tolerance": 0.1}, 1.1, True),
        ({"value": 1.0, "tolerance": 0.1}, 1.1001, False),
        ({"value": 1.0, "tolerance": 0.0}, 1.0, True),
        ({"value": 1.0, "tolerance": 0.1}, float("nan"), False),
        ({"value": 1.0, "tolerance": 0.1}, "1.0", False),
        ({"at_least": 2}, 2, True),
        ({"at_least": 2}, 1.9, False),
        ({"at_most": 2}, float("nan"), False),
        ({"at_most": 2}, 2, True),
        ({"equals": "a"}, "a", True),
        ({"equals": 1}, True, False),
        ({"equals": 3}, 3.0, True),
        ({"equals": 23.3}, 23.299999237060547, True),  # 23.3 in float32
        ({"equals": 23.3}, 23.31, False),
        ({"equals": 0.123456}, 0.1234559, True),
        ({"equals": 0.123456}, 0.12345, False),
        ({"equals": 0.0}, 1e-9, False),
        ({"equals": 12345}, 12346, False),
        ({"equals": 0.5}, float("nan"), False),
        ({"equals": ("a", "b")}, ("a", "b"), True),
        ({"equals": ("a", "b")}, ("b", "a"), False),
    ],
)
def test_expected_accepts(entry, ours, accepted):
    assert Expected(**entry, source="s").accepts(ours) is accepted


def test_overrides_by_word_and_by_name(tmp_path):
    plan = load(make_toy(tmp_path))
    words = ["--prompts", "8", "--train.steps=9", "--no-kill", "--heads", "4", "5"]
    changed = plan.override(words).config
    assert (changed.prompts, changed.train.steps, changed.heads) == (8, 9, (4, 5))
    assert plan.override({"prompts": 8}).config == plan.override(words[:2]).config
    assert plan.override([]).config == plan.config
    assert plan.override({"heads": [7]}).config.heads == (7,)


def test_values_inside_a_config_leave_the_others(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    more = script.read_text().replace(
        "steps: int = 4", "steps: int = 4\n    batch: int = 1"
    )
    script.write_text(more)
    file.write_text(
        file.read_text().replace("rate: 1e-3", "train: {steps: 9, batch: 8}")
    )
    changed = load(file).override({"train": {"batch": 2}}).config
    assert (changed.train.steps, changed.train.batch) == (9, 2)
    with pytest.raises(ConfigError, match=r"train\.btch"):
        load(file).override({"train": {"btch": 2}})


KINDS = """
class Plain(mijax.experiment.Config):
    kind: Literal["plain"] = "plain"
    x: int = 1


class Other(mijax.experiment.Config):
    kind: Literal["other"] = "other"
    y: int = 1


class Config(mijax.experiment.Config):
    part: Plain | Other = Plain()
"""


def test_a_config_of_another_kind_takes_nothing_of_the_first(tmp_path):
    file = make_toy(tmp_path)
    script = file.parent / "experiment.py"
    text = script.read_text().replace("import NamedTuple", "import Literal, NamedTuple")
    script.write_text(text.replace("class Config(mijax.experiment.Config):", KINDS))
    changed = load(file).override({"part": {"kind": "other", "y": 7}}).config
    assert changed.part.model_dump() == {"kind": "other", "y": 7}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--promts", "3"], "Did you mean '--prompts'"),
        (["--train.stps", "3"], "Did you mean '--train.steps'"),
        (["--prompts", "x"], "--prompts"),
        (["--prompts"], "--prompts"),
        (["3"], "3"),
        ({"promts": 3}, "Did you mean 'prompts'"),
        ({"prompts": "3"}, "valid integer"),
    ],
)
def test_bad_overrides(tmp_path, change, words):
    with pytest.raises(ConfigError) as caught:
        load(make_toy(tmp_path)).override(change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
