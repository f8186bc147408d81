"""An embedding for tokens and images."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.nn._basic import Embedding


class ImageEmbedding(eqx.Module):
    """A table of token embeddings, followed by features of images.

    Ids starting at `table.count` are image tokens: id `table.count + i` is feature `i`.
    A decoder thus reads an image as additional tokens, and every method for decoders
    applies. An id beyond the features gives NaN, never another feature.

    Attributes:
        table: embedding of the tokens of the vocabulary.
        features: one row for each image token.

    Examples:
        >>> import jax.numpy as jnp
        >>> table = Embedding(jnp.zeros((5, 2)))
        >>> ImageEmbedding(table, jnp.ones((3, 2)))(jnp.array([4, 5])).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """

    table: Embedding
    features: Float[Array, "feature embed"]

    @property
    def count(self) -> int:
        """Number of rows, including tokens and images."""
        return self.table.count + self.features.shape[0]

    @property
    def weight(self) -> Float[Array, "n embed"]:
        """All rows; a copy."""
        own = self.table(jnp.arange(self.table.count))
        return jnp.concatenate([own, self.features])

    def __call__(self, index: Int[Array, "*rows"]) -> Float[Array, "*rows embed"]:
        """Look up rows."""
        vocab = self.table.count
        place = index - vocab
        # Negative indices would count from the end.
        shown = jnp.take(
            self.features,
            jnp.where(place < 0, self.features.shape[0], place),
            axis=0,
            mode="fill",
            fill_value=jnp.nan,
        )
        rows = self.table(jnp.minimum(index, vocab - 1))
        return jnp.where((place >= 0)[..., None], shown.astype(rows.dtype), rows)
