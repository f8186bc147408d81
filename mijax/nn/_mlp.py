"""Plain and gated MLPs with a site at every step."""

import abc
from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float

from mijax.core import site
from mijax.nn._attention import add
from mijax.nn._basic import Product

Activation = Callable[[Array], Array]
MLP_AXES = "position mlp"


class AbstractMLP(eqx.Module):
    """What a block needs of an MLP."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Return the output of the MLP."""


class MLP(AbstractMLP):
    """`w_out @ activation(w_in @ x + b_in) + b_out`."""

    w_in: Float[Array, "*layer embed mlp"]
    w_out: Float[Array, "*layer mlp embed"]
    b_in: Float[Array, "*layer mlp"] | None
    b_out: Float[Array, "*layer embed"] | None
    activation: Activation

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Computes the MLP at the rows."""
        pre = site("mlp_pre", add(x @ self.w_in, self.b_in), MLP_AXES)
        post = site("mlp_post", self.activation(pre), MLP_AXES)
        return add(post @ self.w_out, self.b_out)


class GatedMLP(AbstractMLP):
    """`w_out @ (activation(w_gate @ x) * (w_in @ x))` (Shazeer 2020, arXiv:2002.05202).

    Each product with a matrix has a bias where the model has one.
    `mlp_pre` is the gate's input to the activation and `mlp_gate` its output; `mlp_up`
    is the other factor, and `mlp_post` the product.
    """

    w_gate: Float[Array, "*layer embed mlp"]
    w_in: Float[Array, "*layer embed mlp"]
    w_out: Float[Array, "*layer mlp embed"]
    activation: Activation
    product: Product = Product()
    b_gate: Float[Array, "*layer mlp"] | None = None
    b_in: Float[Array, "*layer mlp"] | None = None
    b_out: Float[Array, "*layer embed"] | None = None

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Computes the MLP at the rows."""
        pre = site("mlp_pre", add(x @ self.w_gate, self.b_gate), MLP_AXES)
        gate = site("mlp_gate", self.activation(pre), MLP_AXES)
        up = site("mlp_up", add(x @ self.w_in, self.b_in), MLP_AXES)
        post = self.product("nm,nm->nm", gate, up)
        return add(site("mlp_post", post, MLP_AXES) @ self.w_out, self.b_out)
