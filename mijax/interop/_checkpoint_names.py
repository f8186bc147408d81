"""Sites from `jax.ad_checkpoint.checkpoint_name`, as in MaxText and its relatives."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from mijax._errors import SiteError
from mijax.core.internal import (
    call,
    checkpoint_names,
    mark_checkpoint_names,
    rebuild,
    trace,
)
from mijax.interop._chosen import axes_of


class NamedFunction(eqx.Module):
    """A function whose checkpoint names are sites.

    Attributes:
        fn: the function, a pytree if it is a model.
        sites: name and regular expression of each site; none for every checkpoint
            name as it is.
        axes: name and axes of each site.
    """

    fn: Any
    sites: tuple[tuple[str, str], ...] | None = eqx.field(static=True)
    axes: tuple[tuple[str, str], ...] = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Raises:
            SiteError: a choice that fits no name, a name with two sites, or axes that
                do not fit a value.
        """
        traced, arrays = trace(self.fn, args, kwargs)
        names = tuple(dict.fromkeys(checkpoint_names(traced.closed)))
        chosen = _choose(self.sites, names)
        axes = axes_of(dict.fromkeys(chosen.values()), dict(self.axes))

        def site_of(name: str) -> tuple[str, str] | None:
            site = chosen.get(name)
            return None if site is None else (site, axes[site])

        outputs = call(mark_checkpoint_names(traced.closed, site_of), arrays)
        return rebuild(traced, outputs)


def mark_names(
    fn: Callable[..., Any],
    sites: Mapping[str, str] | None = None,
    *,
    axes: Mapping[str, str] | None = None,
) -> NamedFunction:
    r"""Turn the checkpoint names of a function into sites.

    Code that rematerializes activations names them for its policies, with
    `jax.ad_checkpoint.checkpoint_name(x, "query_proj")`. These names stay where they
    are, and each becomes a site.

    Args:
        fn: any JAX function, or callable module.
        sites: for each site name a regular expression for whole checkpoint names
            (`"query_proj"`, `r".*_proj"`); by default every name is a site.
        axes: for each site name the names of the value's axes, as for `mijax.site`;
            `axis_0 axis_1 ...` by default. A value that is named under `vmap` has the
            mapped axis too, at its place in the array.

    Returns:
        A function with the same arguments and outputs.

    Examples:
        >>> import jax, mijax
        >>> from jax.ad_checkpoint import checkpoint_name
        >>> def mlp(x, w_in, w_out):
        ...     h = checkpoint_name(jax.nn.relu(x @ w_in), "hidden")
        ...     return h @ w_out
        >>> marked = mijax.interop.mark_names(mlp, axes={"hidden": "neuron"})
        >>> one = jax.numpy.ones
        >>> mijax.sites(marked, one(4), one((4, 8)), one((8, 2)))
        name    layers  axes    shape  dtype
        hidden          neuron  (8,)   float32
    """
    known = None if sites is None else tuple(sites.items())
    given = tuple((axes or {}).items())
    if sites is not None:
        axes_of(sites, axes)
    return NamedFunction(fn, known, given)


def _choose(
    sites: tuple[tuple[str, str], ...] | None, names: tuple[str, ...]
) -> dict[str, str]:
    """Return the site of each checkpoint name that is chosen."""
    if not names:
        raise SiteError(
            "The function has no checkpoint names: it never calls "
            "jax.ad_checkpoint.checkpoint_name. Mark values with mijax.site."
        )
    if sites is None:
        return {name: name for name in names}
    found: dict[str, str] = {}
    for site, pattern in sites:
        fits = [name for name in names if re.fullmatch(pattern, name)]
        if not fits:
            raise SiteError(
                f"No checkpoint name fits {pattern!r} for site {site!r}. The names are "
                f"{', '.join(map(repr, names))}."
            )
        for name in fits:
            if found.setdefault(name, site) != site:
                raise SiteError(
                    f"The checkpoint name {name!r} has two sites, {found[name]!r} and "
                    f"{site!r}: choose it once."
                )
    return found
