"""Typed reading of configs and metadata.

A frozen dataclass declares the keys of a file: type, range, default, allowed values.
`read_record` checks a whole config against it with pydantic, which is imported on first
use, and turns the first problem into one line that names file, key, value and remedy.
"""

import dataclasses
import functools
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le

from mijax._errors import LoadError, nearest

R = TypeVar("R")
LARGEST = 2**31 - 1


class Whole:
    """Mark an integer that files may also write as a float, such as `32.0`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # noqa: PLC0415 - slow to import

        def convert(value: Any) -> Any:
            whole = isinstance(value, float) and value.is_integer()
            return int(value) if whole else value

        return core_schema.no_info_before_validator_function(convert, handler(source))


class Listed:
    """Mark a tuple, which files write as a list."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # noqa: PLC0415 - slow to import

        def convert(value: Any) -> Any:
            return tuple(value) if isinstance(value, list) else value

        return core_schema.no_info_before_validator_function(convert, handler(source))


class Only:
    """Mark a key that changes the computation, with the supported values.

    Args:
        *values: the values.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import (  # noqa: PLC0415 - slow to import
            PydanticCustomError,
            core_schema,
        )

        def check(value: Any) -> Any:
            for allowed in self.values:
                same_kind = isinstance(value, bool) == isinstance(allowed, bool)
                if same_kind and value == allowed:
                    return value
            options = [v for v in self.values if isinstance(v, str)]
            context = {"allowed": listed(self.values), "options": options}
            raise PydanticCustomError("only", "{allowed}", context)

        return core_schema.no_info_after_validator_function(check, handler(source))


class Key:
    """Mark a field whose key in the file has a different name.

    Args:
        name: the key.
    """

    def __init__(self, name: str) -> None:
        self.name = name


Size = Annotated[int, Whole(), Ge(1), Le(LARGEST)]
"""A dimension or count: 1 or more, in int32."""
Index = Annotated[int, Whole(), Ge(0), Le(LARGEST)]
"""A token id, layer or head: 0 or more, in int32."""
Indices = Annotated[tuple[Index, ...], Listed()]
"""A list of numbers that are 0 or more, in int32."""
Bytes = Annotated[int, Ge(0), Le(2**63 - 1)]
"""A length or offset in a file."""
Positive = Annotated[float, Gt(0)]
"""A finite number above 0."""
NonNegative = Annotated[float, Ge(0)]
"""A finite number that is 0 or more."""


def read_record(
    kind: type[R],
    content: Mapping[str, Any],
    where: str | Path,
    *,
    thing: str = "model",
) -> R:
    """Check a config against the dataclass that declares its keys.

    Args:
        kind: a dataclass. Types are strict: a string is not a number, a boolean is not
            an integer, NaN is not a float; a whole float fills a `Size`.
            A field that is such a dataclass itself is read from a mapping.
        content: keys and values of the file.
        where: the file, named by errors.
        thing: what the config describes, named by errors.

    Returns:
        The dataclass, filled.

    Raises:
        LoadError: a key that is missing, unknown, of another type or out of range.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Sizes:
        ...     layers: Size
        >>> read_record(Sizes, {"layers": 2}, "config.json").layers
        2
        >>> read_record(Sizes, {"layers": "2"}, "config.json")
        Traceback (most recent call last):
        mijax._errors.LoadError: config.json: 'layers' is '2', expected a valid integer.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import

    content = dict(content)
    for key, inner in records_of(kind).items():
        if isinstance(content.get(key), Mapping):
            at = f"{where}: {key}"
            content[key] = read_record(inner, content[key], at, thing=thing)
    try:
        found = validator(kind).model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise refusal(kind, content, str(where), thing, details[0]) from error
    fields = dataclasses.fields(typing.cast(Any, kind))
    return kind(**{field.name: getattr(found, field.name) for field in fields})


@functools.cache
def validator(kind: Any) -> Any:
    """Build the pydantic model of a dataclass."""
    from pydantic import ConfigDict, Field, create_model  # noqa: PLC0415

    config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        given: dict[str, Any] = {"alias": keys_of(kind)[field.name]}
        if field.default is not dataclasses.MISSING:
            given["default"] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            given["default_factory"] = field.default_factory
        fields[field.name] = (hints[field.name], Field(**given))
    return create_model(kind.__name__, __config__=config, **fields)


@functools.cache
def keys_of(kind: Any) -> Mapping[str, str]:
    """Return the key in the file of each field of a dataclass."""
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        marks = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Key)]
        found[name] = marks[0].name if marks else name
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def records_of(kind: Any) -> Mapping[str, Any]:
    """Return the dataclass of each key whose value is one."""
    hints = typing.get_type_hints(kind)
    return {
        key: hints[name]
        for name, key in keys_of(kind).items()
        if dataclasses.is_dataclass(hints[name])
    }


def refusal(
    kind: Any, content: Mapping[str, Any], where: str, thing: str, detail: Any
) -> LoadError:
    """Build the error for the first problem that pydantic found."""
    known = [*keys_of(kind).values()]
    name, *inner = (str(part) for part in detail["loc"])
    code, text = detail["type"], str(detail["msg"])
    place = "".join(f"[{part}]" for part in inner if part.isdigit())
    given = f"{where}: '{name}'{place} is {detail['input']!r:.60}"
    if code == "missing":
        hint = close([x for x in content if x not in known], name)
        return LoadError(
            f"{where}: key '{name}' is missing; this {thing} cannot be built.{hint}"
        )
    if code == "extra_forbidden":
        return LoadError(
            f"{where}: unknown key '{name}' = {detail['input']!r:.60} may change what "
            f"the {thing} computes.{close(known, name)} Remove it if it does not."
        )
    if code == "only":
        hint = close(detail["ctx"]["options"], str(detail["input"]))
        return LoadError(
            f"{given}, which changes what the {thing} computes; only {text} is "
            f"supported.{hint}"
        )
    text = text.removeprefix("Input should be ").removeprefix("Value error, ")
    return LoadError(f"{given}, expected {text[:1].lower()}{text[1:]}.")


def close(options: Collection[str], name: str) -> str:
    """Name a few close options, never all of them."""
    hint = nearest(name, sorted(options))
    return hint if hint.startswith(" Did") else ""


def listed(values: Collection[Any]) -> str:
    """Join values as a choice."""
    return " or ".join(repr(value) for value in values)
