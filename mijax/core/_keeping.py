"""Cached values that a pass over the blocks keeps."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from mijax._errors import SiteError
from mijax.core._cached import AbstractCached, Fixed
from mijax.core._rows import AbstractRows
from mijax.core._sites import BLOCK_SITES, BlockSites


def cached(
    acts: BlockSites[Any], kinds: Mapping[str, AbstractCached], rows: AbstractRows
) -> dict[str, Array]:
    """Return the values of a block's cache among its activations.

    Args:
        acts: activations of a block, those of the cache among them.
        kinds: what the block states.
        rows: the rows that enter the block.

    Raises:
        SiteError: a value without one entry per row.
    """
    others, found = getattr(acts, "others", {}), {}
    count = rows.position.shape[0]
    for name, kind in kinds.items():
        value = getattr(acts, name) if name in BLOCK_SITES else others[name]
        shape = value.shape if hasattr(value, "shape") else None
        if not isinstance(kind, Fixed) and (not shape or shape[0] != count):
            raise SiteError(
                f"A block marks {name!r} of its cache once, rows first: expected "
                f"[{count}, ...], got {shape or 'several values'}."
            )
        found[name] = value
    return found


def keeping(
    kinds: Mapping[str, AbstractCached],
    rows: AbstractRows,
    part: Callable[[AbstractCached, Array], Array] = lambda kind, value: value,
) -> dict[str, Any]:
    """Return the arguments of `scan_blocks` that keep the blocks' cache.

    Args:
        kinds: what the blocks state.
        rows: the rows.
        part: selects what is kept of each value of a layer.
    """

    def select(kept: Any, acts: BlockSites[Any], _: Array) -> Any:
        found = cached(acts, kinds, rows)
        return kept, {name: part(kinds[name], found[name]) for name in kinds}

    return {"want": tuple(kinds), "select": select}
