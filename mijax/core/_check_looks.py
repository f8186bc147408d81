"""Checks of metrics that read activations of a decoder."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax._errors import PositionError, SiteError
from mijax.core._check import check_sites
from mijax.core._decoder_sites import with_feature
from mijax.core._site_metric import site_metric
from mijax.core._traced import bounds_of_site, guarded


def check_looks(
    model: Any, tokens: Array, metric: Any, lengths: np.ndarray | None
) -> Any:
    """Refuse activations that a metric of a decoder cannot read.

    Args:
        model: the model.
        tokens: `[seq]` or `[batch, seq]`.
        metric: a metric.
        lengths: number of tokens of each prompt, if it is known.

    Returns:
        The metric, with indices of activations as arrays.

    Raises:
        SiteError: a site that the model lacks, outside the blocks, or in all layers.
        PositionError: a span, or padding.
    """
    for look in metric.looks():
        site = with_feature(look.site)
        shapes = check_sites(model, tokens, site, lengths=lengths)
        metric = guarded(metric, bounds_of_site(site, shapes, tokens.shape[-1]))
        if not site.layered or site.layer is None or jnp.ndim(site.layer):
            raise SiteError(
                f"site_metric reads one layer of a site in the blocks, got {site!r}: "
                "give it layer=."
            )
        if isinstance(site.position, slice):
            raise PositionError(
                "site_metric reads one position, one per prompt, or every position of "
                f"a decoder, got {site!r}."
            )
        padded = lengths is not None and np.any(lengths < tokens.shape[-1])
        if site.position is None and padded:
            raise PositionError(
                "site_metric would read padding: give its site position=, such as "
                "prompts.last."
            )
    is_look = lambda node: isinstance(node, site_metric)  # noqa: E731
    return jax.tree.map(
        lambda n: _as_data(n) if is_look(n) else n, metric, is_leaf=is_look
    )


def _as_data(look: site_metric) -> site_metric:
    """Return a metric whose indices are arrays, so that others share its program."""
    given = with_feature(look.site)
    site = given.replace(
        **{axis: jnp.asarray(index) for axis, index in given.indices.items()}
    )
    return eqx.tree_at(lambda m: m.site, look, site)
