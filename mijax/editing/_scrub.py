"""Concept scrubbing: erase a concept layer by layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mijax.core import Site, capture, compose
from mijax.core.internal import ModelLike, checked
from mijax.editing._eraser import AbstractErasure, fit_eraser
from mijax.editing._leace import LEACE

DEFAULT = LEACE()


@checked
def scrub(
    model: ModelLike,
    tokens: Any,
    labels: Any,
    *,
    layers: Sequence[int],
    position: Any,
    site: str = "resid_post",
    method: AbstractErasure = DEFAULT,
) -> Any:
    """Erase a concept layer by layer.

    Each eraser is fitted to activations of the model with the erasers of all earlier
    layers (concept scrubbing, Belrose et al. 2023, section 6).

    Args:
        model: a decoder, or a language model.
        tokens: prompts, as `mijax.capture` takes them.
        labels: the concept, one label per prompt.
        layers: layers to erase it from, in ascending order.
        position: position to fit the erasers at, or one per prompt, such as
            `prompts.last`. They apply at every position.
        site: the site.
        method: a method that fits an `Eraser`, which needs no labels when applied.

    Returns:
        The edits, for `mijax.run` and `mijax.edited`.

    Raises:
        MijaxError: as `mijax.capture` and `fit_eraser` do.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.random.randint(jax.random.key(1), (60, 5), 0, 64)
        >>> labels = np.asarray(tokens[:, 2] > 30, int)
        >>> edits = scrub(model, tokens, labels, layers=[0, 1, 2], position=2)
        >>> mijax.run(model, tokens, edits).shape
        (60, 5, 64)
    """
    edits = compose()
    for layer in layers:
        at = Site(site, layer=layer, position=position)
        x = capture(model, tokens, at, edits)
        eraser = fit_eraser(np.asarray(x, np.float32), labels, method=method)
        edits = compose(edits, eraser.at(site, layer=layer))
    return edits
