"""A decoder-only transformer of any family."""

import equinox as eqx
from jaxtyping import Array, Float, Int

from mijax.core import AbstractBlock, AbstractModel
from mijax.nn._basic import Embedding, Identity, SoftCap, Unembedding
from mijax.nn._blocks import Norm
from mijax.nn._image_embedding import ImageEmbedding
from mijax.nn._readout import Readout


class Transformer(AbstractModel):
    """Embeddings, stacked blocks, a final norm, an unembedding.

    Attributes:
        embedding: token embedding, `weight[vocab, embed]`, or of images too.
        positions: learned positions, `weight[context, embed]`, or `None`.
        blocks: stacked blocks; every array has a leading layer axis.
        norm: the final norm.
        unembedding: `None` where it is tied to the embedding.
        cap: what is applied to the logits: nothing, or `SoftCap`.
        context: most tokens that a prompt may have, or `None`.
        frame: weight processing that was applied, in order (see `fold_norm`).

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> logits, acts = model(jax.numpy.array([1, 2, 3]))
        >>> acts.blocks.z.shape  # layer, seq, heads, head_dim
        (3, 3, 4, 8)
    """

    embedding: Embedding | ImageEmbedding
    positions: Embedding | None
    blocks: AbstractBlock
    norm: Norm
    unembedding: Unembedding | None
    context: int | None = eqx.field(static=True, default=None)
    frame: tuple[str, ...] = eqx.field(static=True, default=())
    cap: Identity | SoftCap = Identity()

    def embed(
        self, tokens: Int[Array, " rows"], position: Int[Array, " rows"]
    ) -> Float[Array, "rows embed"]:
        """Returns token plus position embeddings."""
        x = self.embedding(tokens)
        return x if self.positions is None else x + self.positions(position)

    def embeddings(
        self, tokens: Int[Array, " rows"], position: Int[Array, " rows"]
    ) -> dict[str, Float[Array, "rows embed"]]:
        """Returns the `token` and the `position` term; without the latter, `input`."""
        if self.positions is None:
            return {"input": self.embedding(tokens)}
        return {"token": self.embedding(tokens), "position": self.positions(position)}

    @property
    def vocab(self) -> int:
        """Number of tokens that the model reads."""
        return self.embedding.count

    @property
    def causal(self) -> bool:
        """True if the blocks' attention is causal, over images too."""
        attention = getattr(self.blocks, "attention", None)
        return self.generates and getattr(attention, "together", None) is None

    @property
    def generates(self) -> bool:
        """True if the blocks' attention is causal outside of images."""
        attention = getattr(self.blocks, "attention", None)
        return getattr(attention, "causal", True)

    def normalise(self, x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
        """Applies the final norm."""
        return self.norm(x)

    def unembed(
        self,
        x: Float[Array, "*rows embed"],
        ids: Int[Array, "*rows k"] | None = None,
    ) -> Float[Array, "*rows k"]:
        """Returns logits of every token, or of the tokens `ids` of each row only."""
        return self.cap(self.readout.head(x, ids))

    @property
    def readout(self) -> Readout:
        """The final norm and the unembedding."""
        head = self.unembedding or Unembedding(self.embedding.weight)
        return Readout(self.norm, head, self.cap)
