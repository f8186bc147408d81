"""JSON objects, read without guessing: no repeated keys, no NaN."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mijax._errors import LoadError

AGAIN = "Download or copy the file again."


def refuse_constant(name: str) -> Any:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"it has the number {name}, expected finite numbers")


def spelled_constant(name: str) -> dict[str, str]:
    """Return NaN or Infinity as transformers 5 writes it, `{"__float__": ...}`."""
    return {"__float__": name}


def read_json(
    path: Path, *, constant: Callable[[str], Any] = refuse_constant
) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        constant: makes a value of NaN or Infinity; they are refused by default.

    Returns:
        The object.

    Raises:
        LoadError: the file is missing, not a JSON object, gives a key twice, or has a
            number that JSON does not know (NaN, Infinity).
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"), constant=constant)
    except FileNotFoundError as error:
        raise LoadError(f"{path} does not exist. Put the file there.") from error
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LoadError(f"{path} cannot be read as JSON: {reason}. {AGAIN}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a JSON object.")
    return content


def parse_json(
    text: str | bytes, *, constant: Callable[[str], Any] = refuse_constant
) -> Any:
    """Parse JSON text strictly.

    Args:
        text: the JSON.
        constant: makes a value of NaN or Infinity; they are refused by default.

    Returns:
        Dicts, lists, strings, numbers, booleans or `None`.

    Raises:
        ValueError: not JSON, a key given twice in one object, a number that is not
            finite, or nesting too deep to read.

    Examples:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' is given twice
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=constant,
            parse_float=finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict and refuses a repeated key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def finite(text: str) -> float:
    """Read a float and refuses one that overflows to infinity."""
    value = float(text)
    if value in (float("inf"), -float("inf")):
        raise ValueError(f"it has the number {text:.30}, expected finite numbers")
    return value
