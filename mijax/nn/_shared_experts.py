"""Experts next to an MLP that every token passes."""

from jaxtyping import Array, Float

from mijax.nn._experts import Experts
from mijax.nn._mlp import AbstractMLP, GatedMLP


class SharedExperts(AbstractMLP):
    """A gated MLP of every token plus chosen experts (DeepSeek-V3).

    `mlp_pre` to `mlp_post` are those of the MLP, and its output is `mlp_out` minus the
    sum of `expert_out`.

    Attributes:
        shared: the MLP.
        experts: the experts.
    """

    shared: GatedMLP
    experts: Experts

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Computes both at the rows."""
        return self.shared(x) + self.experts(x)
