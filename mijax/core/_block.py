"""The block of a model, and the one place where edits and captures reach it."""

import abc
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from mijax._errors import SiteError
from mijax.core._cached import AbstractCached, Recurrent
from mijax.core._edits import edit
from mijax.core._harvest import At, harvest
from mijax.core._mark import UNNAMED, site
from mijax.core._place import Place
from mijax.core._recurrence import STEP
from mijax.core._rows import PACKED_GRID, AbstractRows, Past, Sequence
from mijax.core._sites import (
    BLOCK_SITES,
    SITES,
    BlockSites,
    Site,
    Sites,
    empty,
    get,
    put,
)
from mijax.core._stream import EMBED, AbstractStream, PlainStream

GRIDS = ("scores", "pattern")


class AbstractBlock(eqx.Module):
    """A residual block: reads a stream and writes to it, by name.

    Circuits find their nodes in the names. Values in between are named with `site`; the
    stream before and after the block is named for it, `resid_pre` and `resid_post`.

    Attributes:
        linear_writes: the block adds `attn_out` (`z` times the output weights, plus
            the bias) and `mlp_out` to the residual stream, with nothing in between.
            Analyses of weights and direct effects refuse blocks that do not state it.
        norm_readers: name of each norm, and the one part of the block that reads it.
        cache: what generation and sweeps keep of earlier tokens: the name of each
            value that the block marks, and its kind (`PerToken`, `Recurrent`, `Fixed`).
            They refuse blocks that do not state it; `{}` is a block that mixes no
            tokens.
        masks_padding: no token of the block reads padding, the rows after
            `rows.real_keys`; `nn.Attention` masks them. Without it prompts of several
            lengths are refused where the model is not causal.
        by_row: readers whose part of the block computes every row by itself, as an MLP
            does. Exact patching then runs only the rows that it needs.

        prompts: number of prompts that the block holds something for, such as what
            an encoder wrote; prompt `i` of a batch reads entry `i`. `None` takes any.

    A class that overrides `__call__` states them again.
    """

    linear_writes: ClassVar[bool] = False
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    by_row: ClassVar[tuple[str, ...]] = ()
    cache: ClassVar[Mapping[str, AbstractCached] | None] = None
    masks_padding: ClassVar[bool] = False
    prompts: ClassVar[int | None] = None

    @abc.abstractmethod
    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block.

        Args:
            stream: the residual stream at the rows.
            rows: position, prompt and lane of each row. Rows leave a block as
                `stream.keep(rows)`: after the last block of a sweep these are the rows
                that the metric reads.
            past: the block's `cache` of tokens that are not among the rows, by name;
                for packed rows only. Keys (before rotary) and values of attention are
                `k` and `v`, `[prompt, key_seq, heads, head_dim]`.

        Returns:
            The stream after the block.
        """


def stated(block: AbstractBlock, name: str) -> Any:
    """Return a property that a block states.

    A class that overrides `__call__` may compute something else, so that what it
    inherits from before does not count.

    Args:
        block: the block.
        name: name of the property, such as `linear_writes`.

    Returns:
        The value, or the default, which states nothing.
    """
    order = type(block).__mro__
    defines = next(i for i, one in enumerate(order) if "__call__" in vars(one))
    found = (vars(one)[name] for one in order[: defines + 1] if name in vars(one))
    value = next(found, vars(AbstractBlock)[name])
    return value.__get__(block) if isinstance(value, property) else value


class BlockValues(BlockSites[Any]):
    """Activations of a block, and those that are not sites of a decoder, by name."""

    others: dict[str, Array]


def run_block(
    block: AbstractBlock,
    x: Float[Array, "rows embed"],
    rows: AbstractRows,
    past: Past | None = None,
) -> Float[Array, "kept embed"]:
    """Run a block without edits; name the stream before and after it."""
    x = site("resid_pre", x, EMBED)
    return site("resid_post", block(PlainStream(x), rows, past).x, EMBED)


def apply_block(
    block: AbstractBlock,
    x: Float[Array, "rows embed"],
    edits: BlockSites[Any],
    place: Place,
    past: Past | None = None,
    *,
    want: Iterable[str] | None = None,
) -> tuple[Float[Array, "kept embed"], BlockSites[Any]]:
    """Run a block with edits and return its activations.

    Args:
        block: the block.
        x: the residual stream at the rows.
        edits: edits at sites of the block.
        place: its layer, and the rows.
        past: the block's cache of tokens that are not among the rows.
        want: sites to return, all by default; also names of the block's cache.

    Returns:
        The residual stream after the block, and its activations, `None` at sites that
        are not wanted or that the block does not have.

    Raises:
        SiteError: an edited or wanted site that the block does not have.
    """
    placed = {name: getattr(edits, name) for name in BLOCK_SITES}
    changes = changes_of(placed, lambda at: place, states_of(block))
    x, acts = harvest(run_block, want=want, edits=changes)(block, x, place.rows, past)
    found = dict.fromkeys(BLOCK_SITES)
    for name in BLOCK_SITES:
        if name in acts:
            found[name] = _rows_first(name, acts[name], place)
    others = {name: acts[name] for name in acts if name not in BLOCK_SITES}
    if want is None or not others:
        return x, BlockSites(**found)
    return x, BlockValues(**found, others=others)


def observed(
    fn: Callable[..., Any], edits: Sites[Any], rows: AbstractRows
) -> Callable[..., tuple[Any, Sites[Any]]]:
    """Return a function with edits at its sites, and its activations as a record.

    Args:
        fn: a function that names values as a model does, rows first. Occurrence `i` of
            a name is its layer `i`.
        edits: a record of edits.
        rows: position, prompt and lane of each row.

    Returns:
        A function from the arguments of `fn` to its output and the activations.
    """
    placed = {name: get(edits, name) for name in SITES}
    changes = changes_of(placed, lambda at: Place(rows, at.layer))

    def run(*args: Any) -> tuple[Any, Sites[Any]]:
        out, acts = harvest(fn, edits=changes)(*args)
        record = empty()
        for name, value in acts.items():
            # A site that occurs once is layer 0.
            lone = value.ndim < Site(name).rank
            record = put(record, name, value[None] if lone else value)
        return out, record

    return run


def states_of(block: AbstractBlock) -> frozenset[str]:
    """Return the names of the states that a block computes by a recurrence."""
    cache = stated(block, "cache") or {}
    return frozenset(n for n, kind in cache.items() if isinstance(kind, Recurrent))


def changes_of(
    placed: Mapping[str, Any],
    place_of: Callable[[At], Place],
    states: frozenset[str] = frozenset(),
) -> dict[str, Callable[[Array, At], Array]]:
    """Return placed edits as functions of the values at marks.

    Args:
        placed: the edit at each site, or `None`.
        place_of: layer and rows of a mark.
        states: states of recurrences, which are edited at each step.
    """
    given = {name: one for name, one in placed.items() if one is not None}
    stepped = {n: given.pop(n) for n in states & {*given}}
    return {
        **{name: _change(one, place_of) for name, one in given.items()},
        **{n + STEP: _at_each_step(one, place_of) for n, one in stepped.items()},
    }


def _at_each_step(
    placed: Any, place_of: Callable[[At], Place]
) -> Callable[[Array, At], Array]:
    """Return an edit at a state as a function of the state at one step."""

    def change(value: Array, at: At) -> Array:
        place = place_of(at)
        rows = place.rows.at_step(at.index["token"])
        # Packed rows have one state for each lane, a sequence has a single one.
        packed = UNNAMED in at.axes
        own = value if packed else value[None]
        new = edit(placed, own, Place(rows, place.layer))
        return new if packed else new[0]

    return change


def _change(
    placed: Any, place_of: Callable[[At], Place]
) -> Callable[[Array, At], Array]:
    """Return a placed edit as a function of the value at a mark."""

    def change(value: Array, at: At) -> Array:
        place = place_of(at)
        if at.axes == tuple(PACKED_GRID.split()):
            rows = place.after.rows
            return rows.to_grid(edit(placed, rows.from_grid(value), place.after))
        # Once attention has its keys and values, only rows that leave the block are
        # left.
        every = value.shape[0] == place.rows.position.shape[0]
        return edit(placed, value, place if every else place.after)

    return change


def _rows_first(name: str, value: Any, place: Place) -> Array:
    """Return an activation as its site has it.

    Raises:
        SiteError: the block marks it more than once.
    """
    rank = Site(name).rank - 1
    packed = name in GRIDS and not isinstance(place.after.rows, Sequence)
    if isinstance(value, tuple) or value.ndim != rank + packed:
        raise SiteError(
            f"A block marks the site {name!r} once; this one has several, which verbs "
            "on layers cannot tell apart. Give the others their own names."
        )
    return place.after.rows.from_grid(value) if packed else value
