"""Plain and gated MLPs with an edit at every step."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from mijax.core import BlockSites, Place, edit
from mijax.nn._attention import add
from mijax.nn._basic import Product

Activation = Callable[[Array], Array]


class AbstractMLP(eqx.Module):
    """What a block needs of an MLP."""

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "rows embed"], edits: BlockSites[Any], place: Place
    ) -> tuple[Float[Array, "rows embed"], dict[str, Array]]:
        """Returns what the MLP writes to the residual stream, and its activations."""


class MLP(AbstractMLP):
    """`w_out @ activation(w_in @ x + b_in) + b_out`."""

    w_in: Float[Array, "*layer embed mlp"]
    w_out: Float[Array, "*layer mlp embed"]
    b_in: Float[Array, "*layer mlp"] | None
    b_out: Float[Array, "*layer embed"] | None
    activation: Activation

    def __call__(
        self, x: Float[Array, "rows embed"], edits: BlockSites[Any], place: Place
    ) -> tuple[Float[Array, "rows embed"], dict[str, Array]]:
        """Computes the MLP at the rows."""
        x = edit(edits.mlp_in, x, place)
        pre = edit(edits.mlp_pre, add(x @ self.w_in, self.b_in), place)
        post = edit(edits.mlp_post, self.activation(pre), place)
        out = edit(edits.mlp_out, add(post @ self.w_out, self.b_out), place)
        return out, {"mlp_in": x, "mlp_pre": pre, "mlp_post": post, "mlp_out": out}


class GatedMLP(AbstractMLP):
    """`w_out @ (activation(w_gate @ x) * (w_in @ x))` (Shazeer 2020, arXiv:2002.05202).

    `mlp_pre` is the gate's input to the activation, `mlp_post` the product.
    """

    w_gate: Float[Array, "*layer embed mlp"]
    w_in: Float[Array, "*layer embed mlp"]
    w_out: Float[Array, "*layer mlp embed"]
    activation: Activation
    product: Product = Product()

    def __call__(
        self, x: Float[Array, "rows embed"], edits: BlockSites[Any], place: Place
    ) -> tuple[Float[Array, "rows embed"], dict[str, Array]]:
        """Computes the MLP at the rows."""
        x = edit(edits.mlp_in, x, place)
        pre = edit(edits.mlp_pre, x @ self.w_gate, place)
        post = self.product("nm,nm->nm", self.activation(pre), x @ self.w_in)
        post = edit(edits.mlp_post, post, place)
        out = edit(edits.mlp_out, post @ self.w_out, place)
        return out, {"mlp_in": x, "mlp_pre": pre, "mlp_post": post, "mlp_out": out}
