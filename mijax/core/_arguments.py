"""Check the types of a verb's arguments at its door, from its own signature."""

import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from mijax._errors import ConfigError, NotFiniteError, ShapeError, quoted

# Errors of code that needs the values of traced arrays.
HOST_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
F = TypeVar("F", bound=Callable[..., Any])
Test = Callable[[Any], bool]


def checked(verb: F) -> F:
    """Refuse arguments of other types than a function is annotated with.

    Classes, numbers, texts, literals, sequences, mappings, callables and unions of
    these are checked; arrays are left to the function itself. Booleans are not
    integers, and numbers are finite.

    Args:
        verb: a public function.

    Returns:
        The same function behind its checks, which raise `ConfigError`,
        `NotFiniteError` for NaN, and `ShapeError` for traced arguments of a function
        that needs their values.

    Examples:
        >>> @checked
        ... def double(n: int):
        ...     return 2 * n
        >>> double(True)
        Traceback (most recent call last):
        mijax._errors.ConfigError: double: `n` must be an integer, got the bool True.
    """
    signature = inspect.signature(verb)

    @functools.cache
    def tests() -> dict[str, tuple[Test, str] | None]:
        hints = typing.get_type_hints(verb)
        return {name: _test(hints.get(name, Any)) for name in signature.parameters}

    @functools.wraps(verb)
    def door(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{verb.__name__}: {error}.") from None
        for name, test in tests().items():
            if test is None or name not in given:
                continue
            value = given[name]
            if not test[0](value):
                raise _refused(f"{verb.__name__}: `{name}` must be {test[1]}", value)
            if isinstance(value, float) and not math.isfinite(value):
                raise NotFiniteError(
                    f"{verb.__name__}: `{name}` must be finite, got {value}."
                )
        try:
            return verb(*args, **kwargs)
        except HOST_ERRORS as error:
            if not any(isinstance(a, Tracer) for a in jax.tree.leaves((args, kwargs))):
                raise
            raise ShapeError(
                f"{verb.__name__} looks at values of its arguments: call it outside "
                "jax.jit, jax.vmap and jax.grad."
            ) from error

    return typing.cast(F, door)


def _refused(expected: str, value: Any) -> ConfigError | ShapeError:
    """Return the error of a value of another type, in one line."""
    found = f"{expected}, got the {type(value).__name__} {quoted(value)}"
    if "a model" not in expected:
        return ConfigError(f"{found}.")
    loaded = hasattr(value, "model") and hasattr(value, "tokenizer")
    hint = "give its `.model`" if loaded else "load one with mijax.models.load"
    return ShapeError(f"{found}: {hint}.")


def _is_key(value: Any) -> bool:
    if not isinstance(value, jax.Array):
        return False
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return (typed and value.ndim == 0) or value.dtype == np.uint32


def _is_integer(value: Any) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole or _is_scalar(value, "iu")


def _is_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    return real or _is_scalar(value, "iuf")


def _is_scalar(value: Any, kinds: str) -> bool:
    array = isinstance(value, jax.Array | np.ndarray)
    return array and value.ndim == 0 and getattr(value.dtype, "kind", "?") in kinds


def _is_sequence(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, bytes)


SIMPLE: dict[Any, tuple[Test, str]] = {
    int: (_is_integer, "an integer"),
    float: (_is_number, "a number"),
    bool: (lambda value: isinstance(value, bool | np.bool_), "a bool"),
    str: (lambda value: isinstance(value, str), "a text"),
    type(None): (lambda value: value is None, "None"),
    Sequence: (_is_sequence, "a sequence"),
    Mapping: (lambda value: isinstance(value, Mapping), "a mapping"),
    Callable: (callable, "a function"),
}


def _test(hint: Any) -> tuple[Test, str] | None:
    """Return the test of an annotation and its name; `None` where all is taken."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _of_union(typing.get_args(hint))
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        name = "one of " + ", ".join(map(repr, choices))
        return (lambda value: any(value is c or value == c for c in choices)), name
    if origin is not None or not _is_ours(hint):
        return SIMPLE.get(origin or hint) if isinstance(origin or hint, type) else None
    name = hint.__name__
    name = "model" if name == "AbstractModel" else name
    article = "an" if name[0] in "AEIOU" else "a"
    # A class that users know by its subclasses states one of them.
    example = getattr(hint, "example", None)
    such = f" such as {example}" if isinstance(example, str) else ""
    return (lambda value: isinstance(value, hint)), f"{article} {name}{such}"


def _is_ours(hint: Any) -> bool:
    """Return True if an annotation is a class of mijax, and no protocol."""
    is_class = isinstance(hint, type) and hint.__module__.split(".")[0] == "mijax"
    return is_class and not getattr(hint, "_is_protocol", False)


def _of_union(args: tuple[Any, ...]) -> tuple[Test, str] | None:
    """Return the test of a union, `None` where one of its parts takes all."""
    keys = typing.get_args(PRNGKeyArray)
    parts = [_test(part) for part in args if part not in keys]
    if set(keys) <= set(args):
        parts.append((_is_key, "a jax.random.key"))
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    allowed = [part[0] for part in known]
    names = " or ".join(part[1] for part in known)
    return (lambda value: any(test(value) for test in allowed)), names
