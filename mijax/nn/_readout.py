"""The readout: the linear map from the residual stream to the outputs."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import FrameError
from mijax.nn._basic import (
    Identity,
    SoftCap,
    Unembedding,
    scaled_like,
)


@final
class Readout(eqx.Module):
    """States how a model computes its outputs from the residual stream.

    Outputs are `cap(head(norm(x)))`, with `x` the stream after the last block. A
    decoder returns it from `AbstractModel.readout`. A function states it with
    `mijax.model(fn, example, readout=...)`, and then also names the sites of the stream
    and of the terms that are added to it.

    Attributes:
        norm: the final norm, or `Identity()`; rules may have wrapped it.
        head: the unembedding, `weight[outputs, embed]`.
        cap: what is applied to the outputs: nothing, or `SoftCap`.
        stream: site of the residual stream, of which the last layer is read; of
            functions only.
        writes: sites whose values are added to the stream; of functions only.
        position: index on the first axis of the stream that is read, such as 0 for the
            class token of an image model; every one by default. Of functions only.

    Examples:
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> logits, acts = model(jnp.array([5, 6, 7]))
        >>> found = model.readout(acts.blocks.resid_post[-1])
        >>> bool(jnp.allclose(found, logits, atol=1e-5))
        True
    """

    norm: Any
    head: Unembedding
    cap: Identity | SoftCap = Identity()
    stream: str = eqx.field(static=True, default="resid_post")
    writes: tuple[str, ...] = eqx.field(static=True, default=())
    position: int | None = eqx.field(static=True, default=None)

    def __call__(self, x: Float[Array, "*rows embed"]) -> Float[Array, "*rows outputs"]:
        """Return the outputs."""
        return self.cap(self.head(self.norm(x)))

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.head.weight.shape[0]

    @property
    def width(self) -> int:
        """Size of the residual stream."""
        return self.head.weight.shape[1]

    def direction(
        self,
        x: Float[Array, "*rows embed"],
        output: Int[Array, ""],
        other: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "*rows embed"], Float[Array, ""]]:
        """Return the direction in the stream that an output reads.

        Args:
            x: the residual stream, which sets the scale of the norm.
            output: index of the output.
            other: index of an output that is subtracted.

        Returns:
            The gradient of the output in the stream with the scale frozen, and what
            biases add to the output.
        """
        head = self.head
        to = head.weight[output].astype(jnp.float32)
        bias = jnp.float32(0.0) if head.bias is None else head.bias[output]
        if other is not None:
            to = to - head.weight[other]
            bias = bias if head.bias is None else bias - head.bias[other]
        norm_bias = getattr(self.norm, "bias", None)
        if norm_bias is not None:
            bias = bias + to @ norm_bias
        wide = x.astype(jnp.float32)
        linear = lambda term: (scaled_like(self.norm, term, wide) * to).sum()  # noqa: E731
        return jax.grad(linear)(jnp.zeros_like(wide)), bias


def readout_of(model: Any, verb: str, *, linear: bool = True) -> Readout:
    """Return the readout that a model states.

    Args:
        model: a decoder, or a `FunctionModel`.
        verb: what needs it, for the error.
        linear: whether outputs must be linear in the normalized stream.

    Raises:
        FrameError: a model that states none, or outputs that are capped.
    """
    found = getattr(model, "readout", None)
    if not isinstance(found, Readout):
        raise FrameError(
            f"{verb} needs a model that states how its outputs read the residual "
            f"stream; {type(model).__name__} states no `readout` (see nn.Readout)."
        )
    if linear and not isinstance(found.cap, Identity):
        raise FrameError(
            f"{verb} needs logits that are linear in the normalized residual stream; "
            f"this model applies {type(found.cap).__name__} to them."
        )
    return found
