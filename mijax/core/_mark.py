"""`site`: the identity, which names a value of a model.

Marks are equations of a JAX primitive, so every transformation carries them: `jit`,
`scan`, `cond`, `remat` and `shard_map` keep them in their bodies, differentiation keeps
them in the forward pass, and compilation drops them, at no cost in FLOPs or memory.

This is the only file that touches `jax.extend` and the rules of primitives.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax import Array
from jax import numpy as jnp
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Primitive,
    Var,
    jaxpr_as_fun,
)
from jax.interpreters import ad, batching, mlir

from mijax._errors import SiteError

__all__ = [
    "ClosedJaxpr",
    "Literal",
    "bind",
    "bodies",
    "call",
    "checkpoint_names",
    "edited",
    "editing",
    "manual",
    "mark_checkpoint_names",
    "prefixed",
    "scan_sizes",
    "site",
]

SITE = "site"
# The primitive of `jax.ad_checkpoint.checkpoint_name`.
NAME = "name"
OPAQUE = ("pallas_call", "pure_callback", "io_callback", "ffi_call")
UNNAMED = "mapped"

_site_p = Primitive(SITE)
# JAX keys its caches of traces by these values too.
_edited = jax.make_user_context(())
_prefix = jax.make_user_context("")


def site(name: str, x: Array, axes: str = "") -> Array:
    """Name a value inside a model; the identity.

    What is named can be read and changed by every verb. The function that calls `site`
    stays an ordinary JAX function: without `harvest` around it, a mark does nothing.

    Args:
        name: name of the site. The same name may occur many times: occurrence `i` is
            layer `i`, and in a `jax.lax.scan` the iteration is the layer, so stacked
            and unrolled models have the same sites.
        x: the value.
        axes: names of the axes of `x`, separated by spaces. Names before a colon are
            those of the loops around the mark, innermost last: `"step: embed"` is a
            vector in a scan over steps. Loops that are not named are `layer` (the
            outermost) and `step`.

    Returns:
        `x`. Use it: an edit changes what is returned.

    Raises:
        SiteError: the number of axes is not the rank of `x`, or a name occurs twice.

    Examples:
        >>> import jax, mijax
        >>> def mlp(x, w_in, w_out):
        ...     h = mijax.site("hidden", jax.nn.relu(x @ w_in), "neuron")
        ...     return h @ w_out
    """
    x = jnp.asarray(x)
    return _site_p.bind(x, **_params(_prefix.value + name, axes, x.shape))


def _params(name: str, axes: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Read the names of axes and loops."""
    loops, colon, own = axes.rpartition(":")
    names, outer = tuple(own.split()), tuple(loops.split())
    if not names and not colon:
        names = tuple(f"axis_{i}" for i in range(len(shape)))
    if len(names) != len(shape):
        raise SiteError(
            f"Site {name!r} has axes '{' '.join(names)}', but its value has shape "
            f"{shape}: give one name per axis."
        )
    if len({*names, *outer}) < len(names) + len(outer):
        raise SiteError(f"Site {name!r} has an axis name twice: '{axes}'.")
    return {"name": name, "axes": names, "loops": outer}


@contextlib.contextmanager
def editing(names: Iterable[str]) -> Iterator[None]:
    """Trace a function whose sites of these names will be edited."""
    with _edited((*_edited.value, *names)):
        yield


def edited(name: str) -> bool:
    """Return True if a `harvest` around the code that is traced edits a site.

    For values that are cheaper to go on with where nothing edits them. The site is
    marked in either case.
    """
    return _prefix.value + name in _edited.value


def prefixed(prefix: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose sites have a prefix in front of their names.

    For models of several towers, whose blocks mark the same names: the sites of one
    tower become `vision.z`, `vision.pattern`, and so on. Prefixes nest.

    Args:
        prefix: put in front of every name, such as `"vision."`.
        fn: any function that marks sites.

    Returns:
        The same function, with other names of its sites.

    Examples:
        >>> import jax.numpy as jnp, mijax
        >>> def tower(x):
        ...     return mijax.site("hidden", 2 * x, "neuron")
        >>> both = lambda x: tower(x) + prefixed("vision.", tower)(x)
        >>> list(mijax.sites(both, jnp.ones(3)))
        ['hidden', 'vision.hidden']
    """

    @functools.wraps(fn, updated=())
    def renamed(*args: Any, **kwargs: Any) -> Any:
        with _prefix(_prefix.value + prefix):
            return fn(*args, **kwargs)

    return renamed


def _batch(axis_data: Any, args: Any, dims: Any, *, name: str, axes: Any, loops: Any):
    """Put the axis of a `vmap` inside a model first and name it.

    Its name is the `axis_name` of that `vmap`, and `mapped` without one (`mapped_2`
    for a second).
    """
    (x,), (dim,) = args, dims
    if dim is None:  # not mapped
        return _site_p.bind(x, name=name, axes=axes, loops=loops), dim
    given = getattr(axis_data, "name", None)
    # An unnamed vmap has a sentinel object for a name.
    label = given if isinstance(given, str) else UNNAMED
    tries = itertools.chain([label], (f"{label}_{i}" for i in itertools.count(2)))
    label = next(one for one in tries if one not in axes)
    x = jnp.moveaxis(x, dim, 0)
    return _site_p.bind(x, name=name, axes=(label, *axes), loops=loops), 0


_site_p.def_impl(lambda x, **_: x)
_site_p.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(_site_p, lambda ctx, x, **_: [x])
# The tangent passes by the mark: a value is named once, in the forward pass.
ad.primitive_jvps[_site_p] = lambda primals, tangents, **names: (
    _site_p.bind(*primals, **names),
    tangents[0],
)
batching.fancy_primitive_batchers[_site_p] = _batch


def bind(equation: Any, values: list[Any]) -> list[Any]:
    """Evaluate one equation of a jaxpr."""
    primitive = equation.primitive
    found = primitive.get_bind_params(equation.params)
    functions, params = found if isinstance(found, tuple) else ((), found)
    with equation.ctx.manager:
        outputs = primitive.bind(*functions, *values, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


def call(closed: ClosedJaxpr, values: list[Any]) -> list[Any]:
    """Evaluate a whole jaxpr without looking inside."""
    return list(jaxpr_as_fun(closed)(*values))


def bodies(equation: Any) -> Iterator[tuple[str, ClosedJaxpr]]:
    """Yield the jaxprs in the parameters of an equation, with their names."""
    for name, value in equation.params.items():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield name, one
            elif isinstance(one, Jaxpr) and not one.constvars:
                yield name, ClosedJaxpr(one, ())


def scan_sizes(equation: Any) -> tuple[int, int]:
    """Return the number of constants and of carried values of a `scan`."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # JAX 0.12 keeps the structures of both instead.
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def manual(equation: Any) -> list[str]:
    """Return the mesh axes that a `shard_map` maps over, in the order of the mesh."""
    params = equation.params
    # JAX has called them by either name.
    mapped = params.get("newly_manual_axes", params.get("manual_axes"))
    return [axis for axis in params["mesh"].axis_names if axis in mapped]


def checkpoint_names(closed: ClosedJaxpr) -> Iterator[str]:
    """Yield every name that `jax.ad_checkpoint.checkpoint_name` gave to a value."""
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == NAME:
            yield equation.params["name"]
        elif equation.primitive.name not in OPAQUE:
            for _, body in bodies(equation):
                yield from checkpoint_names(body)


def mark_checkpoint_names(
    closed: ClosedJaxpr, site_of: Callable[[str], tuple[str, str] | None]
) -> ClosedJaxpr:
    """Mark values that `jax.ad_checkpoint.checkpoint_name` has named.

    Args:
        closed: a jaxpr.
        site_of: name and axes of the site for each name, `None` for no site.

    Returns:
        The jaxpr with a mark behind every such value. The names stay, so that the
        policy of a `jax.checkpoint` still finds them.
    """

    def convert(jaxpr: Jaxpr) -> Jaxpr:
        eqns = [one for eqn in jaxpr.eqns for one in rewrite(eqn)]
        return jaxpr.replace(eqns=eqns)

    def inside(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return value.replace(jaxpr=convert(value.jaxpr))
        if isinstance(value, Jaxpr):
            return convert(value)
        if isinstance(value, tuple | list):
            return type(value)(map(inside, value)) if _holds(value) else value
        return value

    def rewrite(eqn: JaxprEqn) -> list[JaxprEqn]:
        kind, params = eqn.primitive.name, eqn.params
        if kind in OPAQUE:
            return [eqn]
        found = site_of(params["name"]) if kind == NAME else None
        if found is None:
            return [eqn.replace(params={k: inside(v) for k, v in params.items()})]
        aval: Any = eqn.outvars[0].aval
        value, mark = Var(aval), _params(*found, aval.shape)
        named = eqn.replace(outvars=[value])
        return [named, eqn.replace(invars=[value], primitive=_site_p, params=mark)]

    return closed.replace(jaxpr=convert(closed.jaxpr))


def _holds(values: tuple[Any, ...] | list[Any]) -> bool:
    """Return True if a parameter is a sequence of jaxprs."""
    return all(isinstance(one, ClosedJaxpr | Jaxpr) for one in values)
