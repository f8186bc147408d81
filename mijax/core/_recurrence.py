"""A recurrence over one sequence, and the mark of its states."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Shaped

from mijax.core._mark import site


def scanned(
    step: Callable[[Array, Any], Array],
    read: Callable[[Array, Any], Any],
    start: Shaped[Array, "..."],
    xs: Any,
) -> tuple[Shaped[Array, "seq ..."], Any]:
    """Returns the state after every input, and what is read from it."""

    def one(state: Array, x: Any) -> tuple[Array, tuple[Array, Any]]:
        state = step(state, x)
        return state, (state, read(state, x))

    return jax.lax.scan(one, start, xs)[1]


def mark_state(name: str, states: Shaped[Array, "rows ..."]) -> None:
    """Names the state after every row, for a cache; nothing goes on from the mark."""
    site(
        name,
        states,
        " ".join(["position", *map("state_{}".format, range(1, states.ndim))]),
    )
