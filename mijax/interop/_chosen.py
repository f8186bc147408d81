"""Choose submodules by class, path or selection, and mark what they return."""

import inspect
import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import jax
from penzai import pz

from mijax._errors import SiteError
from mijax.core import site

Choice = type | str
# Paths of the modules that a selection holds.
Paths = frozenset[str]


def marked(
    name: str,
    axes: str,
    output: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    mark: Callable[[str, Any, str], Any] = site,
) -> Any:
    """Mark an output: an array by `name`, the arrays of a tree by `name.key`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(output, is_leaf)
    if not leaves:
        raise SiteError(f"The module marked as {name!r} returns no array.")
    values = []
    for path, leaf in leaves:
        key = jax.tree_util.keystr(path, simple=True, separator=".")
        values.append(mark(f"{name}.{key}" if key else name, leaf, axes))
    return jax.tree.unflatten(structure, values)


def axes_of(sites: Mapping[str, Any], axes: Mapping[str, str] | None) -> dict[str, str]:
    """Return the axes of each site, and refuse those of other sites."""
    axes = dict(axes or {})
    if unknown := sorted(axes.keys() - sites.keys()):
        raise SiteError(
            f"There are axes for {unknown[0]!r}, but the sites are {', '.join(sites)}."
        )
    return {name: axes.get(name, "") for name in sites}


def choose(
    sites: Mapping[str, Choice | Paths], modules: Iterable[tuple[str, Any]]
) -> dict[str, str]:
    """Return the site name of each module that is chosen, by path.

    Args:
        sites: for each name a class, a regular expression for whole paths, or paths.
        modules: path and module, for instance `("layers.0.attention", module)`.

    Raises:
        SiteError: a choice that fits no module, a module with two names, or another
            kind of choice.
    """
    every = list(modules)
    found: dict[str, str] = {}
    for name, choice in sites.items():
        paths = [path for path, module in every if fits(name, choice, path, module)]
        if not paths:
            kinds = sorted({type(module).__name__ for _, module in every})
            what = "the selection" if isinstance(choice, frozenset) else repr(choice)
            raise SiteError(
                f"No submodule fits {what} for site {name!r}. There are "
                f"{', '.join(kinds)} at paths such as "
                f"{', '.join(repr(path) for path, _ in every[:3])}."
            )
        for path in paths:
            if found.setdefault(path, name) != name:
                raise SiteError(
                    f"The submodule at {path!r} has two names, {found[path]!r} and "
                    f"{name!r}: choose it once."
                )
    return found


def fits(name: str, choice: Choice | Paths, path: str, module: Any) -> bool:
    """Return True if a module is meant."""
    if isinstance(choice, frozenset):
        return path in choice
    if inspect.isclass(choice):
        return isinstance(module, choice)
    if isinstance(choice, str):
        return re.fullmatch(choice, path) is not None
    raise SiteError(
        f"Choose the modules of site {name!r} by a class or by a regular expression "
        f"for their paths, got {type(choice).__name__}."
    )


def selected(name: str, selection: pz.Selection, known: Container[str]) -> Paths:
    """Return the paths that a penzai selection holds.

    Raises:
        SiteError: one of them is no module of the model.
    """
    paths = frozenset(map(path_name, selection.get_keypaths()))
    for path in sorted(paths):
        if path not in known:
            raise SiteError(
                f"The selection for site {name!r} holds {path!r}, which is not a "
                "module of the model: select modules of this model."
            )
    return paths


def path_name(path: Iterable[Any]) -> str:
    """Write a path of JAX keys with dots."""
    return ".".join(map(_key_name, path))


def _key_name(key: Any) -> str:
    """Write one key of a path."""
    kinds = (getattr(key, kind, None) for kind in ("name", "idx", "key"))
    return str(next((kind for kind in kinds if kind is not None), key))
