"""Sites in Haiku models: method calls intercepted while they are traced."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from mijax._errors import SiteError
from mijax.interop._chosen import Choice, axes_of, choose, fits, marked


class HaikuFunction(eqx.Module):
    """A Haiku model as a pure function, a pytree of its parameters.

    Attributes:
        params: the parameters, as `init` gives them.
        apply: `apply` of `hk.transform`.
        takes_key: True if it takes a key after the parameters.
        sites: name and choice of each site.
        axes: name and axes of each site.
    """

    params: Any
    apply: Callable[..., Any] = eqx.field(static=True)
    takes_key: bool = eqx.field(static=True)
    sites: tuple[tuple[str, Choice], ...] = eqx.field(static=True)
    axes: tuple[tuple[str, str], ...] = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Raises:
            SiteError: a choice that fits no module.
        """
        # Not a dependency: it is there where such a model is.
        haiku = importlib.import_module("haiku")
        axes, seen = dict(self.axes), []

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            if context.method_name != "__call__":
                return output
            path = context.module.module_name
            seen.append((path, context.module))
            for name, choice in self.sites:
                if fits(name, choice, path, context.module):
                    output = marked(name, axes[name], output)
            return output

        key = (None,) if self.takes_key else ()
        with haiku.intercept_methods(intercept):
            output = self.apply(self.params, *key, *args, **kwargs)
        choose(dict(self.sites), seen)
        return output


def mark_haiku(
    transformed: Any,
    params: Any,
    sites: Mapping[str, Choice],
    *,
    axes: Mapping[str, str] | None = None,
) -> HaikuFunction:
    r"""Mark outputs of modules of a Haiku model; the model is not rewritten.

    The guide to any function has an example. The model draws no random numbers: Haiku
    refuses dropout without a key.

    Args:
        transformed: what `hk.transform` or `hk.without_apply_rng` returns.
        params: its parameters.
        sites: for each site name a class (`hk.Linear`), or a regular expression for
            whole module names (`r"mlp/~/linear_\d"`).
        axes: for each site name the names of the output's axes, as for `mijax.site`;
            `axis_0 axis_1 ...` by default.

    Returns:
        A pure function with the other arguments of `apply`.

    Raises:
        SiteError: a model with state, from `hk.transform_with_state`.
    """
    kind = type(transformed).__name__
    if kind != "Transformed":
        raise SiteError(
            f"mark_haiku takes what hk.transform returns, got {kind}: give a model "
            "without state."
        )
    # `hk.without_apply_rng` takes the key away.
    parameters = [*inspect.signature(transformed.apply).parameters, ""]
    return HaikuFunction(
        params,
        transformed.apply,
        parameters[1] == "rng",
        tuple(sites.items()),
        tuple(axes_of(sites, axes).items()),
    )
