"""Vision-language models: an image tower, a projector and a decoder."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import PositionError, ShapeError, quoted
from mijax.core import prefixed, site
from mijax.data import ImagePrompts, Prompts
from mijax.models._vit import EMBED, VisionTransformer
from mijax.nn import ImageEmbedding, Transformer, Unembedding

KEYS = {"images", "tokens"}


class VisionLanguage(eqx.Module):
    """An image tower whose features a decoder reads as tokens.

    A prompt contains one placeholder, `image_token`, for each feature of its images;
    the features replace the embeddings of the placeholders, in order. The model has two
    views:

    - `mijax.model(model, inputs)` has all sites. Those of the image tower have the
      prefix `vision.` and an axis `image` (`vision.pattern`, `vision.resid_post`, ...,
      `vision.projected` is what the decoder reads), those of the decoder are the usual
      ones, with positions of the expanded prompt. `run`, `capture`, `gradients` and
      `sweep` take it.
    - `on_images` runs the image tower once and gives an `nn.Transformer` whose
      vocabulary has the image tokens too. Every method for decoders applies, such as
      `generate`, lenses and circuits, and sweeps of positions are as fast as in a text
      model.

    Attributes:
        vision: the image tower.
        projector: map from the image tower's stream to features for the decoder.
        text: the decoder.
        image_token: id of the placeholder.
        together: True if features of an image attend to each other in both directions.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llava(jax.random.key(0))
        >>> images = jax.random.normal(jax.random.key(1), (2, 1, 3, 8, 8))
        >>> prompts = mijax.data.ImagePrompts.from_ids(
        ...     [[1, 30, 5], [1, 30, 6]], images, token=30, expand=4
        ... )
        >>> both = mijax.model(model, prompts[0].example)
        >>> mijax.run(both, prompts.inputs).shape
        (2, 6, 32)
        >>> decoder, prompts = model.on_images(prompts)
        >>> mijax.generate(decoder, prompts, steps=3).shape
        (2, 3)
    """

    vision: VisionTransformer
    projector: Any
    text: Transformer
    image_token: int = eqx.field(static=True)
    together: bool = eqx.field(static=True, default=False)

    def __call__(self, inputs: Mapping[str, Array]) -> Float[Array, "seq vocab"]:
        """Return the logits of one prompt.

        Args:
            inputs: `tokens`, `[seq]`, with one placeholder for each feature, and
                `images`, preprocessed, `[image, channel, row, column]`.

        Raises:
            ShapeError: other inputs.
        """
        if not isinstance(inputs, Mapping) or set(inputs) != KEYS:
            raise ShapeError(
                "Expected {'tokens': ..., 'images': ...}, got "
                f"{quoted(inputs)}: give ImagePrompts(...).inputs."
            )
        images, tokens = inputs["images"], inputs["tokens"]
        features = jax.vmap(self.features, axis_name="image")(images)
        holds = tokens == self.image_token
        decoder = self._reading(features, holds)
        ids = self.vocab + jnp.cumsum(holds) - 1
        return decoder(jnp.where(holds, ids, tokens))[0]

    def features(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, "image_token embed"]:
        """Return the decoder's features for one preprocessed image."""

        def tower(image: Array) -> Array:
            x = self.vision.norm(self.vision.stream(image))
            x = site("resid_final", x, EMBED)
            return site("projected", self.projector(x), "image_token embed")

        return prefixed("vision.", tower)(image)

    def on_images(self, *prompts: Any) -> tuple[Any, ...]:
        """Run the image tower and return the decoder that reads its features.

        Image tokens are numbered after the vocabulary, over all prompts, so all prompts
        share one decoder, and activations from one batch can patch another.

        Args:
            *prompts: batches of prompts, `ImagePrompts`.

        Returns:
            The decoder, and the `Prompts` for every batch, with the same spans.

        Raises:
            PositionError: the numbers of placeholders and image features differ, or
                images are at different positions in a model whose image features
                attend to each other.
            ShapeError: anything other than `ImagePrompts`.

        Examples:
            >>> import jax, mijax
            >>> model = mijax.testing.tiny_llava(jax.random.key(0))
            >>> draw = lambda i: jax.random.normal(jax.random.key(i), (1, 1, 3, 8, 8))
            >>> cat = mijax.data.ImagePrompts.from_ids(
            ...     [[1, 30, 5]], draw(1), token=30, expand=4
            ... )
            >>> decoder, cat, dog = model.on_images(cat, cat.with_images(draw(2)))
            >>> acts = mijax.capture(decoder, dog, mijax.Site("resid_post"))
            >>> patch = mijax.Patch(acts).at("resid_post", position=cat.span("image"))
            >>> metric = mijax.logit_difference(3, 4)
            >>> found = mijax.sweep(decoder, cat, patch, over="layer", metric=metric)
            >>> found.values.shape
            (1, 2)
        """
        if not prompts or not all(isinstance(one, ImagePrompts) for one in prompts):
            raise ShapeError(
                f"on_images takes mijax.data.ImagePrompts, got {quoted(prompts)}."
            )
        holds = self._places(prompts)
        every, numbered, start = [], [], self.vocab
        for one in prompts:
            features = _features(self, one.images)
            numbered.append(self._numbered(one, features.shape, start))
            features = features.reshape(-1, features.shape[-1])
            start += len(features)
            every.append(features)
        return (self._reading(jnp.concatenate(every), holds), *numbered)

    def _places(self, prompts: tuple[ImagePrompts, ...]) -> Array | None:
        """Return where all prompts hold images, for models where it matters.

        Raises:
            PositionError: prompts with images at different places.
        """
        if not self.together:
            return None
        tokens = [row for one in prompts for row in np.asarray(one.prompts.tokens)]
        places = [np.flatnonzero(row == self.image_token) for row in tokens]
        for i, place in enumerate(places):
            if not np.array_equal(place, places[0]):
                raise PositionError(
                    "Image features attend to each other in this model, so one "
                    f"decoder takes prompts with images at the same positions; prompt "
                    f"{i} differs from prompt 0. Call on_images for each."
                )
        holds = np.zeros(max(map(len, tokens)), bool)
        holds[places[0]] = True
        return jnp.asarray(holds)

    def _numbered(
        self, prompts: ImagePrompts, shape: tuple[int, ...], start: int
    ) -> Prompts:
        """Return prompts whose placeholders are the ids of their features."""
        _, most, count, _ = shape
        tokens = np.asarray(prompts.prompts.tokens)
        holds = tokens == self.image_token
        found, expected = holds.sum(1), count * np.asarray(prompts.counts)
        if (wrong := np.flatnonzero(found != expected)).size:
            i = int(wrong[0])
            raise PositionError(
                f"Prompt {i} has {found[i]} placeholders (token {self.image_token}), "
                f"but its images have {expected[i]} features, {count} each: expand "
                f"every placeholder to {count}."
            )
        first = start + most * count * np.arange(len(tokens))[:, None]
        ids = np.where(holds, first + np.cumsum(holds, 1) - 1, tokens)
        given = prompts.prompts
        return Prompts(
            jnp.asarray(ids, jnp.int32), given.lengths, given.spans, given.texts
        )

    def _reading(
        self, features: Float[Array, "... embed"], holds: Bool[Array, " seq"] | None
    ) -> Transformer:
        """Return the decoder that reads features as tokens, held at some places."""
        flat = features.reshape(-1, features.shape[-1])
        text = self.text
        assert not isinstance(text.embedding, ImageEmbedding)
        head = text.unembedding or Unembedding(text.embedding.weight)
        made = eqx.tree_at(
            lambda model: (model.embedding, model.unembedding),
            text,
            (ImageEmbedding(text.embedding, flat), head),
            is_leaf=lambda x: x is None,
        )
        if not self.together:
            return made
        assert holds is not None
        groups = jnp.broadcast_to(_groups(holds), (self.n_layers, len(holds)))
        where = lambda model: model.blocks.attention.together  # noqa: E731
        return eqx.tree_at(where, made, groups, is_leaf=lambda x: x is None)

    @property
    def vocab(self) -> int:
        """Number of tokens in the decoder's vocabulary, without image tokens."""
        return self.text.vocab

    @property
    def n_layers(self) -> int:
        """Number of blocks of the decoder."""
        return self.text.n_layers

    @property
    def frame(self) -> tuple[str, ...]:
        """Weight processing that was applied: none."""
        return ()


def _groups(holds: Bool[Array, " seq"]) -> Int[Array, " seq"]:
    """Return the index of each position's contiguous run, -1 for none."""
    first = holds & ~jnp.pad(holds, (1, 0))[:-1]
    return jnp.where(holds, jnp.cumsum(first) - 1, -1)


@eqx.filter_jit
def _features(
    model: VisionLanguage, images: Float[Array, "batch image channel row column"]
) -> Float[Array, "batch image image_token embed"]:
    """Return the features of all images of a batch."""
    return jax.vmap(jax.vmap(model.features))(images)
