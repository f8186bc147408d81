"""Mixtures of experts: a router chooses gated MLPs for each token."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.core import site
from mijax.nn._attention import add
from mijax.nn._basic import Identity, Product
from mijax.nn._mlp import AbstractMLP, Activation

ROUTED = "position expert"


class Experts(AbstractMLP):
    r"""Gated MLPs of which a router chooses `top_k` for each token.

    $$\sum_{i \in \mathrm{top}_k(p)} w_i E_i(x), \quad p = \mathrm{softmax}(x W_r)$$

    $E_i$ is a gated MLP (`GatedMLP`), with biases where the model has them. The weights
    $w_i$ are $p_i$, or, with `renormalize`, $p_i$ divided by the sum over the chosen
    experts, which equals a softmax over their logits only (Shazeer et al. 2017,
    arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088).

    Sites, next to those of the block:

    - `router_logits`, `[seq, experts]`: input of the softmax.
    - `router_weights`, `[seq, experts]`: $w_i$, 0 for experts that are not chosen. An
      edit is not renormalized. A weight that an edit gives to an expert that is not
      chosen makes it take part.
    - `expert_out`, `[seq, experts, embed]`: $w_i E_i(x)$, the output of each expert
      after weighting. Their sum is `mlp_out`, unless a norm follows.

    Every expert is computed for every token, so that one program serves any choice of
    experts. That costs `experts / top_k` times the FLOPs of the chosen experts, and
    memory for `[seq, experts, mlp]` and `[seq, experts, embed]` in each layer.

    Attributes:
        activation: what is applied to the gate.
        up: what is applied to the other factor; nothing by default.
        top_k: number of experts for each token.
        renormalize: whether the weights of the chosen experts sum to 1.

    Examples:
        >>> draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
        >>> mlp = Experts(
        ...     w_router=draw(0, 8, 4),
        ...     w_gate=draw(1, 8, 4, 16),
        ...     w_in=draw(2, 8, 4, 16),
        ...     w_out=draw(3, 4, 16, 8),
        ...     activation=jax.nn.silu,
        ...     top_k=2,
        ... )
        >>> mlp(draw(4, 5, 8)).shape
        (5, 8)
    """

    w_router: Float[Array, "*layer embed expert"]
    w_gate: Float[Array, "*layer embed expert mlp"]
    w_in: Float[Array, "*layer embed expert mlp"]
    w_out: Float[Array, "*layer expert mlp embed"]
    activation: Activation
    top_k: int = eqx.field(static=True)
    renormalize: bool = eqx.field(static=True, default=True)
    product: Product = Product()
    b_router: Float[Array, "*layer expert"] | None = None
    b_gate: Float[Array, "*layer expert mlp"] | None = None
    b_in: Float[Array, "*layer expert mlp"] | None = None
    b_out: Float[Array, "*layer expert embed"] | None = None
    up: Activation = Identity()

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Computes the chosen experts at the rows."""
        logits = add(x @ self.w_router, self.b_router)
        logits = site("router_logits", logits, ROUTED)
        weights = site("router_weights", self._weights(logits).astype(x.dtype), ROUTED)
        gate = add(jnp.einsum("ne,exm->nxm", x, self.w_gate), self.b_gate)
        up = add(jnp.einsum("ne,exm->nxm", x, self.w_in), self.b_in)
        post = self.product("nxm,nxm->nxm", self.activation(gate), self.up(up))
        each = add(jnp.einsum("nxm,xme->nxe", post, self.w_out), self.b_out)
        each = self.product("nx,nxe->nxe", weights, each)
        return site("expert_out", each, f"{ROUTED} embed").sum(1)

    def _weights(self, logits: Float[Array, "rows expert"]) -> Array:
        """Return the weight of every expert in every row."""
        share = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        chosen = jax.lax.top_k(share, self.top_k)[1]
        share = share * jax.nn.one_hot(chosen, share.shape[-1]).sum(-2)
        return share / share.sum(-1, keepdims=True) if self.renormalize else share
