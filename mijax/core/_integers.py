"""Integers given by users: no booleans, and nothing that 32 bits would wrap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mijax._errors import MijaxError, ShapeError, quoted

INT32 = np.iinfo(np.int32)


def integers(
    given: Any, what: str = "An index", error: type[MijaxError] = ShapeError
) -> Any:
    """Return integers as an array, from NumPy where nothing in them is traced.

    Args:
        given: an integer, an array, or nested lists of integers.
        what: name of the value, the subject of an error.
        error: class of the error.

    Returns:
        An array whose values fit int32.

    Raises:
        MijaxError: booleans, other types, ragged lists, or values beyond int32.
    """
    array = given
    if not isinstance(given, jax.Array | np.ndarray):
        leaves = [given]
        if isinstance(given, list | tuple):
            leaves = jax.tree.leaves(given)
        if any(isinstance(leaf, bool | np.bool_) for leaf in leaves):
            raise error(f"{what} must be an integer, got the boolean {quoted(given)}.")
        traced = any(isinstance(leaf, jax.Array) for leaf in leaves)
        try:
            array = jnp.asarray(given) if traced else np.asarray(given)
            array = array.astype(np.int32) if not leaves else array
        except (TypeError, ValueError, OverflowError):
            raise error(f"{what} must be an integer, got {quoted(given)}.") from None
    if getattr(array.dtype, "kind", "") not in ("i", "u"):
        found = quoted(given) if array is not given else array.dtype
        raise error(f"{what} must be an integer, got {found}.")
    if isinstance(array, Tracer) or not array.size:
        return array
    if array.dtype.itemsize > 4 or array.dtype.kind == "u":
        least, most = int(array.min()), int(array.max())
        if least < INT32.min or most > INT32.max:
            wrong = most if most > INT32.max else least
            raise error(f"{what} must fit in 32 bits, got {wrong}.")
    return array


def reals(
    given: Any, what: str = "A value", error: type[MijaxError] = ShapeError
) -> Any:
    """Return real numbers as a JAX array.

    Args:
        given: a number, an array, or nested lists of numbers.
        what: name of the value, the subject of an error.
        error: class of the error.

    Raises:
        MijaxError: booleans, complex numbers, other types, or ragged lists.
    """
    try:
        array = given if isinstance(given, jax.Array) else jnp.asarray(given)
    except (TypeError, ValueError, OverflowError):
        raise error(f"{what} must be real numbers, got {quoted(given)}.") from None
    if not jnp.issubdtype(array.dtype, jnp.number) or array.dtype.kind == "c":
        raise error(f"{what} must be real numbers, got {array.dtype}.")
    return array
