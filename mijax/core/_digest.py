"""Digest of a job: of everything that its result depends on.

The code of functions and classes defined outside installed packages is part of it, with
the globals that they use, so an edit that was corrected is another job. Code counts as
bytecode, which is what runs: the file may have been edited since it was imported, and
two lambdas on one line have the same source.
"""

import contextlib
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import OutputError

# Values that their text says all about.
PLAIN = (str, bytes, int, float, complex, type(None), type(Ellipsis), range, slice)
Pieces = tuple[list[Any], Iterable[Any]]


def digest(tree: Any) -> str:
    """Returns the SHA-256 of a tree: its structure, arrays, functions and objects.

    Functions count by their code (see `_of_function`), objects by the state that
    `pickle` would keep and by the code of their class. It is the same in every
    process.

    Raises:
        OutputError: an object of which only the address in memory is known.
    """
    return Digest().of(tree, ()).hex()


class Digest:
    """Hashes values, each once however often it comes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bytes]] = {}

    def of(self, value: Any, around: tuple[Any, ...]) -> bytes:
        """Hashes a value; `around` are those that hold it, as some hold themselves."""
        if id(value) in self._known:
            return self._known[id(value)][1]
        if any(value is other for other in around):
            return hashlib.sha256(b"itself").digest()
        inner = (*around, value)
        kind = f"{type(value).__module__}.{type(value).__qualname__}:"
        found = hashlib.sha256(kind.encode())
        if _custom(type(value).__module__):
            found.update(self.of(type(value), inner))
        if isinstance(value, dict | set | frozenset):
            items = value.items() if isinstance(value, dict) else value
            for part in sorted(self.of(item, inner) for item in items):
                found.update(part)
        else:
            raw, parts = _array(value) if _is_array(value) else _parts(value)
            for piece in raw:
                found.update(piece)
            for part in parts:
                found.update(self.of(part, inner))
        # The value is kept with it: another could come to lie where it lay.
        self._known[id(value)] = value, found.digest()
        return found.digest()


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _array(value: Any) -> Pieces:
    """Returns what is hashed of an array as it is, and as values of their own."""
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    raw = [f"{array.dtype}{array.shape}".encode()]
    if array.dtype == object:
        return raw, array.ravel().tolist()
    return [*raw, array.view(np.uint8).data], ()


def _parts(value: Any) -> Pieces:
    """Returns the text of a value, or the values that it holds."""
    if isinstance(value, PLAIN):
        return [repr(value).encode()], ()
    if isinstance(value, type | types.ModuleType):
        where = f"{getattr(value, '__module__', '')}.{value.__name__}"
        if isinstance(value, type) and _custom(value.__module__):
            return [where.encode()], _of_class(value)
        return [where.encode()], ()
    function = _of_function(value)
    if function is not None:
        return [], function
    level = jax.tree_util.default_registry.flatten_one_level(value)
    if level is not None:
        return [], (*level[0], level[1])
    return _of_object(value)


def _of_object(value: Any) -> Pieces:
    """Returns what `pickle` would keep of an object, or its text."""
    try:
        kept = value.__reduce_ex__(4)
    except Exception:  # libraries raise what they like
        text = repr(value)
        if " at 0x" not in text:
            return [text.encode()], ()
        raise OutputError(
            f"A job with a {type(value).__qualname__} cannot be told from another, so "
            "it cannot be resumed: use a function or an equinox.Module in its place."
        ) from None
    if isinstance(kept, str):
        return [kept.encode()], ()
    make, given, state, *listed = (*kept, None)
    return [], (make, given, state, *(list(part) for part in listed if part))


def _of_function(value: Any) -> tuple[Any, ...] | None:
    """Return the code, defaults, captured values and globals of a function.

    Globals count by name only where the function is from an installed package. `None`
    for other values.
    """
    if isinstance(value, types.FunctionType):
        defaults = (value.__defaults__, value.__kwdefaults__)
        around = (*_captured(value), *_globals(value))
        return (value.__qualname__, value.__code__, *defaults, *around)
    if isinstance(value, types.CodeType):
        takes = (value.co_argcount, value.co_kwonlyargcount, value.co_flags)
        return (value.co_code, value.co_names, value.co_consts, *takes)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, types.BuiltinFunctionType):
        return value.__qualname__, value.__module__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    # A weak reference is called for its value.
    wrapped = getattr(value, "__wrapped__", None)
    wrapped = value() if isinstance(value, weakref.ref) else wrapped
    return None if wrapped is None else (wrapped,)


def _custom(module: Any) -> bool:
    """Return True if a module is neither mijax nor installed, so may be edited."""
    if not isinstance(module, str):
        return False
    top = module.split(".")[0]
    if top == "mijax" or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


def _of_class(value: type) -> list[Any]:
    """Return the bases and the members of a class that its author wrote."""
    found: list[Any] = list(value.__bases__)
    for name, raw in sorted(vars(value).items()):
        member = _unwrapped(raw)
        dunder = name.startswith("__")
        generated = dunder and not isinstance(member, types.FunctionType)
        if isinstance(member, types.FunctionType) and dunder:
            # Methods that dataclasses write follow from the fields.
            generated = member.__code__.co_filename == "<string>"
        descriptor = isinstance(
            member, types.MemberDescriptorType | types.GetSetDescriptorType
        )
        if not (generated or descriptor or name.startswith("_abc_")):
            found += [name, member]
    return found


def _unwrapped(member: Any) -> Any:
    """Return the functions of a method, a property or a similar descriptor."""
    if isinstance(member, property):
        return member.fget, member.fset, member.fdel
    for name in ("__func__", "func", "method", "__wrapped__"):
        inner = getattr(member, name, None)
        if isinstance(inner, types.FunctionType):
            return inner
    return member


def _globals(function: types.FunctionType) -> list[Any]:
    """Return the globals that custom code uses, by name."""
    if not _custom(function.__globals__.get("__name__")):
        return []
    names = sorted(_names(function.__code__))
    found: list[Any] = []
    for name in names:
        if name in function.__globals__:
            found += _used(name, function.__globals__[name], names)
    return found


def _used(name: str, value: Any, names: list[str]) -> list[Any]:
    """Return a global, or of a custom module the members that are named."""
    if not isinstance(value, types.ModuleType):
        return [name, value]
    if not _custom(value.__name__):
        return []
    members = [(n, vars(value)[n]) for n in names if n in vars(value)]
    inner = [member for member in members if member[1] is not value]
    return [part for n, one in inner for part in _used(f"{name}.{n}", one, names)]


def _names(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes in code, nested code included."""
    inner = [_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inner)


def _captured(function: types.FunctionType) -> list[Any]:
    """Returns the values that a function has captured."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            found.append(cell.cell_contents)
    return found
