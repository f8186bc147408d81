"""A recurrence or a window over one sequence, and the marks of its states."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from mijax.core._mark import edited, site

# An edit at a state belongs inside the recurrence, where the next token reads it. That
# mark has a name of its own, and is only there while something edits the state.
STEP = ".step"


def scanned(
    name: str,
    step: Callable[[Array, Any], Array],
    read: Callable[[Array, Any], Any],
    start: Shaped[Array, "..."],
    xs: Any,
) -> tuple[Shaped[Array, "seq ..."], Any]:
    """Returns the state after every input, and what is read from it."""

    def one(state: Array, x: Any) -> tuple[Array, tuple[Array, Any]]:
        state = step(state, x)
        if edited(name + STEP):
            state = site(name + STEP, state, "token: " + _axes(state.ndim))
        return state, (state, read(state, x))

    return jax.lax.scan(one, start, xs)[1]


def mark_state(name: str, states: Shaped[Array, "rows ..."]) -> None:
    """Names the state after every row, for a cache; nothing goes on from the mark."""
    site(name, states, f"position {_axes(states.ndim - 1)}")


def _axes(rank: int) -> str:
    return " ".join(f"state_{i}" for i in range(1, rank + 1))


def windows(
    x: Shaped[Array, "seq ..."], before: Shaped[Array, "size ..."]
) -> Shaped[Array, "seq size ..."]:
    """Return each row with those before it, oldest first.

    Args:
        x: the rows.
        before: the window of the row before the first one.
    """
    size, every = len(before), jnp.concatenate([before[1:], x])
    return jnp.stack([every[i : i + len(x)] for i in range(size)], 1)
