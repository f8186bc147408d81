"""Evaluate a jaxpr with edits at its sites, and keep activations.

An equation that holds none of the sites in question is evaluated as it is; of the
others there are six kinds, one handler each:

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
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mijax._errors import ShapeError, SiteError
from mijax.core._mark import (
    SITE,
    ClosedJaxpr,
    Literal,
    bind,
    bodies,
    call,
    manual,
    scan_sizes,
)
from mijax.core._site_table import (
    CALLS,
    LAYER,
    REMATS,
    RULES,
    Mark,
    Path,
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


@dataclasses.dataclass(frozen=True)
class Start:
    """Layer at which the scan around a site starts to differ from the run without it.

    Attributes:
        name: the site.
        before: edits of the run that the scan takes lower layers from.
        first: the layer, traced.
    """

    name: str
    before: Mapping[str, Callable[[Any, At], Any]]
    first: Any


class Job:
    """Edits, wanted names and the marks that they concern.

    Attributes:
        marks: the marks that are edited or kept, by path.
        around: paths of all equations around them.
    """

    def __init__(
        self,
        edits: Mapping[str, Any],
        want: frozenset[str],
        marks: Any,
        parts: Mapping[str, Any],
        start: Start | None = None,
    ):
        self.edits, self.want, self.parts, self.start = edits, want, parts, start
        self.marks = {m.path: m for m in marks if m.name in want or m.name in edits}
        self.around = {p[:n] for p in self.marks for n in range(1, len(p) + 1)}

    def within(self, path: Path) -> list[Mark]:
        """Return the marks inside an equation."""
        return [m for p, m in self.marks.items() if p[: len(path)] == path]


def evaluate(
    job: Job, closed: ClosedJaxpr, values: list[Any], path: Path, index: Path
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
            at = _at(job.marks[here], index)
            # The mark stays, for a harvest around this one.
            outputs = bind(equation, [_edited(job, at, inputs[0])])
            kept |= _keep(job, job.marks[here], at, outputs[0])
        else:
            handle = _HANDLERS[equation.primitive.name]
            outputs, more = handle(job, equation, inputs, here, index)
            kept |= more
        env |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars], kept


def _at(mark: Mark, index: Path) -> At:
    """Return the place of a value, for edits."""
    named = dict(zip(mark.names, index, strict=True))
    layer = mark.first + named[LAYER] if LAYER in named else mark.first
    return At(mark.name, mark.axes, layer, named)


def _edited(job: Job, at: At, value: Any) -> Any:
    """Apply the edit at a mark."""
    if at.name not in job.edits:
        return value
    new = jnp.asarray(job.edits[at.name](value, at))
    if new.shape != value.shape or new.dtype != value.dtype:
        raise ShapeError(
            f"The edit at site {at.name!r} returns {new.dtype}{list(new.shape)}, "
            f"but its value is {value.dtype}{list(value.shape)}: an edit keeps "
            "shape and dtype."
        )
    return new


def _keep(job: Job, mark: Mark, at: At, value: Any) -> Kept:
    """Keep the value of a mark, or a part of it, if it is wanted."""
    if mark.name not in job.want:
        return {}
    part = job.parts.get(mark.name)
    return {(mark.name, mark.first): part(value, at) if part else value}


def _check_used(job: Job, mark: Mark, jaxpr: Any, equation: Any) -> None:
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


def _call(job: Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Evaluate the body in place."""
    return evaluate(job, _body(equation), inputs, path, index)


def _remat(job: Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Evaluate the body under `jax.checkpoint` again."""
    body, params = _body(equation), equation.params
    again = jax.checkpoint(
        lambda *values: evaluate(job, body, list(values), path, index),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )
    return again(*inputs)


def _rule(job: Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Evaluate the body of a function with a custom rule, which no longer applies."""
    result = evaluate(job, _body(equation), inputs, path, index)
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


def _scan(job: Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Run the scan with further outputs, one activation per iteration."""
    params, body = equation.params, _body(equation)
    n_consts, n_carry = scan_sizes(equation)
    consts, rest = inputs[:n_consts], inputs[n_consts:]
    if job.start is not None and not index and not params["reverse"]:
        marks = [m for m in job.within(path) if m.name == job.start.name]
        if any(mark.names[0] == LAYER for mark in marks):
            return _scan_from(job, job.start, equation, inputs, path)

    def step(carry: list[Any], inputs: Any) -> Any:
        i, xs = inputs
        values = [*consts, *carry, *xs]
        outputs, kept = evaluate(job, body, values, path, (*index, i))
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


def _scan_from(
    job: Job, start: Start, equation: Any, inputs: Any, path: Path
) -> Result:
    """Run a scan from one layer on, after the run that lower layers are taken from."""
    params, body = equation.params, _body(equation)
    n_consts, n_carry = scan_sizes(equation)
    consts, rest = inputs[:n_consts], inputs[n_consts:]
    xs, length = rest[n_carry:], params["length"]
    plain = Job(start.before, job.want, job.marks.values(), job.parts)

    def layer(which: Job, i: Any, carry: list[Any], xs: list[Any]) -> Any:
        outputs, kept = evaluate(which, body, [*consts, *carry, *xs], path, (i,))
        return outputs[:n_carry], (outputs[n_carry:], kept)

    def lower(carry: list[Any], inputs: Any) -> Any:
        i, xs = inputs
        after, ys = layer(plain, i, carry, xs)
        return after, (carry, ys)

    layers = jnp.arange(length)
    # Nothing here depends on the cell, so this runs once for all of them.
    last, (carries, ys) = jax.lax.scan(lower, rest[:n_carry], (layers, xs))
    every = [
        jnp.concatenate([c, end[None]]) for c, end in zip(carries, last, strict=True)
    ]

    def upper(i: Any, state: Any) -> Any:
        carry, ys = state
        at = [jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in xs]
        carry, new = layer(job, i, carry, at)

        def update(every: Any, one: Any) -> Any:
            return jax.lax.dynamic_update_index_in_dim(every, one, i, 0)

        return carry, jax.tree.map(update, ys, new)

    carry = [
        jax.lax.dynamic_index_in_dim(c, start.first, keepdims=False) for c in every
    ]
    carry, (ys, kept) = jax.lax.fori_loop(start.first, length, upper, (carry, ys))
    return [*carry, *ys], kept


def _while(job: Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Run the loop with a further carry, the activations of the last iteration."""
    params = equation.params
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    of_cond, of_body = inputs[:n_cond], inputs[n_cond : n_cond + n_body]
    start = list(inputs[n_cond + n_body :])
    body, go_on = params["body_jaxpr"], params["cond_jaxpr"]

    def step(state: Any) -> Any:
        i, carry, _ = state
        values = [*of_body, *carry]
        outputs, kept = evaluate(job, body, values, path, (*index, i))
        return i + 1, outputs, kept

    specs = jax.eval_shape(lambda: step((jnp.int32(0), start, ()))[2])
    none = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)
    _, outputs, kept = jax.lax.while_loop(
        lambda state: call(go_on, [*of_cond, *state[1]])[0],
        step,
        (jnp.int32(0), start, none),
    )
    return outputs, kept


def _cond(job: Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Run the branches, which keep the same activations: zeros for those not taken."""
    branches, (which, *operands) = equation.params["branches"], inputs

    def run(k: int, *values: Any) -> Result:
        return evaluate(job, branches[k], list(values), (*path, k), index)

    every: Kept = {}
    for k in range(len(branches)):
        _, kept = jax.eval_shape(functools.partial(run, k), *operands)
        for key, spec in kept.items():
            if every.setdefault(key, spec) != spec:
                raise SiteError(
                    f"Site {key[0]!r} has another shape in one branch of a cond than "
                    "in another: give them different names."
                )

    def filled(k: int, *values: Any) -> Result:
        outputs, kept = run(k, *values)
        none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), every)
        return outputs, none | kept

    made = [functools.partial(filled, k) for k in range(len(branches))]
    return jax.lax.switch(which, made, *operands)


def _shard_map(job: Job, equation: Any, inputs: Any, path: Path, index: Path) -> Result:
    """Run on every device; activations get an axis for each axis of the mesh."""
    params, body, mesh = equation.params, _body(equation), equation.params["mesh"]
    axes = manual(equation)

    def shard(*values: Any) -> Any:
        here = (*index, *(jax.lax.axis_index(axis) for axis in axes))
        outputs, kept = evaluate(job, body, list(values), path, here)
        first = (1,) * len(axes)
        return outputs, jax.tree.map(lambda a: a.reshape(first + a.shape), kept)

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
