"""Routed experts in addition to an MLP for every token."""

import jax
from jaxtyping import Array, Float

from mijax.core import site
from mijax.nn._experts import Experts
from mijax.nn._mlp import AbstractMLP, GatedMLP


class SharedExperts(AbstractMLP):
    r"""A gated MLP for every token plus routed experts (DeepSeek-V3, Qwen3-Next).

    `mlp_pre` to `mlp_post` belong to the MLP. `shared_out` is its output, and `mlp_out`
    is `shared_out` plus the sum of `expert_out`.

    Attributes:
        shared: the MLP.
        experts: the experts.
        w_shared: makes the gate of the MLP's output, $\sigma(x \cdot w)$, the site
            `shared_gate`; `None` for ungated experts.
    """

    shared: GatedMLP
    experts: Experts
    w_shared: Float[Array, "*layer embed"] | None = None

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Computes both at the rows."""
        shared = self.shared(x)
        if self.w_shared is not None:
            gate = jax.nn.sigmoid(x @ self.w_shared)[:, None]
            shared = site("shared_gate", gate, "position scale") * shared
        return site("shared_out", shared, "position embed") + self.experts(x)
