"""Checks of what blocks state that they cache."""

from collections.abc import Mapping

from mijax._errors import SiteError
from mijax.core._block import stated
from mijax.core._cached import AbstractCached
from mijax.core._model import AbstractModel


def check_cache(model: AbstractModel, verb: str) -> Mapping[str, AbstractCached]:
    """Return what the blocks cache, or refuse blocks that do not state it.

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
