"""AtP*: attribution patching with the QK fix and GradDrop."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mijax._errors import ConfigError
from mijax.attribution._atp import difference, product
from mijax.attribution._method import AbstractMethod, is_site
from mijax.attribution._qk_fix import recompute
from mijax.core import (
    AbstractMetric,
    AbstractModel,
    Site,
    Sites,
    StopGradient,
    gradients,
)
from mijax.core.internal import TokensLike, as_tokens, site_shapes

HEADS = ("q", "k")
WRITES = ("attn_out", "mlp_out")


class AtPStar(AbstractMethod):
    r"""AtP* (Kramár et al. 2024, arXiv:2403.00745).

    Two repairs of attribution patching, at the gradient of the clean run.

    *QK fix*, at `q` and `k`: the softmax is recomputed with the corrupt query, or with
    the corrupt key of one position at a time, and the change of the pattern multiplies
    the gradient there: $\sum_s (p_s - p^*_s) \, \partial m / \partial p_s$.

    *GradDrop*: one backward pass per layer $\ell$, in which what that layer's attention
    and MLP write is a constant; with the estimate $I_\ell$ from that pass, a score is
    $\frac{1}{L-1} \sum_\ell |I_\ell|$, a size without a sign. A node whose only way out
    is its own layer has $I_\ell = 0$ there, hence $L - 1$.

    Attributes:
        qk_fix: recompute the softmax at `q` and `k`.
        grad_drop: average over layers dropped; without it scores keep their sign.

    Examples:
        >>> AtPStar(grad_drop=False)  # the QK fix alone
        AtPStar(grad_drop=False)
    """

    qk_fix: bool = eqx.field(static=True, default=True)
    grad_drop: bool = eqx.field(static=True, default=True)

    def scores(
        self,
        model: AbstractModel,
        clean: TokensLike,
        corrupt: TokensLike,
        metric: AbstractMetric,
        sites: Any,
    ) -> Any:
        """Takes a gradient per layer, all by one program."""
        layers, batch = model.n_layers, as_tokens(clean).ndim - 1
        if self.grad_drop and layers < 2:
            raise ConfigError(
                f"GradDrop needs two layers or more, the model has {layers}: give "
                "AtPStar(grad_drop=False)."
            )
        flat, tree = jax.tree.flatten(sites, is_leaf=is_site)
        fixed = {i: s for i, s in enumerate(flat) if self.qk_fix and s.name in HEADS}
        plain = {i: s for i, s in enumerate(flat) if i not in fixed}
        names = {site.name for site in fixed.values()}
        again = recompute(model, clean, corrupt, names) if fixed else None
        changes = difference(model, clean, corrupt, plain)
        reads = (plain, Site("pattern") if fixed else None)

        def once(edits: Any) -> dict[int, Array]:
            """Estimates every site from one backward pass."""
            found, pattern = gradients(model, clean, metric, reads, edits)
            scores = product(changes, found)
            if again is not None:
                scores |= {i: again.scores(s, pattern) for i, s in fixed.items()}
            return scores

        if not self.grad_drop:
            scores = once(None)
        else:
            total = {}
            for layer in range(layers):
                for i, score in once(dropped(model, layer)).items():
                    size = jnp.abs(outside(score, flat[i], layer, batch))
                    total[i] = total.get(i, 0) + size
            scores = {i: score / (layers - 1) for i, score in total.items()}
        return jax.tree.unflatten(tree, [scores[i] for i in range(len(flat))])


def dropped(model: AbstractModel, layer: int) -> list[Sites[Any]]:
    """Makes what a layer writes a constant; the layer is data, not structure."""
    shapes = site_shapes(model, 1).blocks
    return [
        StopGradient().at(name, layer=layer)
        for name in WRITES
        if getattr(shapes, name) is not None
    ]


def outside(score: Array, site: Site, layer: int, batch: int) -> Array:
    """Sets to 0 what a layer itself writes: there the gradient is taken after it."""
    if site.name not in WRITES:
        return score
    if site.layer is None:
        other = jnp.arange(score.shape[batch]) != layer
    else:
        other = jnp.asarray(site.layer) != layer
    return score * other.reshape(other.shape + (1,) * (score.ndim - batch - other.ndim))
