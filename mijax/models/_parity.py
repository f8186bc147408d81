"""A decoder next to another implementation of it, site by site."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from mijax.core import AbstractModel, Site, capture


@runtime_checkable
class Reference(Protocol):
    """Activations and logits of another implementation for one prompt.

    Attributes:
        hidden: the residual stream that enters each block, then the output of the final
            norm, `[layer + 1, seq, embed]`.
        patterns: attention patterns, `[layer, heads, seq, key_seq]`, or `None`.
        logits: `[seq, vocab]`.
    """

    hidden: Any
    patterns: Any
    logits: Any


@dataclasses.dataclass(frozen=True)
class SiteDifference:
    """Largest difference of one activation from a reference.

    Attributes:
        site: its name.
        layer: its layer, or `None`.
        difference: the largest difference of any entry.
        size: the largest absolute value of the reference.
    """

    site: str
    layer: int | None
    difference: float
    size: float

    def within(self, tolerance: float) -> bool:
        """Compare the difference with the tolerance times the size.

        Values below 1 count as 1. NaN is not within any tolerance.
        """
        return self.difference <= tolerance * max(1.0, self.size)


def compare(model: AbstractModel, tokens: Any, reference: Reference) -> Any:
    """Compare a decoder with a reference, in the order of computation.

    Args:
        model: the decoder.
        tokens: ids of one prompt, `[seq]`.
        reference: what the other implementation computes for it.

    Returns:
        A `SiteDifference` for the residual stream and the patterns of every layer, the
        final stream and the logits: a list.

    Examples:
        >>> import jax, mijax, types
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> tokens = jnp.array([5, 6, 7])
        >>> logits, acts = model(tokens)
        >>> hidden = jnp.concatenate([acts.blocks.resid_pre, acts.resid_final[None]])
        >>> same = types.SimpleNamespace(hidden=hidden, patterns=None, logits=logits)
        >>> [d.difference for d in compare(model, tokens, same)]
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    names = ("resid_pre", "pattern", "resid_final", "logits")
    wanted = [n for n in names if n != "pattern" or reference.patterns is not None]
    acts = capture(model, jnp.asarray(tokens), {name: Site(name) for name in wanted})
    found = []
    for layer in range(model.n_layers):
        stream = acts["resid_pre"][layer]
        found.append(_difference("resid_pre", layer, stream, reference.hidden[layer]))
        if reference.patterns is not None:
            pattern = jnp.moveaxis(acts["pattern"][layer], 1, 0)
            theirs = reference.patterns[layer]
            found.append(_difference("pattern", layer, pattern, theirs))
    found.append(
        _difference("resid_final", None, acts["resid_final"], reference.hidden[-1])
    )
    found.append(_difference("logits", None, acts["logits"], reference.logits))
    return found


def _difference(site: str, layer: int | None, ours: Any, theirs: Any) -> SiteDifference:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return SiteDifference(site, layer, np.inf, 0.0)
    apart = float(np.abs(ours - theirs).max())
    return SiteDifference(site, layer, apart, float(np.abs(theirs).max()))
