"""Estimate of the memory that evaluating a jaxpr takes, from lifetimes of values."""

from typing import Any

from mijax.core._mark import Literal, bodies


def peak_bytes(jaxpr: Any) -> int:
    """Return the most bytes that are live at once, inputs and constants left out.

    An upper estimate: compiled programs fuse equations and reuse buffers.

    Args:
        jaxpr: a jaxpr.
    """
    last: dict[Any, int] = {}
    for i, equation in enumerate(jaxpr.eqns):
        for var in equation.invars:
            if not isinstance(var, Literal):
                last[var] = i
    for var in jaxpr.outvars:
        if not isinstance(var, Literal):
            last[var] = len(jaxpr.eqns)
    live = peak = 0
    sizes: dict[Any, int] = {}
    for i, equation in enumerate(jaxpr.eqns):
        made = {var: _bytes(var) for var in equation.outvars}
        inside = max((peak_bytes(b.jaxpr) for _, b in bodies(equation)), default=0)
        live += sum(made.values())
        sizes |= made
        peak = max(peak, live + inside)
        for var in {v for v in equation.invars if not isinstance(v, Literal)}:
            if last[var] == i:
                live -= sizes.pop(var, 0)
        for var in made:
            if var not in last:
                live -= sizes.pop(var, 0)
    return peak


def _bytes(var: Any) -> int:
    aval = var.aval
    shape = getattr(aval, "shape", ())
    size = 1
    for n in shape:
        size *= n
    return size * getattr(getattr(aval, "dtype", None), "itemsize", 0)
