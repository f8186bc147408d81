"""An encoder: every token reads every other one, in both directions."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.core import AbstractBlock, AbstractModel
from mijax.nn._basic import Embedding, Identity, LayerNorm, Unembedding
from mijax.nn._blocks import Norm
from mijax.nn._mlp import Activation


class EncoderHead(eqx.Module):
    """`out(norm(activation(dense(x))))`: logits of masked tokens, or of classes.

    Attributes:
        dense: a linear map of the stream, `weight[out, embed]`.
        activation: what is applied to it.
        norm: a norm of it, or `Identity()` for classes.
        weight: `[outputs, out]`; `None` where it is tied to the token embedding.
        bias: one for each output.
    """

    dense: Unembedding
    activation: Activation
    norm: LayerNorm | Identity
    weight: Float[Array, "outputs out"] | None
    bias: Float[Array, " outputs"]


class Encoder(AbstractModel):
    """Embeddings and their norm, stacked blocks, a head (BERT and its relatives).

    Outputs are the logits of the head at every position. A head of classes is read at
    position 0, the class token. Without a head the outputs are the features of the last
    block. Padding is masked; see `mijax.nn.mean_pool` for embeddings of texts.

    Attributes:
        embedding: token embedding, `weight[vocab, size]`.
        positions: learned positions, `weight[context, size]`, or `None`.
        segments: embedding of segments (token types), or `None`.
        segment_ids: segment of each position, `[context]`; see `with_segments`.
        embedding_norm: norm of the sum of the embeddings.
        project: linear map from the size of embeddings to that of the stream, or
            `None` where they are equal.
        blocks: stacked blocks; every array has a leading layer axis.
        head: the head, or `None`.
        context: most tokens that a prompt may have.
        frame: weight processing that was applied, in order.
        norm: norm of the stream after the last block, where blocks do not normalize
            it themselves.

    Examples:
        >>> import jax, mijax
        >>> spec = mijax.models.BertSpec(
        ...     layers=2, embed=16, heads=4, mlp=24, vocab=64, context=20
        ... )
        >>> model = mijax.models.init(spec, jax.random.key(0))
        >>> prompts = mijax.data.Prompts.from_ids([[1, 5, 6, 2], [1, 7, 2]])
        >>> mijax.run(model, prompts).shape
        (2, 4, 64)
    """

    embedding: Embedding
    positions: Embedding | None
    segments: Embedding | None
    segment_ids: Int[Array, " context"] | None
    embedding_norm: Norm
    project: Unembedding | None
    blocks: AbstractBlock
    head: EncoderHead | None
    context: int = eqx.field(static=True)
    frame: tuple[str, ...] = eqx.field(static=True, default=())
    norm: Norm = Identity()

    def with_segments(self, ids: Any) -> "Encoder":
        """Return the model with the segment of each position, such as 0 0 0 1 1.

        They belong to the model, so that all prompts of a batch share them. Under
        `jax.vmap` each prompt may have its own.

        Args:
            ids: segment of each position from the first on, `[seq]`; later positions
                are in segment 0.

        Returns:
            The model.

        Raises:
            ShapeError: a model without segments, ids of another shape, more ids than
                `context`, or segments that the model does not have.

        Examples:
            >>> import jax, jax.numpy as jnp, mijax
            >>> spec = mijax.models.BertSpec(
            ...     layers=2, embed=16, heads=4, mlp=24, vocab=64, context=20
            ... )
            >>> model = mijax.models.init(spec, jax.random.key(0))
            >>> tokens = jnp.array([[1, 5, 2, 6, 2], [1, 7, 8, 2, 2]])
            >>> mijax.run(model.with_segments([0, 0, 0, 1, 1]), tokens).shape
            (2, 5, 64)
            >>> each = jnp.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
            >>> run = lambda ids, one: mijax.run(model.with_segments(ids), one)
            >>> jax.vmap(run)(each, tokens).shape
            (2, 5, 64)
        """
        if self.segments is None or self.segment_ids is None:
            raise ShapeError("This encoder has no segments: leave them out.")
        ids, count = jnp.asarray(ids), self.segments.weight.shape[0]
        integers = jnp.issubdtype(ids.dtype, jnp.integer)
        if ids.ndim != 1 or ids.shape[0] > self.context or not integers:
            raise ShapeError(
                f"Segments are integers [seq], at most {self.context} of them; got "
                f"{ids.dtype} of shape {ids.shape}."
            )
        if not isinstance(ids, Tracer) and not set(np.unique(ids)) <= set(range(count)):
            raise ShapeError(
                f"Segments are 0 to {count - 1} in this model; got "
                f"{', '.join(map(str, np.unique(ids)))}."
            )
        own = jnp.zeros_like(self.segment_ids).at[: ids.shape[0]].set(ids)
        return eqx.tree_at(lambda model: model.segment_ids, self, own)

    def embed(
        self, tokens: Int[Array, " rows"], position: Int[Array, " rows"]
    ) -> Float[Array, "rows embed"]:
        """Returns the norm of token plus position plus segment embeddings."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(position)
        if self.segments is not None and self.segment_ids is not None:
            x = x + self.segments(self.segment_ids[position])
        x = self.embedding_norm(x)
        return x if self.project is None else self.project(x)

    @property
    def vocab(self) -> int:
        """Number of tokens that the model reads."""
        return self.embedding.weight.shape[-2]

    @property
    def causal(self) -> bool:
        """False: a token depends on those after it."""
        return False

    def normalise(self, x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
        """Applies the final norm, where the last block did not normalize."""
        return self.norm(x)

    def unembed(
        self,
        x: Float[Array, "*rows embed"],
        ids: Int[Array, "*rows k"] | None = None,
    ) -> Float[Array, "*rows k"]:
        """Returns outputs of the head, all of them or `ids` of each row only."""
        if self.head is None:
            return x if ids is None else jnp.take_along_axis(x, ids, -1)
        head = self.head
        weight = self.embedding.weight if head.weight is None else head.weight
        x = head.norm(head.activation(head.dense(x)))
        return Unembedding(weight, head.bias)(x, ids)
