"""The backward lens: MLP gradients, decoded into the vocabulary."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import SiteError
from mijax.core import capture, cross_entropy, gradients
from mijax.core.internal import (
    ModelLike,
    as_tokens,
    check_linear_writes,
    checked,
    opened,
)
from mijax.lens._reading import check_top
from mijax.nn.internal import readout_of


class BackwardReading(eqx.Module):
    """Gradients of each MLP's matrices for one update, decoded into tokens.

    The gradient of a matrix is a sum over tokens of an input times an output gradient.
    The lens decodes the factors that have the width of the stream.

    Attributes:
        inputs: top tokens when decoding the input of the first matrix,
            `[*batch, layer, seq, k]`.
        updates: tokens that a step of gradient descent writes into the second matrix,
            those with the lowest logits when decoding its output gradient.
        strength: norm of that gradient, `[*batch, layer, seq]`; 0 where the token has
            no effect on the loss.
    """

    inputs: Int[Array, "*read k"]
    updates: Int[Array, "*read k"]
    strength: Float[Array, "*read"]


@checked
def backward_lens(
    model: ModelLike, tokens: Any, target: Any, *, position: Any = None, top: int = 5
) -> BackwardReading:
    r"""Decode the update that gradient descent would write into each MLP.

    For $y = x W$, the gradient is $\sum_t x_t^\top \delta_t$ with $\delta_t = \partial
    L / \partial y_t$, and $L$ the negative log likelihood of the target (Katz et al.
    2024, arXiv:2402.12865). The plain unembedding decodes the forward input $x_t$ of
    the first matrix and the backward gradient $\delta_t$ at the second matrix's output.
    Since a step is $-\eta\,\delta$, it writes the tokens with the lowest logits of
    $\delta$.

    Args:
        model: a decoder whose blocks state `linear_writes`, or a language model
            (`mijax.models.load(...)`).
        tokens: token ids of one prompt or of a batch, or `mijax.data.Prompts`.
        target: token that the update should make more likely, one or one per prompt.
        position: position that predicts it, one or one per prompt; the last token by
            default (`prompts.last` if prompts are padded).
        top: number of tokens to return at each position.

    Returns:
        Tokens for the inputs and updates at every layer and position.

    Raises:
        SiteError: a model without MLPs.
        FrameError: a model without a `readout` or `linear_writes`.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> found = backward_lens(model, [5, 6, 7], 9, top=2)
        >>> found.updates.shape, float(found.strength[-1, :2].max())
        ((3, 3, 2), 0.0)
    """
    model, given = opened(model, tokens)
    check_linear_writes(model, "backward_lens")
    head = readout_of(model, "backward_lens", linear=False).head
    if getattr(model.blocks, "mlp", None) is None:
        raise SiteError("The model has no MLPs, so it has no MLP updates to decode.")
    check_top(top, head.weight.shape[0])
    ids = as_tokens(given)
    if position is None:
        position = ids.shape[-1] - 1 if not hasattr(given, "last") else given.last
    at = jnp.asarray(position)
    labels = jnp.asarray(target, jnp.int32)
    if ids.ndim == 2:
        labels = jnp.broadcast_to(labels, ids.shape[:1])[:, None]
        at = jnp.broadcast_to(at, ids.shape[:1])[:, None]
    loss = cross_entropy(labels, position=at)
    inputs = capture(model, given, "mlp_in")
    delta = gradients(model, given, loss, "mlp_out")
    return _read(head.weight, inputs, delta, top)


@eqx.filter_jit
def _read(
    table: Float[Array, "vocab embed"], inputs: Array, delta: Array, top: int
) -> BackwardReading:
    """Decode one layer and prompt at a time."""
    shape = inputs.shape

    def best(x: Float[Array, "seq embed"]) -> Int[Array, "seq k"]:
        return jax.lax.top_k(x @ table.T, top)[1]

    def tokens(x: Array) -> Array:
        found = jax.lax.map(best, x.reshape(-1, *shape[-2:]))
        return found.reshape(*shape[:-1], top)

    strength = jnp.linalg.norm(delta, axis=-1)
    return BackwardReading(tokens(inputs), tokens(-delta), strength)
