"""The Jacobian lens: the mean effect of each layer's stream on the last one."""

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
    transformer-circuits.pub/2026/workspace). `fit_jacobian_lens` makes one,
    `load_jacobian_lens` reads published ones. It belongs to the weights as they were
    loaded: models with folded or centered weights are refused.

    Attributes:
        jacobian: $J_l$ of every layer but the last, `[layer - 1, embed out, embed in]`.
        prompts: number of prompts of the mean.

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
        """Site that is read: the output of every block."""
        return "resid_post"

    @property
    def rows(self) -> int:
        """Number of layers, the last one included."""
        return len(self.jacobian) + 1

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Refuse a model of another size, or with processed weights."""
        check_fit("Jacobian lens", (self.rows, self.jacobian.shape[-1]), layers, embed)
        check_raw(model)

    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Transport the stream of every layer, in float32 at least."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        moved = jnp.einsum("plte,lfe->pltf", wide[:, :-1], self.jacobian)
        return jnp.concatenate([moved, wide[:, -1:]], axis=1).astype(x.dtype)

    def vectors(
        self, model: AbstractModel, tokens: Any
    ) -> Float[Array, "layer token embed"]:
        r"""Return the direction of each token at every layer, $v = J_l^\top W_U[t]$.

        The weight of the final norm is not in it.

        Args:
            model: the model that the lens was fitted on.
            tokens: a token id, or a list of them.

        Raises:
            ShapeError: a model of another size, or a token beyond its vocabulary.
            FrameError: processed weights, or a model that states no `readout`.
        """
        head = readout_of(model, "vectors", linear=False).head.weight
        self.check(model, model.n_layers, head.shape[-1])
        ids = np.atleast_1d(known_tokens(tokens, len(head)))
        rows = head[ids].astype(jnp.float32)
        moved = jnp.einsum("nf,lfe->lne", rows, self.jacobian)
        return jnp.concatenate([moved, rows[None]])


def known_tokens(tokens: Any, vocab: int) -> Int[np.ndarray, "..."]:
    """Return token ids; refuse others.

    Raises:
        ShapeError: ids that are not in the vocabulary, or none.
    """
    ids = np.asarray(integers(tokens, "A token id (of a text: tokenizer.token(text))"))
    if ids.ndim > 1 or not ids.size or not 0 <= ids.min() <= ids.max() < vocab:
        raise ShapeError(
            f"Give a token id from 0 to {vocab - 1} or a list of them, got {tokens!r}."
        )
    return ids


def check_raw(model: Any) -> None:
    """Refuse a model whose weights were processed.

    Raises:
        FrameError: folded or centered weights.
    """
    while hasattr(model, "edits") and hasattr(model, "model"):
        model = model.model
    frame = getattr(model, "frame", ())
    if frame:
        raise FrameError(
            "A Jacobian lens belongs to weights as they were loaded, but this model "
            f"has {', '.join(frame)} applied: use the loaded model."
        )
