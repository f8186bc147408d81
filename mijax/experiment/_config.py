"""Strictly typed configs, and the published numbers that they must meet."""

import json
import math
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from mijax._errors import ConfigError, nearest
from mijax.experiment._yaml import Document, Place

Value = bool | int | float | str | tuple[str, ...]
"""What an experiment can report, and a config can expect."""

SHOWN_DIGITS = 4
"""Significant digits of the numbers in tables."""

M = TypeVar("M", bound=BaseModel)

_STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    frozen=True,
    validate_default=True,
    use_attribute_docstrings=True,
)
# The command line reads these itself, before it reads the config's own.
_RESERVED = frozenset({"out", "debug", "help", "all", "size", "page", "which"})


class Config(BaseModel):
    """Base of an experiment's config: frozen, strictly typed, no unknown keys.

    The string below a field documents it, in the code and in `mijax run NAME --help`.
    Lists in YAML fill tuples; an integer fills a float; nothing else is converted.

    Examples:
        >>> class Sweep(Config):
        ...     prompts: int = 64
        ...     "How many prompts."
        >>> Sweep(prompts=8).prompts
        8
    """

    model_config = _STRICT


def check_names(model: type[Config]) -> None:
    """Refuses fields of an experiment's config that the command line would take.

    Fields of configs inside it are safe: their options have a dot (`--train.size`).

    Args:
        model: the config of a whole experiment.

    Raises:
        ConfigError: a field is called like an option of `mijax run` or `reproduce`.
    """
    for name in sorted(_RESERVED & set(model.model_fields)):
        raise ConfigError(
            f"the config field {name!r} is an option of the command line. "
            "Give the field another name."
        )


class Expected(BaseModel):
    """One published number: what a run must give, and where that was published.

    Exactly one form: `value` with `tolerance`, `at_least`, `at_most`, or `equals`.

    Attributes:
        value: the published number; ours passes when |ours - value| <= tolerance.
        tolerance: how far ours may lie from `value`, in the same unit.
        at_least: ours passes when it is this or more.
        at_most: ours passes when it is this or less.
        equals: ours passes when it is this word, list of words or count. Numbers are
            compared as the tables show them, to four significant digits, or to as many
            as `equals` has: 23.299999 equals 23.3, and 23.31 does not.
        source: where the number was published.

    Examples:
        >>> Expected(value=0.9, tolerance=0.1, source="Table 1").accepts(0.84)
        True
    """

    model_config = _STRICT

    value: Annotated[float | None, Field(allow_inf_nan=False)] = None
    tolerance: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    at_least: Annotated[float | None, Field(allow_inf_nan=False)] = None
    at_most: Annotated[float | None, Field(allow_inf_nan=False)] = None
    equals: Value | None = None
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _one_form(self) -> "Expected":
        forms = ("value", "at_least", "at_most", "equals")
        given = [name for name in forms if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of value (with tolerance), at_least, at_most, "
                f"equals; got {', '.join(given) or 'none'}"
            )
        if (self.value is None) != (self.tolerance is None):
            raise ValueError("value and tolerance go together")
        return self

    def accepts(self, ours: Value) -> bool:
        """True if a reported number meets this one. NaN never does."""
        if self.equals is not None:
            same_kind = isinstance(ours, bool) == isinstance(self.equals, bool)
            return same_kind and (ours == self.equals or _alike(ours, self.equals))
        if isinstance(ours, str | tuple):
            return False
        if self.at_least is not None:
            return ours >= self.at_least
        if self.at_most is not None:
            return ours <= self.at_most
        if self.value is None or self.tolerance is None:
            return False
        distance = abs(ours - self.value)
        # 1.1 is 1.0 ± 0.1, though 1.1 - 1.0 > 0.1 in binary.
        return distance <= self.tolerance or math.isclose(distance, self.tolerance)

    @property
    def published(self) -> str:
        """The number as the tables print it: `0.9 ± 0.1`, `≥ 0.4`, `≤ 2`, `L1H3`."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        if self.value is not None:
            return f"{self.value:g} ± {self.tolerance:g}"
        if isinstance(self.equals, tuple):
            return ", ".join(self.equals)
        return str(self.equals)


def _alike(ours: Value, published: Value) -> bool:
    """Return True if two numbers, one of them not whole, are shown as the same."""
    if not (isinstance(ours, float) or isinstance(published, float)):
        return False
    if isinstance(ours, str | tuple) or isinstance(published, str | tuple):
        return False
    figures = re.sub(r"e.*|\D", "", repr(published)).strip("0")
    digits = max(SHOWN_DIGITS, len(figures))
    return f"{ours:.{digits}g}" == f"{published:.{digits}g}"


class ConfigFile(BaseModel):
    """What a YAML config holds.

    Attributes:
        experiment: the experiment that the config is for.
        description: one line on what it shows.
        size: how much it takes: `tiny` for tests, `small` for minutes on two cores,
            `full` as published.
        config: values of the experiment's `Config`.
        expected: the published numbers, by the name the experiment reports them under.
    """

    model_config = _STRICT

    experiment: str
    description: str = ""
    size: Literal["tiny", "small", "full"] | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    expected: dict[str, Expected] = Field(default_factory=dict)


def parse(
    model: type[M], values: object, *, document: Document, place: Place = ()
) -> M:
    """Checks values of a YAML document against a pydantic model.

    Args:
        model: the model to fill.
        values: the values found at `place`.
        document: the document, which knows the lines.
        place: where in the document the values stand.

    Returns:
        The model.

    Raises:
        ConfigError: on the first unknown, missing or mistyped key: one line with file,
            line and the nearest valid name.
    """
    try:
        # The JSON reader is the strict one that takes lists for tuples.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        details = error.errors(include_url=False)
        first = details[0]
        message = _message(model, first["loc"], dict(first), document, place)
        more = f" ({len(details) - 1} more.)" if len(details) > 1 else ""
        raise document.error((*place, *first["loc"]), message + more) from error


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first problem of a pydantic error, in one sentence."""
    first = error.errors(include_url=False)[0]
    return _message(model, first["loc"], dict(first), None, ())


def _message(
    model: type[BaseModel],
    loc: tuple[int | str, ...],
    detail: Mapping[str, Any],
    document: Document | None,
    place: Place,
) -> str:
    if detail["type"] == "missing":
        return f"the key {_dotted((*place, *loc))!r} is missing. Add it."
    if detail["type"] == "extra_forbidden":
        fields = _fields(model, loc[:-1])
        return f"unknown key {_dotted((*place, *loc))!r}." + nearest(
            str(loc[-1]), fields
        )
    # The branches of a union are in pydantic's location, but not in the file.
    full = (*place, *loc)
    known = document.known(full) if document is not None else full
    text = str(detail["msg"]).removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    if detail["type"] == "value_error":
        return f"{_dotted(known)}: {text}."
    given = repr(detail["input"])
    given = given if len(given) <= 40 else given[:37] + "..."
    return f"{_dotted(known)}: {text}, got {given}."


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)


def _fields(model: type[BaseModel], loc: Place) -> list[str]:
    for part in loc:
        field = model.model_fields.get(str(part))
        inner = _models(field.annotation) if field is not None else _models(model)
        if inner:
            model = inner[0]
    return list(model.model_fields)


def _models(annotation: object) -> list[type[BaseModel]]:
    """The pydantic models inside an annotation such as `dict[str, Sub] | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if get_origin(annotation) in (Union, types.UnionType, Annotated, dict, tuple, list):
        return [m for argument in get_args(annotation) for m in _models(argument)]
    return []
