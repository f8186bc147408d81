"""Command-line overrides, derived from the types of a config."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mijax._errors import ConfigError, nearest
from mijax.experiment._config import explain

M = TypeVar("M", bound=BaseModel)


def override(config: M, words: Sequence[str]) -> M:
    """Changes values of a config by command-line words.

    Args:
        config: the config; its values are the defaults.
        words: such as `["--prompts", "8", "--train.steps", "100"]`.

    Returns:
        A new config.

    Raises:
        ConfigError: on an unknown option, a missing value or one of the wrong type.
    """
    if not words:
        return config
    _refuse_unknown(config, words)
    import tyro  # noqa: PLC0415  (slow, and needed only when something is overridden)

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            changed = tyro.cli(
                type(config), default=config, args=list(words), add_help=False
            )
    except ValidationError as error:
        raise ConfigError(explain(type(config), error)) from error
    except SystemExit as error:
        raise ConfigError(_one_line(said.getvalue())) from error
    return changed


def option_help(config: BaseModel, *, program: str, about: str) -> str:
    """The help text on the options of a config, with defaults and documentation.

    Args:
        config: the config; its values are the defaults.
        program: the command, for the usage line.
        about: what to print above the options.

    Returns:
        Plain text.
    """
    import tyro  # noqa: PLC0415

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(
            type(config),
            default=config,
            args=["--help"],
            prog=program,
            description=about,
        )
    return _plain(said.getvalue()).rstrip() + "\n"


def _refuse_unknown(config: BaseModel, words: Sequence[str]) -> None:
    names = _names(config)
    for word in words:
        if not re.match(r"--?[A-Za-z]", word):
            continue
        given = word.split("=", 1)[0].lstrip("-").replace("_", "-")
        if word.startswith("--") and given in names:
            continue
        options = [f"--{name}" for name in names if not name.startswith("no-")]
        raise ConfigError(
            f"unknown option {word.split('=', 1)[0]!r}."
            + nearest(f"--{given}", options or ["--out", "--help"])
        )


def _names(config: BaseModel, above: str = "") -> list[str]:
    """Option names without dashes in front; booleans also as `no-name`."""
    names = []
    for key in type(config).model_fields:
        value = getattr(config, key)
        name = above + key.replace("_", "-")
        if isinstance(value, BaseModel):
            names += _names(value, f"{name}.")
            continue
        names.append(name)
        if isinstance(value, bool):
            names.append(f"{above}no-{key.replace('_', '-')}")
    return names


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _one_line(box: str) -> str:
    """The first paragraph of the framed message that tyro prints."""
    lines = [line.strip("│| ") for line in _plain(box).splitlines()]
    rule = re.compile(r"[─╭╮╰╯+-]*|[╭+][─-].*")
    first = next((i for i, line in enumerate(lines) if rule.fullmatch(line)), 0)
    paragraph = []
    for line in lines[first + 1 :]:
        if rule.fullmatch(line):
            break
        paragraph.append(line)
    text = " ".join(paragraph)
    text = re.sub(r"^Error parsing \w+: \d+ validation errors? for \w+ ", "", text)
    text = re.sub(r" \[type=.*", "", text)
    text = re.sub(r" For further information.*", "", text).rstrip(".")
    return f"{text}. See the options with --help."
