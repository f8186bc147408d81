"""Attribution of a metric to latents, by gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ConfigError, PositionError, ShapeError
from mijax.core import (
    AbstractEdit,
    AbstractMetric,
    AbstractModel,
    Place,
    Site,
    capture,
)
from mijax.core.internal import (
    TokensLike,
    as_pairs,
    as_tokens,
    check_metric,
    length_of,
    lengths_of,
    masked_lengths,
    metric_of,
    over_prompts,
    site_shapes,
)
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._latents import (
    fitting,
    has_heads,
    of_one_layer,
    rows,
    written,
)
from mijax.dictionaries._wiring import SAE


class LatentScores(eqx.Module):
    """What each latent is worth to a metric, at each token.

    Attributes:
        latents: scores, in units of the metric, `[*batch, seq, latent]`. The mean over
            prompts and its interval is `mijax.interval(scores.latents.sum(1))`.
        error: that of what the dictionary misses, `[*batch, seq]`.
    """

    latents: Float[Array, "*batch seq latent"]
    error: Float[Array, "*batch seq"]

    def total(self) -> Float[Array, "*batch"]:
        """Returns the sum of all scores of each prompt."""
        return self.latents.sum((-2, -1)) + self.error.sum(-1)


def attribute_latents(
    model: AbstractModel,
    dictionary: Dictionary,
    clean: TokensLike,
    corrupt: TokensLike | None,
    metric: AbstractMetric,
    site: Site,
    *,
    steps: int | None = None,
) -> LatentScores:
    r"""Estimates what every latent of a clean run is worth to a metric.

    The nodes of feature circuits (Marks et al. 2024, arXiv:2403.19647). An activation
    is $x = \sum_i f_i d_i + c + e$, latents and what they miss. A score is

    $(f_i - f_i^*) \, d_i^\top \, \partial m / \partial x$, and
    $(e - e^*)^\top \partial m / \partial x$ for the error, with the gradient of the
    clean run (attribution patching); with `steps`, its mean at the middles of so many
    equal parts of the straight line from $x^*$ to $x$ (integrated gradients), all
    tokens together. Scores then add up to the metric's fall when the whole site is
    patched, with an error that falls as $1/\mathrm{steps}^2$. `Splice(sae,
    OnLatents(Patch(latents(...)), i))` measures exactly what a score estimates.

    Args:
        model: any `AbstractModel`; with a backward rule in it, if one is wanted.
        dictionary: an SAE of the site.
        clean: token ids of one prompt, or of a batch, or `mijax.data.Prompts`.
        corrupt: their counterparts, tokens of the same shape; `None` for latents and
            errors of zero.
        metric: a metric, for instance `logit_difference(answer, wrong)`.
        site: where, with its layer.
        steps: points of the path; `None` takes the gradient of the clean run.

    Returns:
        The scores: above 0 where the metric falls when a latent becomes what it is in
        the corrupt run; 0 at padding.

    Raises:
        ConfigError: no steps.
        ShapeError: a dictionary that is no SAE of the site.
        PositionError: clean and corrupt tokens of different shapes, or a site with
            a position or head.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> metric = mijax.logit_difference(3, 4)
        >>> scores = attribute_latents(
        ...     model, sae, [5, 6, 7], [5, 9, 7], metric, Site("resid_post", layer=1)
        ... )
        >>> scores.latents.shape, scores.error.shape
        ((3, 64), (3,))
    """
    if corrupt is not None:
        clean, corrupt = as_pairs(clean, corrupt)
    tokens = as_tokens(clean)
    masked = masked_lengths(model, clean, tokens.shape[-1])
    if steps is not None and steps < 1:
        raise ConfigError(f"A path has at least one point, got {steps}.")
    if not isinstance(dictionary.wiring, SAE):
        raise ShapeError(
            "Latents are attributed where their dictionary writes the activation that "
            f"it reads (an SAE), got a {type(dictionary.wiring).__name__}."
        )
    if site.position is not None or site.head is not None or site.feature is not None:
        raise PositionError(
            "Scores are of whole activations: give name and layer only."
        )
    of_one_layer(site)
    vocab = site_shapes(model, tokens.shape[-1]).logits.shape[-1]
    check_metric(metric, tokens, lengths=lengths_of(clean), vocab=vocab)
    x = capture(model, clean, site)
    y = None if corrupt is None else capture(model, corrupt, site)
    layer = None if site.layer is None else jnp.asarray(site.layer, jnp.int32)
    place = Site(site.name, layer)
    return _scores(model, dictionary, metric, place, (tokens, masked), x, y, steps)


@eqx.filter_jit
def _scores(
    model: AbstractModel,
    dictionary: Dictionary,
    metric: AbstractMetric,
    site: Site,
    prompts: tuple[Array, Array | None],
    x: Array,
    y: Array | None,
    steps: int | None,
) -> LatentScores:
    tokens, lengths = prompts
    heads = has_heads(site)
    wide = fitting(dictionary, x, heads=heads)
    latents = dictionary.encode(wide)
    if y is None:
        # Neither latents nor error: what is left is the decoder's bias.
        change = latents
        moved = wide - dictionary.weights.centre / dictionary.scale
    else:
        other = fitting(dictionary, y, heads=heads)
        change = latents - dictionary.encode(other)
        moved = wide - other

    def one(tokens: Array, prompt: Array | None) -> Array:
        here = x if prompt is None else x[prompt]
        step = moved if prompt is None else moved[prompt]
        step, length = step.reshape(here.shape), length_of(lengths, prompt)

        def value(at: Array) -> Array:
            edit = Given(at).at(site)
            return metric_of(model, metric, tokens, edit, prompt, length=length)

        gradient = jax.grad(value)
        here = here.astype(jnp.float32)
        if steps is None:
            return gradient(here)

        def add(total: Array, share: Array) -> tuple[Array, None]:
            return total + gradient(here - share * step) / steps, None

        shares = (jnp.arange(steps) + 0.5) / steps
        return jax.lax.scan(add, jnp.zeros_like(here), shares)[0]

    slope = fitting(dictionary, over_prompts(one, tokens), heads=heads)
    missed = moved - written(dictionary, change)
    return LatentScores(change * (slope @ rows(dictionary).T), (missed * slope).sum(-1))


class Given(AbstractEdit):
    """Replaces the rows of one prompt by others, of the positions where they stand."""

    value: Any

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the rows given."""
        return self.value[place.rows.position].reshape(x.shape).astype(x.dtype)
