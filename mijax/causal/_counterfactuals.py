"""What is asked of a model: a base, sources, and the label after the swap."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from mijax._errors import PositionError, ShapeError, quoted
from mijax.core.internal import integers
from mijax.data import AbstractSource, Prompts


@final
class Counterfactuals(eqx.Module):
    """Interchange interventions and what the causal model says of them.

    Inputs are vectors of numbers or of token ids. One example, or a batch of them.

    Attributes:
        base: inputs of the runs that are changed, or `mijax.data.Prompts`.
        sources: inputs of the runs that each variable is read from, or `Prompts` for
            each variable.
        swapped: which variables are set.
        label: the causal model's output after that, an index of the logits.
        lengths: number of tokens of each base, or one number for all. The output is
            read at the last token. Models of tokens need it; `Prompts` bring it.
        source_lengths: number of tokens of each source, where known.
        position: token index in each base, where examples have a place of their own:
            `base.position("subject")`. Searches then give a site without a position.
        source_position: token index in each source, `[*batch, variable]`, or
            `[*batch]` for all variables; by default that of the base.

    Raises:
        ShapeError: `Prompts` next to sources that are not.
        PositionError: positions or lengths of other examples, or a position of the
            sources without one of the base.

    Examples:
        >>> from mijax.data import Prompts
        >>> base = Prompts.from_ids([[5, 6, 7], [8, 9]])
        >>> source = Prompts.from_ids([[1, 2, 3], [4, 5]])
        >>> swapped, label = jnp.ones((2, 1), bool), jnp.array([3, 4])
        >>> data = Counterfactuals(base, [source], swapped, label)
        >>> data.sources.shape, data.lengths.tolist()
        ((2, 1, 3), [3, 2])
    """

    base: Shaped[Array, "*batch input"]
    sources: Shaped[Array, "*batch variable input"]
    swapped: Bool[Array, "*batch variable"]
    label: Int[Array, "*batch"]
    lengths: Int[Array, "*batch"] | None
    source_lengths: Int[Array, "*batch variable"] | None
    position: Int[Array, "*batch"] | None
    source_position: Int[Array, "*batch variable"] | None

    def __init__(
        self,
        base: Any,
        sources: Any,
        swapped: Bool[Array, "*batch variable"],
        label: Int[Array, "*batch"],
        lengths: Any = None,
        source_lengths: Any = None,
        *,
        position: Any = None,
        source_position: Any = None,
    ):
        if isinstance(base, Prompts):
            sources = [sources] if isinstance(sources, Prompts) else sources
            if not (
                isinstance(sources, list | tuple)
                and sources
                and all(isinstance(one, Prompts) for one in sources)
            ):
                raise ShapeError(
                    "With a base of Prompts, sources are a list of Prompts, one for "
                    f"each variable; got {type(sources).__name__}."
                )
            lengths = base.lengths if lengths is None else lengths
            source_lengths = jnp.stack([one.lengths for one in sources], axis=1)
            width = max(one.tokens.shape[1] for one in (base, *sources))
            base = _widened(base, width)
            sources = jnp.stack([_widened(one, width) for one in sources], axis=1)
        for name, given in (
            ("base", base),
            ("sources", sources),
            ("swapped", swapped),
            ("label", label),
        ):
            if not isinstance(given, jax.Array | np.ndarray):
                raise ShapeError(f"`{name}` must be an array, got {quoted(given)}.")
        _check_batch(base, sources, swapped, label)
        if lengths is not None:
            lengths = integers(lengths, "A length", PositionError)
            if lengths.shape not in ((), label.shape):
                raise PositionError(
                    f"Give one length, or one for each of {label.shape} examples, got "
                    f"shape {lengths.shape}."
                )
            lengths = jnp.broadcast_to(jnp.asarray(lengths, jnp.int32), label.shape)
        self.base, self.sources, self.swapped, self.label = (
            base,
            sources,
            swapped,
            label,
        )
        self.lengths, self.source_lengths = lengths, source_lengths
        places = _places(position, source_position, swapped.shape)
        self.position, self.source_position = places


def _places(position: Any, source: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return positions in each base and in each source, `None` without any.

    Raises:
        PositionError: positions of other examples, or of the sources only.
    """
    if position is None:
        if source is not None:
            raise PositionError("Give position= of the bases next to source_position=.")
        return None, None
    at = integers(position, "A position", PositionError)
    given = position if source is None else source
    into = integers(given, "A source position", PositionError)
    if into.ndim == len(shape) - 1:
        into = into[..., None]
    each = ((), shape, (*shape[:-1], 1))
    if at.shape not in ((), shape[:-1]) or into.shape not in each:
        raise PositionError(
            f"Give one position for each of {shape[:-1]} examples, and source "
            f"positions for each variable of them, {shape}; got {at.shape} and "
            f"{into.shape}."
        )
    at = jnp.broadcast_to(jnp.asarray(at, jnp.int32), shape[:-1])
    return at, jnp.broadcast_to(jnp.asarray(into, jnp.int32), shape)


def _check_batch(base: Any, sources: Any, swapped: Any, label: Any) -> None:
    """Refuse arrays of several batches, variables or inputs.

    Raises:
        ShapeError: axes that differ, or labels that are not integers.
    """
    batch = label.shape
    fits = base.ndim == len(batch) + 1 and sources.ndim == len(batch) + 2
    fits = fits and base.shape[:-1] == batch == sources.shape[:-2]
    if not fits or swapped.shape != sources.shape[:-1]:
        raise ShapeError(
            "Counterfactuals are base [*batch, input], sources [*batch, variable, "
            "input], swapped [*batch, variable] and label [*batch]; got "
            f"{base.shape}, {sources.shape}, {swapped.shape} and {label.shape}."
        )
    if label.dtype.kind not in "iu" or swapped.dtype.kind not in "b":
        raise ShapeError(
            f"Labels are integers and swapped is of booleans, got {label.dtype} and "
            f"{swapped.dtype}."
        )


def _widened(prompts: Prompts, width: int) -> Int[Array, "batch seq"]:
    """Return tokens of prompts with more padding."""
    return jnp.pad(prompts.tokens, ((0, 0), (0, width - prompts.tokens.shape[1])))


@final
class Drawn(AbstractSource):
    """Batches that a function draws, each with a key of its own.

    Args:
        draw: returns a tree of arrays, the examples of one key along their first axis
            once it is mapped: it draws a single example.
        batch: examples of a batch.
        seed: of all keys.

    Examples:
        >>> source = Drawn(lambda key: jax.random.normal(key, (3,)), batch=4)
        >>> state, batch = source.batch(source.start())
        >>> batch.shape
        (4, 3)
    """

    draw: Callable[[PRNGKeyArray], Any] = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    seed: Int[Array, ""]

    def __init__(
        self, draw: Callable[[PRNGKeyArray], Any], *, batch: int, seed: int = 0
    ):
        self.draw, self.rows, self.seed = draw, batch, jnp.int32(seed)

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Any]:
        """Returns the next batch."""
        return state + 1, _drawn(self, state)


@eqx.filter_jit
def _drawn(source: Drawn, state: Int[Array, ""]) -> Any:
    key = jax.random.fold_in(jax.random.key(source.seed), state)
    return jax.vmap(source.draw)(jax.random.split(key, source.rows))
