"""Choose submodules by class or by path, and mark what they return."""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from mijax._errors import SiteError
from mijax.core import site

Choice = type | str


def marked(name: str, axes: str, output: Any) -> Any:
    """Mark an output: an array by `name`, the arrays of a tree by `name.key`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(output)
    if not leaves:
        raise SiteError(f"The module marked as {name!r} returns no array.")
    values = []
    for path, leaf in leaves:
        key = jax.tree_util.keystr(path, simple=True, separator=".")
        values.append(site(f"{name}.{key}" if key else name, leaf, axes))
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
    sites: Mapping[str, Choice], modules: Iterable[tuple[str, Any]]
) -> dict[str, str]:
    """Return the site name of each module that is chosen, by path.

    Args:
        sites: for each name a class, or a regular expression for whole paths.
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
            raise SiteError(
                f"No submodule fits {choice!r} for site {name!r}. There are "
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


def fits(name: str, choice: Choice, path: str, module: Any) -> bool:
    """Return True if a module is meant."""
    if inspect.isclass(choice):
        return isinstance(module, choice)
    if isinstance(choice, str):
        return re.fullmatch(choice, path) is not None
    raise SiteError(
        f"Choose the modules of site {name!r} by a class or by a regular expression "
        f"for their paths, got {type(choice).__name__}."
    )
