"""Sites in Flax Linen models: method calls intercepted while they are traced."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
from flax import linen
from flax.errors import InvalidRngError, ModifyScopeVariableError

from mijax._errors import SiteError
from mijax.interop._chosen import Choice, axes_of, choose, fits, marked


class LinenFunction(eqx.Module):
    """A Flax Linen model as a pure function, a pytree of its variables.

    Attributes:
        variables: `{"params": ..., ...}`, as `module.init` gives them.
        module: the model.
        sites: name and choice of each site.
        axes: name and axes of each site.
    """

    variables: Any
    module: linen.Module = eqx.field(static=True)
    sites: tuple[tuple[str, Choice], ...] = eqx.field(static=True)
    axes: tuple[tuple[str, str], ...] = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Raises:
            SiteError: a choice that fits no submodule, or a model that changes its
                variables or draws random numbers.
        """
        axes, seen = dict(self.axes), []

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            path = ".".join(context.module.path)
            if context.method_name != "__call__" or not path:
                return output
            seen.append((path, context.module))
            for name, choice in self.sites:
                if fits(name, choice, path, context.module):
                    output = marked(name, axes[name], output)
            return output

        try:
            with linen.intercept_methods(intercept):
                output = self.module.apply(self.variables, *args, **kwargs)
        except (ModifyScopeVariableError, InvalidRngError) as error:
            raise SiteError(
                f"Calling {type(self.module).__name__} changes its variables or draws "
                "random numbers, as batch normalization and dropout do in training: "
                "give the arguments that turn that off."
            ) from error
        choose(dict(self.sites), seen)
        return output


def mark_linen(
    module: linen.Module,
    variables: Any,
    sites: Mapping[str, Choice],
    *,
    axes: Mapping[str, str] | None = None,
) -> LinenFunction:
    r"""Mark outputs of submodules of a Flax Linen model; the model is not rewritten.

    Args:
        module: the model.
        variables: its variables, `{"params": ..., ...}`.
        sites: for each site name a class (`linen.Dense`), or a regular expression for
            whole paths (`r"Block_\d+\.Dense_0"`).
        axes: for each site name the names of the output's axes, as for `mijax.site`;
            `axis_0 axis_1 ...` by default.

    Returns:
        A pure function with the arguments of `module.apply` after the variables.

    Examples:
        >>> import jax, mijax
        >>> from flax import linen
        >>> model = linen.Sequential([linen.Dense(8), linen.Dense(2)])
        >>> variables = model.init(jax.random.key(0), jax.numpy.ones(4))
        >>> marked = mijax.interop.mark_linen(model, variables, {"dense": linen.Dense})
        >>> mijax.sites(marked, jax.numpy.ones(4))["dense"].shapes
        ((8,), (2,))
    """
    names = axes_of(sites, axes)
    return LinenFunction(variables, module, tuple(sites.items()), tuple(names.items()))
