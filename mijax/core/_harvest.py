"""`harvest`: a transformation that changes and returns what a function marks.

It evaluates the function's jaxpr. An equation that holds none of the sites in question
is evaluated as it is; of the others there are six kinds, one handler each:

    site              the edit, then the activation that is kept
    jit, remat        the body, in place (a remat stays one)
    scan              its body with further outputs: one activation per iteration
    while             its body with a further carry: the last iteration's activation
    cond              its branches, which keep the same activations (zeros if not taken)
    shard_map         its body with further outputs, one per device
    custom rules      the body, in place; differentiation is refused by name

Every handler returns the outputs of its equation and the activations that it kept, by
name and first layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mijax._errors import ShapeError, SiteError
from mijax.core._activations import Activations
from mijax.core._mark import (
    SITE,
    ClosedJaxpr,
    Literal,
    bind,
    bodies,
    call,
    editing,
    manual,
)
from mijax.core._site_table import (
    CALLS,
    LAYER,
    REMATS,
    RULES,
    Mark,
    Path,
    check_names,
    rebuild,
    table,
    trace,
)

# Activations by name and first layer; what a handler returns.
Kept = dict[tuple[str, int], Any]
Result = tuple[list[Any], Kept]


@dataclasses.dataclass(frozen=True)
class At:
    """The value that an edit sees.

    Attributes:
        name: name of the site.
        axes: names of the axes of the value.
        layer: its layer: a number, or a traced integer in a loop.
        index: iteration of each loop around the mark, by the loop's name.
    """

    name: str
    axes: tuple[str, ...]
    layer: Any
    index: Mapping[str, Any]


def harvest(
    fn: Callable[..., Any],
    *,
    want: Iterable[str] | None = None,
    edits: Mapping[str, Callable[[Any, At], Any]] | None = None,
) -> Callable[..., tuple[Any, Activations]]:
    """Return `fn` with edits at its sites, and with activations returned.

    A transformation like `grad`: `harvest(f)(x) == (f(x), activations)`. It composes
    with `jit`, `vmap`, `grad` and meshes. Under `jit`, activations that are not used
    cost nothing.

    Args:
        fn: any JAX function, or callable Equinox module.
        want: names of the sites to return; all by default.
        edits: for each site name a function `(value, at) -> value`, applied to every
            occurrence; `at` is an `At`. Shape and dtype stay.

    Returns:
        A function from the arguments of `fn` to its output and the activations. Those
        of a site have a leading axis `layer` if it has layers, then one for every
        other loop around the mark, then its own axes; a tuple by layer where shapes of
        layers differ. In a `while` loop the last iteration is kept, in a branch of a
        `cond` that is not taken zeros are.

    Raises:
        SiteError: a name that the function does not mark, an edit at a mark whose
            result the function does not use.
        ShapeError: an edit that changes shape or dtype.

    Examples:
        >>> import jax, mijax
        >>> def mlp(x, w_in, w_out):
        ...     h = mijax.site("hidden", jax.nn.relu(x @ w_in), "neuron")
        ...     return h @ w_out
        >>> one = jax.numpy.ones
        >>> half = {"hidden": lambda h, at: h / 2}
        >>> run = mijax.harvest(mlp, edits=half)
        >>> out, acts = run(one(4), one((4, 8)), one((8, 2)))
        >>> out.tolist(), acts.hidden.shape
        ([16.0, 16.0], (8,))
    """
    edits = dict(edits or {})
    want = None if want is None else tuple(want)

    @functools.wraps(fn, updated=())
    def harvested(*args: Any, **kwargs: Any) -> tuple[Any, Activations]:
        with editing(edits):
            traced, arrays = trace(fn, args, kwargs)
        known = table(traced.marks)
        names = tuple(known) if want is None else want
        check_names((*names, *edits), known)
        job = _Job(edits, frozenset(names), traced.marks)
        outputs, kept = _evaluate(job, traced.closed, arrays, (), ())
        acts = {name: _assemble(name, traced.marks, kept) for name in names}
        in_order = {name: acts[name] for name in known if name in acts}
        return rebuild(traced, outputs), Activations(in_order)

    return harvested


class _Job:
    """Edits, wanted names and the marks that they concern.

    Attributes:
        marks: the marks that are edited or kept, by path.
        around: paths of all equations around them.
    """

    def __init__(self, edits: Mapping[str, Any], want: frozenset[str], marks: Any):
        self.edits, self.want = edits, want
        self.marks = {m.path: m for m in marks if m.name in want or m.name in edits}
        self.around = {p[:n] for p in self.marks for n in range(1, len(p) + 1)}

    def within(self, path: Path) -> list[Mark]:
        """Return the marks inside an equation."""
        return [m for p, m in self.marks.items() if p[: len(path)] == path]


def _evaluate(
    job: _Job, closed: ClosedJaxpr, values: list[Any], path: Path, index: Path
) -> Result:
    """Evaluate a jaxpr; `index` holds the iteration of each loop around it."""
    jaxpr, kept = closed.jaxpr, {}
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env |= dict(zip(jaxpr.invars, values, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else env[v]  # noqa: E731
    for i, equation in enumerate(jaxpr.eqns):
        inputs, here = [read(v) for v in equation.invars], (*path, i)
        if here not in job.around:
            outputs = bind(equation, inputs)
        elif equation.primitive.name == SITE:
            _check_used(job, job.marks[here], jaxpr, equation)
            value = _site(job, job.marks[here], inputs[0], index)
            # The mark stays, for a harvest around this one.
            outputs = bind(equation, [value])
            kept |= _keep(job, job.marks[here], outputs)
        else:
            handle = _HANDLERS[equation.primitive.name]
            outputs, more = handle(job, equation, inputs, here, index)
            kept |= more
        env |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars], kept


def _site(job: _Job, mark: Mark, value: Any, index: Path) -> Any:
    """Apply the edit at a mark."""
    if mark.name in job.edits:
        named = dict(zip(mark.names, index, strict=True))
        layer = mark.first + named[LAYER] if LAYER in named else mark.first
        new = job.edits[mark.name](value, At(mark.name, mark.axes, layer, named))
        new = jnp.asarray(new)
        if new.shape != value.shape or new.dtype != value.dtype:
            raise ShapeError(
                f"The edit at site {mark.name!r} returns {new.dtype}{list(new.shape)}, "
                f"but its value is {value.dtype}{list(value.shape)}: an edit keeps "
                "shape and dtype."
            )
        value = new
    return value


def _keep(job: _Job, mark: Mark, outputs: list[Any]) -> Kept:
    """Keep the value of a mark if it is wanted."""
    return {(mark.name, mark.first): outputs[0]} if mark.name in job.want else {}


def _check_used(job: _Job, mark: Mark, jaxpr: Any, equation: Any) -> None:
    """Raise if an edited value is not used by the function."""
    if mark.name not in job.edits:
        return
    (var,) = equation.outvars
    read = (v for e in jaxpr.eqns for v in e.invars)
    if not any(v is var for v in (*read, *jaxpr.outvars)):
        raise SiteError(
            f"The model does not use what site({mark.name!r}, ...) returns, so an edit "
            f"there changes nothing. Write x = site({mark.name!r}, x, ...)."
        )


def _body(equation: Any) -> ClosedJaxpr:
    """Return the jaxpr that an equation calls."""
    return next(body for _, body in bodies(equation))


def _call(job: _Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Evaluate the body in place."""
    return _evaluate(job, _body(equation), inputs, path, index)


def _remat(job: _Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Evaluate the body under `jax.checkpoint` again."""
    body, params = _body(equation), equation.params
    again = jax.checkpoint(
        lambda *values: _evaluate(job, body, list(values), path, index),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )
    return again(*inputs)


def _rule(job: _Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Evaluate the body of a function with a custom rule, which no longer applies."""
    result = _evaluate(job, _body(equation), inputs, path, index)
    names = sorted({mark.name for mark in job.within(path)})
    return jax.tree.map(functools.partial(_refuse_gradients, names), result)


def _refuse_gradients(names: list[str], x: Any) -> Any:
    """Return `x`, which cannot be differentiated."""

    @jax.custom_jvp
    def same(x: Any) -> Any:
        return x

    @same.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise SiteError(
            f"Site {', '.join(map(repr, names))} is inside a function with a custom "
            "differentiation rule, which says nothing about gradients there: mark the "
            "value outside of that function."
        )

    return same(x) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x


def _scan(job: _Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Run the scan with further outputs, one activation per iteration."""
    params, body = equation.params, _body(equation)
    n_consts, n_carry = params["num_consts"], params["num_carry"]
    consts, rest = inputs[:n_consts], inputs[n_consts:]

    def step(carry: list[Any], inputs: Any) -> Any:
        i, xs = inputs
        values = [*consts, *carry, *xs]
        outputs, kept = _evaluate(job, body, values, path, (*index, i))
        return outputs[:n_carry], (outputs[n_carry:], kept)

    carry, (ys, kept) = jax.lax.scan(
        step,
        rest[:n_carry],
        (jnp.arange(params["length"]), rest[n_carry:]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], kept


def _while(job: _Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Run the loop with a further carry, the activations of the last iteration."""
    params = equation.params
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    of_cond, of_body = inputs[:n_cond], inputs[n_cond : n_cond + n_body]
    start = list(inputs[n_cond + n_body :])
    body, go_on = params["body_jaxpr"], params["cond_jaxpr"]

    def step(state: Any) -> Any:
        i, carry, _ = state
        values = [*of_body, *carry]
        outputs, kept = _evaluate(job, body, values, path, (*index, i))
        return i + 1, outputs, kept

    specs = jax.eval_shape(lambda: step((jnp.int32(0), start, ()))[2])
    none = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)
    _, outputs, kept = jax.lax.while_loop(
        lambda state: call(go_on, [*of_cond, *state[1]])[0],
        step,
        (jnp.int32(0), start, none),
    )
    return outputs, kept


def _cond(job: _Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Run the branches, which keep the same activations: zeros for those not taken."""
    branches, (which, *operands) = equation.params["branches"], inputs

    def run(k: int, *values: Any) -> Result:
        return _evaluate(job, branches[k], list(values), (*path, k), index)

    every: Kept = {}
    for k in range(len(branches)):
        _, kept = jax.eval_shape(functools.partial(run, k), *operands)
        for key, spec in kept.items():
            if every.setdefault(key, spec).shape != spec.shape:
                raise SiteError(
                    f"Site {key[0]!r} has shape {spec.shape} in one branch of a cond "
                    f"and {every[key].shape} in another: give them different names."
                )

    def filled(k: int, *values: Any) -> Result:
        outputs, kept = run(k, *values)
        none = {key: jnp.zeros(s.shape, s.dtype) for key, s in every.items()}
        return outputs, none | kept

    made = [functools.partial(filled, k) for k in range(len(branches))]
    return jax.lax.switch(which, made, *operands)


def _shard_map(
    job: _Job, equation: Any, inputs: Any, path: Path, index: Path
) -> Result:
    """Run on every device; activations get an axis for each axis of the mesh."""
    params, body, mesh = equation.params, _body(equation), equation.params["mesh"]
    axes = manual(equation)

    def shard(*values: Any) -> Any:
        here = (*index, *(jax.lax.axis_index(axis) for axis in axes))
        outputs, kept = _evaluate(job, body, list(values), path, here)
        return outputs, {
            k: a.reshape((1,) * len(axes) + a.shape) for k, a in kept.items()
        }

    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=tuple(params["in_specs"]),
        out_specs=(list(params["out_specs"]), PartitionSpec(*axes)),
        axis_names=set(axes),
        check_vma=params["check_vma"],
    )(*inputs)


_HANDLERS = {
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(REMATS, _remat),
    **dict.fromkeys(RULES, _rule),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}


def _assemble(name: str, marks: tuple[Mark, ...], kept: Kept) -> Any:
    """Join the occurrences of a site: layers first, stacked where shapes agree."""
    own = {mark.first: mark for mark in marks if mark.name == name}
    parts = []
    for first, mark in own.items():
        value = kept[name, first]
        if mark.scanned:
            value = jnp.moveaxis(value, [n for n, _ in mark.stacked].index(LAYER), 0)
        elif len(own) > 1:
            value = value[None]
        parts.append(value)
    if len({part.shape[1:] for part in parts}) == 1 or len(parts) == 1:
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return tuple(layer for part in parts for layer in part)
