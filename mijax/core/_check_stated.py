"""Checks of what blocks state: their cache, and a mask for padding."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Int

from mijax._errors import ShapeError, SiteError
from mijax.core._block import stated
from mijax.core._cached import AbstractCached, Fixed
from mijax.core._model import AbstractModel
from mijax.core._sites import Sites
from mijax.core._tokens import padded_lengths

UNMASKED = (
    "This model is not causal, so padding would change its activations: give prompts "
    "of one length, or blocks that state `masks_padding = True`."
)


def check_cache(model: AbstractModel, verb: str) -> Mapping[str, AbstractCached]:
    """Return the cache that blocks state; refuse blocks that state none.

    Raises:
        SiteError: the class that defines the block's `__call__`, or a subclass, does
            not set `cache`.
    """
    found = stated(model.blocks, "cache")
    if found is None:
        raise SiteError(
            f"{verb} needs blocks that state what they cache of earlier tokens; "
            f"{type(model.blocks).__name__} does not state `cache`, such as `cache = "
            "nn.Attention.cache`."
        )
    return found


def mixes_once(kinds: Mapping[str, AbstractCached]) -> bool:
    """Return True if tokens are mixed in one place of a block, its attention.

    After it a block goes on with `stream.keep(rows)`, so that the last block computes
    only the rows that are read. One that mixes tokens again needs every row.
    """
    return {n for n, kind in kinds.items() if not isinstance(kind, Fixed)} == {"k", "v"}


def check_keys(model: AbstractModel, verb: str) -> None:
    """Refuse blocks that cache anything but the keys and values of attention.

    Raises:
        SiteError: another cache, or none that is stated.
    """
    found = check_cache(model, verb)
    if set(found) != {"k", "v"}:
        raise SiteError(
            f"{verb} needs blocks in which only attention mixes tokens, through their "
            f"keys and values; {type(model.blocks).__name__} caches "
            f"{', '.join(found) or 'nothing'}."
        )


def masked_lengths(
    model: AbstractModel, given: Any, seq: int
) -> Int[Array, "..."] | None:
    """Return the lengths that blocks mask padding by, `None` where none needs it.

    Args:
        model: the model. A token of a causal one reads no padding after it.
        given: tokens, or prompts.
        seq: number of tokens, padding included.

    Raises:
        ShapeError: padding, in a model that is not causal and whose blocks do not state
            `masks_padding`.
    """
    lengths = None if model.causal else padded_lengths(given, seq)
    if lengths is not None and not stated(model.blocks, "masks_padding"):
        raise ShapeError(UNMASKED)
    return lengths


def check_kept_keys(edits: Sites[Any], verb: str) -> None:
    """Refuse edits of rotated keys where a run goes on from keys before rotary.

    Raises:
        SiteError: an edit at `k_rotated`.
    """
    if edits.blocks.k_rotated is not None:
        raise SiteError(
            f"{verb} keeps keys from before rotary positions, so later tokens would "
            "not see an edit at 'k_rotated': edit 'k'."
        )
