"""Routing: the weights of experts from the router's logits."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractRouting(eqx.Module):
    """Weights of experts, 0 for those that are not chosen."""

    @abc.abstractmethod
    def __call__(
        self, logits: Float[Array, "rows expert"]
    ) -> Float[Array, "rows expert"]:
        """Return the weight of every expert in every row."""


class TopExperts(AbstractRouting):
    r"""The `count` experts with the largest $p = \mathrm{softmax}(\text{logits})$.

    With `renormalize` their weights are divided by their sum, which equals a softmax
    over the chosen logits only (Shazeer et al. 2017, arXiv:1701.06538; Jiang et al.
    2024, arXiv:2401.04088).

    Attributes:
        count: number of experts for each token.
        renormalize: true if the weights of the chosen experts sum to 1.

    Examples:
        >>> TopExperts(1)(jnp.array([[0.0, 2.0, 1.0]])).round(3).tolist()
        [[0.0, 1.0, 0.0]]
    """

    count: int = eqx.field(static=True)
    renormalize: bool = eqx.field(static=True, default=True)

    def __call__(
        self, logits: Float[Array, "rows expert"]
    ) -> Float[Array, "rows expert"]:
        """Return the weight of every expert in every row."""
        weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        weights = weights * largest(weights, self.count)
        total = weights.sum(-1, keepdims=True)
        return weights / total if self.renormalize else weights


class GroupedTopExperts(AbstractRouting):
    r"""The best experts of the best groups, by corrected sigmoids (DeepSeek-V3).

    With $p = \sigma(\text{logits})$ and a correction $b$ (DeepSeek-AI 2024,
    arXiv:2412.19437), each of `groups` consecutive groups is rated by its two largest
    $p + b$; the `count` largest $p + b$ in the `kept` best groups are chosen. Weights
    are $p$ of the chosen, divided by their sum with `renormalize`, times `scale`.

    Attributes:
        correction: $b$, which balances the choice and is not in the weights.
        scale: factor of the weights; 0 in layers without experts.
        count: number of experts for each token.
        groups: number of groups.
        kept: number of groups that a token's experts are chosen from.
        renormalize: true if weights are divided by their sum.

    Examples:
        >>> choose = GroupedTopExperts(jnp.zeros(4), jnp.array(1.0), 1, 2, 1)
        >>> choose(jnp.array([[3.0, -9.0, 2.0, 2.0]])).round(3).tolist()
        [[0.0, 0.0, 1.0, 0.0]]
    """

    correction: Float[Array, "*layer expert"]
    scale: Float[Array, "*layer"]
    count: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    kept: int = eqx.field(static=True)
    renormalize: bool = eqx.field(static=True, default=True)

    def __call__(
        self, logits: Float[Array, "rows expert"]
    ) -> Float[Array, "rows expert"]:
        """Return the weight of every expert in every row."""
        weights = jax.nn.sigmoid(logits.astype(jnp.float32))
        rated = weights + self.correction.astype(jnp.float32)
        grouped = rated.reshape(len(rated), self.groups, -1)
        best = largest(jax.lax.top_k(grouped, 2)[0].sum(-1), self.kept)
        rated = jnp.where(best[..., None] > 0, grouped, -jnp.inf).reshape(rated.shape)
        weights = weights * largest(rated, self.count)
        if self.renormalize:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return self.scale * weights


def largest(x: Float[Array, "rows n"], count: int) -> Float[Array, "rows n"]:
    """Return 1 at the largest entries of every row, 0 elsewhere."""
    return jax.nn.one_hot(jax.lax.top_k(x, count)[1], x.shape[-1]).sum(-2)
