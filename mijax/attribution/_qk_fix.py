"""The QK fix: attention recomputed with other queries, or with one other key."""

from collections.abc import Collection

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mijax._errors import ConfigError
from mijax.core import AbstractModel, Patch, Site, Zero, capture
from mijax.core.internal import TokensLike
from mijax.nn import SinkSoftmax, SmearedKeys


class Recomputed(eqx.Module):
    """Attention scores of the clean run, and with corrupt queries or keys in it.

    Attributes:
        clean: scores of the clean run, `[*batch, layer, seq, heads, key_seq]`.
        changed: the same with the corrupt `q`, or the corrupt `k`, by that name.
        reads: which keys each query may read.
    """

    clean: Float[Array, "*batch layer seq heads key_seq"]
    changed: dict[str, Float[Array, "*batch layer seq heads key_seq"]]
    reads: Bool[Array, "*batch layer seq heads key_seq"]

    def scores(
        self, site: Site, gradient: Float[Array, "*batch layer seq heads key_seq"]
    ) -> Array:
        """Scores queries or keys from the gradient at the pattern.

        Args:
            site: of `q` or `k`.
            gradient: of the metric, at the whole pattern.

        Returns:
            What the site asks for of `[*batch, layer, seq, heads]`.
        """
        of = queries if site.name == "q" else keys
        found = of(self.clean, self.changed[site.name], self.reads, gradient)
        return selected(found, site)


def recompute(
    model: AbstractModel,
    clean: TokensLike,
    corrupt: TokensLike,
    names: Collection[str],
) -> Recomputed:
    """Computes scores of all layers at once, each from its clean residual stream.

    Args:
        model: the model.
        clean: tokens.
        corrupt: tokens that queries and keys are taken from.
        names: `q`, `k` or both.

    Returns:
        Attention scores.

    Raises:
        ConfigError: keys of a model in which a key holds some of the one before, or a
            pattern that is more than the softmax of its scores.
    """
    if _has(model, SinkSoftmax):
        raise ConfigError(
            "The QK fix recomputes the softmax of attention without its sinks, which "
            "this model has. Give AtPStar(qk_fix=False)."
        )
    if "k" in names and _has(model, SmearedKeys):
        raise ConfigError(
            "The QK fix changes one key at a time, and with SmearedKeys a key is part "
            "of two. Attribute to other sites than 'k', or give AtPStar(qk_fix=False)."
        )
    wanted = {name: Site(name) for name in ("resid_pre", "scores")}
    base = capture(model, clean, wanted)
    others = capture(model, corrupt, {name: Site(name) for name in names})
    stream = Patch(base["resid_pre"]).at("resid_pre")
    changed = {
        name: capture(
            model, clean, Site("scores"), [stream, Patch(others[name]).at(name)]
        )
        for name in names
    }
    # Equal scores give every key that may be read the same share, whatever the mask.
    even = capture(model, clean, Site("pattern"), Zero().at("scores"))
    return Recomputed(base["scores"], changed, even > 0)


def _has(model: AbstractModel, kind: type) -> bool:
    def found(node: object) -> bool:
        return isinstance(node, kind)

    return any(map(found, jax.tree.leaves(model, is_leaf=found)))


@eqx.filter_jit
def queries(
    clean: Float[Array, "*batch layer seq heads key_seq"],
    changed: Float[Array, "*batch layer seq heads key_seq"],
    reads: Bool[Array, "*batch layer seq heads key_seq"],
    gradient: Float[Array, "*batch layer seq heads key_seq"],
) -> Float[Array, "*batch layer seq heads"]:
    """Changes a query at a time: each has a row of the pattern to itself."""
    change = softmax(clean, reads) - softmax(changed, reads)
    return (change * gradient).sum(-1)


@eqx.filter_jit
def keys(
    clean: Float[Array, "*batch layer seq heads key_seq"],
    changed: Float[Array, "*batch layer seq heads key_seq"],
    reads: Bool[Array, "*batch layer seq heads key_seq"],
    gradient: Float[Array, "*batch layer seq heads key_seq"],
) -> Float[Array, "*batch layer seq heads"]:
    """Changes a key at a time, and sums over the queries that read it."""
    pattern, seq = softmax(clean, reads), jnp.arange(clean.shape[-1])

    def one(key: Array) -> Array:
        other = softmax(jnp.where(seq == key, changed, clean), reads)
        return ((pattern - other) * gradient).sum((-3, -1))

    return jnp.moveaxis(jax.lax.map(one, seq), 0, -2)


def softmax(scores: Array, reads: Array) -> Array:
    """Returns the pattern."""
    scores = scores.astype(jnp.float32)
    return jax.nn.softmax(jnp.where(reads, scores, jnp.finfo(jnp.float32).min))


def selected(scores: Float[Array, "*batch layer seq heads"], site: Site) -> Array:
    """Selects a site's layer, position and head."""
    batch = scores.ndim - 3
    if site.head is not None:
        scores = jnp.take(scores, jnp.asarray(site.head), axis=-1)
    if isinstance(site.position, slice):
        scores = scores[(slice(None),) * (batch + 1) + (site.position,)]
    elif jnp.ndim(site.position) if site.position is not None else False:
        take = lambda own, at: jnp.take(own, at, axis=1)  # noqa: E731
        scores = jax.vmap(take)(scores, jnp.asarray(site.position))
    elif site.position is not None:
        scores = jnp.take(scores, jnp.asarray(site.position), axis=batch + 1)
    if site.layer is not None:
        scores = jnp.take(scores, jnp.asarray(site.layer), axis=batch)
    return scores
