"""The Jacobian lens: the mean effect of each layer's stream on the final one."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import FrameError, ShapeError
from mijax.core import AbstractModel
from mijax.core.internal import integers
from mijax.lens._lens import AbstractLens, check_fit
from mijax.nn.internal import readout_of


class JacobianLens(AbstractLens):
    r"""The Jacobian lens: $\ell_l = W_U\,\mathrm{LN}(J_l h_l)$.

    $$J_l = \mathbb{E}_{\text{prompt}} \Big[ \frac{1}{|S|} \sum_{t \in S}
    \sum_{t' \in S, t' \ge t} \frac{\partial h_{L-1,t'}}{\partial h_{l,t}} \Big]$$

    maps the output of block $l$ to the output of the last block, before the final norm;
    the last layer is the identity (Gurnee et al. 2026, "Verbalizable Representations
    Form a Global Workspace in Language Models",
    transformer-circuits.pub/2026/workspace). `fit_jacobian_lens` fits one, and
    `load_jacobian_lens` loads published ones. A lens is valid only for the weights as
    loaded: models with folded or centered weights raise an error.

    Attributes:
        jacobian: $J_l$ for every layer except the last,
            `[layer - 1, embed out, embed in]`.
        prompts: number of prompts in the mean.

    Examples:
        >>> import jax.numpy as jnp
        >>> lens = JacobianLens(2 * jnp.eye(4)[None], prompts=1)
        >>> lens(jnp.ones((1, 2, 1, 4)))[0, :, 0, 0].tolist()
        [2.0, 1.0]
    """

    jacobian: Float[Array, "fitted embed embed"]
    prompts: int = eqx.field(static=True)

    @property
    def site(self) -> str:
        """Site that the lens reads: the output of every block."""
        return "resid_post"

    @property
    def rows(self) -> int:
        """Number of layers, including the last one."""
        return len(self.jacobian) + 1

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Raise if the lens does not fit the model's size or weight processing."""
        check_fit("Jacobian lens", (self.rows, self.jacobian.shape[-1]), layers, embed)
        check_raw(model)

    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Map the stream of every layer, in float32 or higher precision."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        moved = jnp.einsum("plte,lfe->pltf", wide[:, :-1], self.jacobian)
        return jnp.concatenate([moved, wide[:, -1:]], axis=1).astype(x.dtype)

    def vectors(
        self, model: AbstractModel, tokens: Any
    ) -> Float[Array, "layer token embed"]:
        r"""Return the direction of each token at every layer, $v = J_l^\top W_U[t]$.

        It does not include the weight of the final norm.

        Args:
            model: the model that the lens was fitted on.
            tokens: a token id, or a list of them.

        Raises:
            ShapeError: the lens does not fit the model, or a token is not in its
                vocabulary.
            FrameError: processed weights, or a model without a `readout`.
        """
        head = readout_of(model, "vectors", linear=False).head.weight
        self.check(model, model.n_layers, head.shape[-1])
        ids = np.atleast_1d(known_tokens(tokens, len(head)))
        rows = head[ids].astype(jnp.float32)
        moved = jnp.einsum("nf,lfe->lne", rows, self.jacobian)
        return jnp.concatenate([moved, rows[None]])


def known_tokens(tokens: Any, vocab: int) -> Int[np.ndarray, "..."]:
    """Return checked token ids.

    Raises:
        ShapeError: ids outside the vocabulary, or no ids.
    """
    ids = np.asarray(integers(tokens, "A token id (of a text: tokenizer.token(text))"))
    if ids.ndim > 1 or not ids.size or not 0 <= ids.min() <= ids.max() < vocab:
        raise ShapeError(
            f"Give a token id from 0 to {vocab - 1} or a list of them, got {tokens!r}."
        )
    return ids


def check_raw(model: Any) -> None:
    """Raise if the model's weights were processed.

    Raises:
        FrameError: folded or centered weights.
    """
    while hasattr(model, "edits") and hasattr(model, "model"):
        model = model.model
    frame = getattr(model, "frame", ())
    if frame:
        raise FrameError(
            "A Jacobian lens is valid for weights as loaded, but this model has "
            f"{', '.join(frame)} applied: use the loaded model."
        )
