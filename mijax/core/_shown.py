"""Representations of one line that show values, for records that users print."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# Longest line, and most numbers to write out or to read for a range.
WIDTH, FEW, MANY = 88, 6, 10**6


def shown(value: Any) -> str:
    """Return a value in few characters.

    Args:
        value: a number, an array, a slice, a module, or a container of those.

    Returns:
        Numbers of small arrays, type and range of large ones.

    Examples:
        >>> shown(np.array([1, 2])), shown(jnp.linspace(-1, 1, 20)), shown(slice(1, 3))
        ('[1, 2]', 'f32[20] from -1 to 1', '1:3')
    """
    if isinstance(value, slice):
        ends = ("" if end is None else shown(end) for end in (value.start, value.stop))
        return ":".join(ends)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _array(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _joined([f"{key}: {shown(each)}" for key, each in value.items()], "{}")
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return _joined([shown(each) for each in value], "()")
    return cut(repr(value), 40)


def _array(value: Any) -> str:
    kind = eqx.tree_pformat(value).removesuffix("(numpy)")
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if isinstance(value, Tracer) or typed or value.dtype == object:
        return kind
    if value.size <= FEW and value.ndim < 2:
        return _numbers(np.asarray(value).tolist())
    if value.size > MANY or value.dtype.kind not in "iuf" or not value.size:
        return kind
    wide = np.asarray(value)
    if not np.isfinite(wide).any():
        return f"{kind}, none finite"
    finite = wide[np.isfinite(wide)]
    rest = "" if finite.size == wide.size else f", {wide.size - finite.size} not finite"
    low, high = _numbers(finite.min().item()), _numbers(finite.max().item())
    return f"{kind} from {low} to {high}{rest}"


def _numbers(values: Any) -> str:
    if isinstance(values, list):
        return f"[{', '.join(map(_numbers, values))}]"
    return f"{values:.4g}" if isinstance(values, float) else str(values)


def _joined(parts: list[str], ends: str) -> str:
    more = [f"{len(parts) - 3} more"] if len(parts) > 4 else []
    parts = parts[:3] if more else parts
    return f"{ends[0]}{', '.join([*parts, *more])}{ends[1]}"


def cut(text: str, width: int = WIDTH) -> str:
    """Return a text on one line of at most a number of characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def line(self: Any) -> str:
    """Return a module with its fields on one line, without `None` and default switches.

    Set `__repr__ = line` in the class.
    """
    fields = {
        field.name: value
        for field in dataclasses.fields(self)
        if (value := getattr(self, field.name, None)) is not None
        and not (isinstance(value, bool) and value == field.default)
    }
    inside = ", ".join(f"{name}={shown(value)}" for name, value in fields.items())
    return cut(f"{type(self).__name__}({inside})")
