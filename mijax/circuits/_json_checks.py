"""Checks of the keys and types of a JSON file."""

from collections.abc import Iterable
from typing import Any

from mijax._errors import LoadError, nearest

# Integers beyond this are not float32.
LARGEST = 2**127


def record(
    found: Any, kinds: dict[str, type], where: str, needed: Iterable[str] | None = None
) -> dict[str, Any]:
    """Returns a dictionary if it has the keys that it must have, and their types."""
    if not isinstance(found, dict):
        raise LoadError(f"{where} is not a dictionary but {found!r}.")
    check_keys(found, kinds, where, kinds if needed is None else needed)
    for key, value in found.items():
        if not typed(value, kinds[key]):
            wanted = kinds[key].__name__
            raise LoadError(f"{where}: {key!r} is not of type {wanted}: {value!r:.60}.")
    return found


def typed(value: Any, kind: type) -> bool:
    """Return True if a value of a JSON file is of a type; integers are numbers."""
    if kind is float:
        if isinstance(value, int) and not isinstance(value, bool):
            return abs(value) < LARGEST
        return isinstance(value, float)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_keys(
    found: dict[Any, Any],
    known: Iterable[Any],
    where: str,
    needed: Iterable[Any] | None = None,
) -> None:
    """Refuses unknown and missing keys."""
    known = dict.fromkeys(known)
    for key in found:
        if key not in known:
            raise LoadError(
                f"{where}: unknown key {key!r}.{nearest(str(key), map(str, known))}"
            )
    for key in known if needed is None else needed:
        if key not in found:
            raise LoadError(f"{where}: key {key!r} is missing.")
