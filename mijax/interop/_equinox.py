"""Sites in Equinox models: submodules wrapped in the tree."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
from penzai import pz

from mijax.interop._chosen import Choice, axes_of, choose, marked, selected

T = TypeVar("T")


class Marked(eqx.Module):
    """A module whose output is marked; other attributes are those of the module."""

    module: Any
    name: str = eqx.field(static=True)
    axes: str = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module and mark its output."""
        return marked(self.name, self.axes, self.module(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name == "module" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.module, name)


def mark(
    model: T,
    sites: Mapping[str, Choice | pz.Selection | Callable[[T], Any]],
    *,
    axes: Mapping[str, str] | None = None,
) -> T:
    r"""Mark outputs of submodules of an Equinox model; the model is not rewritten.

    Args:
        model: any pytree with Equinox modules in it.
        sites: for each site name the modules whose output it is: a class
            (`eqx.nn.Linear`), a regular expression for whole paths
            (`r"layers\.\d+"`), a penzai selection
            (`pz.select(model).at_instances_of(eqx.nn.Linear)`), or a function that
            returns one module or a list of them, as for `eqx.tree_at`.
        axes: for each site name the names of the output's axes, as for `mijax.site`;
            `axis_0 axis_1 ...` by default. A module that is called under `vmap` sees
            one example, and the mapped axis comes first by itself.

    Returns:
        A model of the same structure with the chosen modules wrapped. Wrapped modules
        are called as before, and have the attributes that they had.

    Raises:
        SiteError: a choice that fits no submodule, or a submodule with two names.

    Examples:
        >>> import equinox as eqx, jax, mijax
        >>> mlp = eqx.nn.MLP(4, 2, 8, depth=2, key=jax.random.key(0))
        >>> marked = mijax.interop.mark(mlp, {"linear": eqx.nn.Linear})
        >>> mijax.sites(marked, jax.numpy.ones(4))["linear"].shapes
        ((8,), (8,), (2,))
    """
    axes = axes_of(sites, axes)
    nodes = dict(_modules(model, ()))
    known = {".".join(map(str, p)): module for p, module in nodes.items()}
    plain = {n: c for n, c in sites.items() if isinstance(c, str | type)}
    selections = {n: c for n, c in sites.items() if isinstance(c, pz.Selection)}
    from_paths = {n: selected(n, c, known) for n, c in selections.items()}
    chosen = choose({**plain, **from_paths}, known.items())
    paths = [p for p in nodes if ".".join(map(str, p)) in chosen]
    # From the inside out, so that a wrapped module may hold wrapped modules.
    for path in sorted(paths, key=len, reverse=True):
        name = chosen[".".join(map(str, path))]
        wrap = lambda module, name=name: Marked(module, name, axes[name])  # noqa: E731
        model = eqx.tree_at(_at(path), model, replace_fn=wrap)
    for name, where in sites.items():
        if not isinstance(where, str | type | pz.Selection):
            wrap = lambda module, name=name: Marked(module, name, axes[name])  # noqa: E731
            model = eqx.tree_at(where, model, replace_fn=wrap)
    return model


def _modules(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path and value of every callable Equinox module below a node."""
    if path and isinstance(node, eqx.Module) and callable(node):
        yield path, node
    children: list[tuple[Any, Any]] = []
    if isinstance(node, eqx.Module):
        names = (f for f in node.__dataclass_fields__ if hasattr(node, f))
        children = [(name, getattr(node, name)) for name in names]
    elif isinstance(node, list | tuple):
        children = list(enumerate(node))
    elif isinstance(node, dict):
        children = list(node.items())
    for key, child in children:
        if not isinstance(child, jax.Array):
            yield from _modules(child, (*path, key))


def _at(path: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Return the function that finds the node of a path."""

    def find(node: Any) -> Any:
        for key in path:
            if isinstance(node, Marked):
                node = node.module
            node = getattr(node, key) if isinstance(node, eqx.Module) else node[key]
        return node

    return find
