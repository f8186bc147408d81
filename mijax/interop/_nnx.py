"""Sites in Flax NNX models: submodules whose class marks its output."""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from flax import nnx

from mijax._errors import SiteError
from mijax.interop._chosen import Choice, axes_of, choose, marked


class NnxFunction(eqx.Module):
    """A Flax NNX model as a pure function, a pytree of its state.

    Attributes:
        state: arrays of the model, as `nnx.split` gives them.
        graph: the rest of it.
    """

    state: Any
    graph: Any = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Raises:
            SiteError: the call changes the model's state.
        """
        before = jax.tree.leaves(self.state)
        # The model may share the variables that hold these arrays: merge a copy.
        model = nnx.merge(self.graph, jax.tree.map(lambda leaf: leaf, self.state))
        output = model(*args, **kwargs)
        after = jax.tree.leaves(nnx.state(model))
        if len(before) != len(after) or any(map(operator.is_not, before, after)):
            raise SiteError(
                f"Calling {type(model).__name__} changes its state, as batch "
                "normalization and dropout do in training: call model.eval() first."
            )
        return output


def mark_nnx(
    model: nnx.Module,
    sites: Mapping[str, Choice],
    *,
    axes: Mapping[str, str] | None = None,
) -> NnxFunction:
    r"""Mark outputs of submodules of a Flax NNX model; the model is not rewritten.

    Args:
        model: the model; a copy of it is taken.
        sites: for each site name a class (`nnx.Linear`), or a regular expression for
            whole paths (`r"blocks\.\d+\.attention"`).
        axes: for each site name the names of the output's axes, as for `mijax.site`;
            `axis_0 axis_1 ...` by default.

    Returns:
        A pure function with the same arguments.

    Raises:
        SiteError: a choice that fits no submodule, or a submodule with two names.

    Examples:
        >>> import jax, mijax
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        ... )
        >>> marked = mijax.interop.mark_nnx(model, {"linear": nnx.Linear})
        >>> mijax.sites(marked, jax.numpy.ones(4))["linear"].shapes
        ((8,), (2,))
    """
    names = axes_of(sites, axes)
    model = nnx.clone(model)
    modules = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if path and callable(module)
    }
    for path, name in choose(sites, modules.items()).items():
        modules[path].__class__ = _class(type(modules[path]), name, names[name])
    graph, state = nnx.split(model)
    return NnxFunction(state, graph)


@functools.cache
def _class(of: type, name: str, axes: str) -> type:
    """Return a subclass whose calls are marked, always the same, so that jit caches."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return marked(name, axes, of.__call__(self, *args, **kwargs))

    return type(of)(of.__name__, (of,), {"__call__": call, "__module__": of.__module__})
