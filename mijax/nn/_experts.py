"""Mixtures of experts: a router chooses gated MLPs for each token."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.core import site
from mijax.nn._attention import add
from mijax.nn._basic import Identity, Product
from mijax.nn._mlp import AbstractMLP, Activation
from mijax.nn._routing import AbstractRouting

ROUTED = "position expert"


class Experts(AbstractMLP):
    r"""Gated MLPs of which a router chooses some for each token.

    $$\sum_i w_i E_i(x), \quad w = \mathrm{routing}(x W_r)$$

    $E_i$ is a gated MLP (`GatedMLP`), with biases where the model has them. The weights
    $w_i$ are 0 for experts that are not chosen (`TopExperts`, `GroupedTopExperts`).

    Sites, next to those of the block:

    - `router_logits`, `[seq, experts]`: what the routing reads.
    - `router_weights`, `[seq, experts]`: $w_i$, 0 for experts that are not chosen. An
      edit is not renormalized. A weight that an edit gives to an expert that is not
      chosen makes it take part.
    - `expert_out`, `[seq, experts, embed]`: $w_i E_i(x)$, the output of each expert
      after weighting. Their sum is `mlp_out`, unless a norm follows.

    Every expert is computed for every token, so that one program serves any choice of
    experts. That costs `experts / count` times the FLOPs of the chosen experts, and
    memory for `[seq, experts, mlp]` and `[seq, experts, embed]` in each layer.

    Attributes:
        activation: what is applied to the gate.
        up: what is applied to the other factor; nothing by default.
        routing: makes weights of the router's logits.

    Examples:
        >>> import jax
        >>> from mijax.nn import TopExperts
        >>> draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
        >>> mlp = Experts(
        ...     w_router=draw(0, 8, 4),
        ...     w_gate=draw(1, 8, 4, 16),
        ...     w_in=draw(2, 8, 4, 16),
        ...     w_out=draw(3, 4, 16, 8),
        ...     activation=jax.nn.silu,
        ...     routing=TopExperts(2),
        ... )
        >>> mlp(draw(4, 5, 8)).shape
        (5, 8)
    """

    w_router: Float[Array, "*layer embed expert"]
    w_gate: Float[Array, "*layer embed expert mlp"]
    w_in: Float[Array, "*layer embed expert mlp"]
    w_out: Float[Array, "*layer expert mlp embed"]
    activation: Activation
    routing: AbstractRouting
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
        weights = site("router_weights", self.routing(logits).astype(x.dtype), ROUTED)
        gate = add(jnp.einsum("ne,exm->nxm", x, self.w_gate), self.b_gate)
        up = add(jnp.einsum("ne,exm->nxm", x, self.w_in), self.b_in)
        post = self.product("nxm,nxm->nxm", self.activation(gate), self.up(up))
        each = add(jnp.einsum("nxm,xme->nxe", post, self.w_out), self.b_out)
        each = self.product("nx,nxe->nxe", weights, each)
        return site("expert_out", each, f"{ROUTED} embed").sum(1)
