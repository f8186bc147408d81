"""`attribute`: one verb for every attribution method."""

from typing import Any

import jax

from mijax._errors import SiteError
from mijax.attribution._atp import AtP
from mijax.attribution._method import AbstractMethod, is_site
from mijax.core import AbstractMetric, AbstractModel
from mijax.core.internal import (
    TokensLike,
    as_pairs,
    as_tokens,
    check_metric,
    check_sites,
    checked,
    lengths_of,
)


@checked
def attribute(
    model: AbstractModel,
    clean: TokensLike,
    corrupt: Any,
    metric: AbstractMetric,
    sites: Any,
    *,
    method: AbstractMethod | None = None,
) -> Any:
    """Estimates what every site of a clean run is worth to a metric.

    A score above 0 says that the metric falls when the site's activation is replaced
    by that of the corrupt run, position by position and head by head. All prompts run
    at once, as in `gradients`; where they do not fit, give them in parts.

    Args:
        model: any `AbstractModel`.
        clean: token ids of one prompt, or of a batch, or `mijax.data.Prompts`.
        corrupt: their counterparts, tokens of the same shape.
        metric: a metric, for instance `logit_difference(answer, wrong)`.
        sites: a `Site`, or any tree of them (a dict, a list), without `feature`.
        method: `AtP()` by default.

    Returns:
        The tree of `sites` with an array for each, `[*batch, layer, seq]`, or
        `[*batch, layer, seq, heads]` where the site has heads: the units of the
        metric. An integer index of a site drops its axis. Padding scores 0.
        `interval` makes means and confidence intervals of prompts.

    Raises:
        SiteError: a site or index that the model does not have, or a feature.
        PositionError: clean and corrupt prompts of different lengths.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> attribute(model, [5, 6, 7], [5, 9, 7], metric, mijax.Site("z")).shape
        (3, 3, 4)
    """
    clean, corrupt = as_pairs(clean, corrupt)
    lengths, tokens = lengths_of(clean), as_tokens(clean)
    shapes = check_sites(model, tokens, sites, lengths=lengths)
    check_metric(metric, tokens, lengths=lengths, vocab=shapes.logits.shape[-1])
    for site in jax.tree.leaves(sites, is_leaf=is_site):
        if site.feature is not None:
            raise SiteError(
                f"attribute sums over the last axis of {site.name!r}, so it takes no "
                "feature; multiply capture and gradients for one score per feature."
            )
    method = AtP() if method is None else method
    return method.scores(model, clean, corrupt, metric, sites)
