"""Directional ablation: a direction removed from the stream, or from the weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import FrameError, ShapeError
from mijax.core import AbstractEdit, AbstractModel
from mijax.core.internal import check_linear_writes, reals
from mijax.nn import Embedding, Transformer, Unembedding

# Added to the norm, so that a zero direction does not divide by zero.
EPSILON = 1e-8
SITES = ("resid_pre", "attn_out", "mlp_out")


class Ablation(AbstractEdit):
    r"""Removes one direction: $x \mapsto x - \hat r\,\hat r^\top x$.

    $\hat r = r / (\|r\| + 10^{-8})$, so a zero vector removes nothing. To remove
    several directions at once, use `mijax.Project`.

    Attributes:
        direction: the vector `r`.

    Raises:
        ShapeError: the vector's width differs from the site's.

    Examples:
        >>> edit = Ablation(jnp.array([2.0, 0.0]))
        >>> edit(jnp.array([[3.0, 4.0]]), None).tolist()
        [[0.0, 4.0]]
    """

    direction: Float[Array, " embed"] = eqx.field(converter=reals)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Raise if the vector's width differs from the site's."""
        self._check(spec.shape[-1])

    def _check(self, size: int) -> None:
        if self.direction.shape != (size,):
            raise ShapeError(
                f"The direction has shape {self.direction.shape}, and the site width "
                f"{size}: it was made for another model or site."
            )

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Return the rows without the direction."""
        # The verbs do not check operands of function models.
        self._check(x.shape[-1])
        return without(x, self.direction)


def without(x: Float[Array, "..."], direction: Float[Array, " embed"]) -> Array:
    """Remove a direction from the last axis, in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    unit = direction / (jnp.linalg.norm(direction) + EPSILON)
    return (wide - (wide @ unit)[..., None] * unit).astype(x.dtype)


def ablate_direction(direction: Any, *, sites: Sequence[str] = SITES) -> list[Any]:
    """Return edits that remove a direction wherever the residual stream is written.

    The direction is removed from the input of every block and from the outputs of
    attention and MLPs, at every token, so no block ever reads it.

    Args:
        direction: the vector, `[embed]`.
        sites: sites to remove it from; leave out `mlp_out` for a model without MLPs.

    Returns:
        Placed edits.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> r = jnp.arange(32.0)
        >>> site = mijax.Site("resid_post")
        >>> edits = ablate_direction(r)
        >>> acts = mijax.capture(model, jnp.array([5, 6, 7]), site, edits)
        >>> bool((jnp.abs(acts @ r) < 1e-3).all())
        True

    Source: Arditi et al. 2024, arXiv:2406.11717.
    """
    edit = Ablation(direction)
    return [edit.at(site) for site in sites]


def orthogonalize(model: Any, direction: Any) -> Any:
    r"""Return a model whose weights cannot write a direction.

    $W \leftarrow W - (W \hat r)\,\hat r^\top$ for the embeddings and for the output
    weights and biases of attention and MLPs. This is the permanent form of
    `ablate_direction`, with the same result up to rounding. A tied unembedding keeps
    its original weights.

    Args:
        model: a `mijax.nn.Transformer` whose blocks add to the residual stream, or a
            language model with one.
        direction: the vector, `[embed]`.

    Returns:
        The same kind of model.

    Raises:
        FrameError: a different kind of model, blocks that normalize their outputs, or
            weights that write to the stream elsewhere, such as a norm of embeddings.
        ShapeError: the vector's width differs from the model's.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> r, tokens = jnp.arange(32.0), jnp.array([5, 6, 7])
        >>> logits = mijax.run(orthogonalize(model, r), tokens)
        >>> ablated = mijax.run(model, tokens, ablate_direction(r))
        >>> bool(jnp.allclose(logits, ablated, atol=1e-4))
        True
    """
    inner = getattr(model, "model", None)
    if isinstance(inner, AbstractModel) and not isinstance(model, AbstractModel):
        return dataclasses.replace(model, model=orthogonalize(inner, direction))
    if not isinstance(model, Transformer):
        raise FrameError(
            f"Expected a Transformer to orthogonalize, got {type(model).__name__}: "
            "use ablate_direction(direction) as edits instead."
        )
    check_linear_writes(model, "Orthogonalized weights")
    _check_written(model)
    direction = reals(direction, "A direction")
    size = model.embedding.weight.shape[-1]
    if direction.shape != (size,):
        raise ShapeError(
            f"The direction has shape {direction.shape}, and the model width {size}: "
            "it was made for another model."
        )
    head = model.unembedding or Unembedding(model.embedding.weight)
    model = dataclasses.replace(model, unembedding=head)
    return eqx.tree_at(
        _written, model, replace_fn=lambda weight: without(weight, direction)
    )


def _check_written(model: Transformer) -> None:
    """Refuse models that write to the stream by more than `_written` lists."""
    embedding, blocks = model.embedding, cast("Any", model.blocks)
    if not isinstance(embedding, Embedding) or embedding.norm is not None:
        found = "an embedding with a norm or with images"
    elif not hasattr(blocks, "attention"):
        found = "no attention"
    elif getattr(blocks, "mlp", None) is not None and not hasattr(blocks.mlp, "w_out"):
        found = f"{type(blocks.mlp).__name__} without a matrix w_out"
    else:
        return
    raise FrameError(
        f"Weights cannot be orthogonalized in a model with {found}: give "
        "ablate_direction(direction) as edits."
    )


def _written(model: Transformer) -> list[Any]:
    """List the weights and biases whose last axis is the residual stream."""
    blocks: Any = model.blocks
    attention, mlp = blocks.attention, getattr(blocks, "mlp", None)
    positions = None if model.positions is None else model.positions.weight
    found = [model.embedding.weight, positions, attention.w_o, attention.b_o]
    found += [getattr(mlp, name, None) for name in ("w_out", "b_out")]
    return [weight for weight in found if weight is not None]
