"""Batches of prompts that hold images."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import PositionError, ShapeError, TokenError
from mijax.core.internal import cut, integers, shown
from mijax.data.text._prompts import Index, Prompts, Span, as_ids, chosen, span_of
from mijax.data.text._tokenizer import Tokenizer

RANK = 4


class ReadImage(NamedTuple):
    """One image as a model reads it.

    Attributes:
        crops: the preprocessed image, or several parts of it, `[crop, channel, row,
            column]`.
        text: what stands for it in a prompt, with a placeholder for each feature.
    """

    crops: Any
    text: str


@runtime_checkable
class ImageReader(Protocol):
    """Preprocessing of the images of a prompt, which travels with a model."""

    @property
    def placeholder(self) -> str:
        """The text that stands for an image in a prompt."""
        ...

    @property
    def token(self) -> int:
        """Id of the token of a feature."""
        ...

    def __call__(self, image: Any) -> ReadImage:
        """Preprocess one image."""
        ...


class ImagePrompts(eqx.Module):
    """A batch of prompts with images, each expanded to one placeholder per feature.

    `spans` has the places `image_0`, `image_1`, ... of the images that all prompts
    have, from the first to one past the last placeholder, `image` where every prompt
    has one, and `last`.

    Attributes:
        prompts: token ids with placeholders, lengths and spans.
        images: preprocessed images of each prompt; where a prompt has fewer, the rest
            are 0 and not read. A part of an image that the model reads separately
            counts as an image.
        counts: number of images of each prompt.

    Examples:
        >>> images = jnp.ones((2, 1, 3, 8, 8))
        >>> prompts = ImagePrompts.from_ids(
        ...     [[1, 30, 5], [1, 7, 30]], images, token=30, expand=4
        ... )
        >>> prompts.prompts.tokens[0].tolist()
        [1, 30, 30, 30, 30, 5]
        >>> prompts.find("image")[0].tolist()
        [1, 2]
    """

    prompts: Prompts
    images: Float[Array, "batch image channel row column"]
    counts: Int[Array, " batch"]

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[Sequence[int]],
        images: Any,
        *,
        token: int,
        expand: int = 1,
        spans: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        pad: int = 0,
    ) -> "ImagePrompts":
        """Make prompts of token ids.

        Args:
            ids: token ids of each prompt, of any lengths, with a placeholder for each
                image.
            images: preprocessed images of each prompt, `[image, channel, row, column]`,
                all of one size.
            token: id of the placeholder.
            expand: number of features of an image: what each placeholder becomes.
            spans: name of a place, and its (start, stop) in the ids as they are given.
            pad: token id to fill with.

        Returns:
            The prompts.

        Raises:
            PositionError: another number of placeholders than images, or a span
                outside its prompt.
            ShapeError: images of another rank or of several sizes.
        """
        rows = [integers(row, "A token id", TokenError) for row in ids]
        stacks = _stacks(images, len(rows))
        for i, (row, own) in enumerate(zip(rows, stacks, strict=True)):
            if (found := int((row == token).sum())) != len(own):
                raise PositionError(
                    f"Prompt {i} has {found} placeholders (token {token}) for "
                    f"{len(own)} images: give one for each."
                )
        moved = [np.cumsum([0, *np.where(row == token, expand, 1)]) for row in rows]
        lengths = np.array([len(row) for row in rows], np.int32)
        places = {
            name: [
                (int(at[start]), int(at[stop]))
                for at, start, stop in zip(
                    moved, *span_of(name, pairs, lengths), strict=True
                )
            ]
            for name, pairs in (spans or {}).items()
        }
        longer = [
            np.repeat(row, np.where(row == token, expand, 1)).tolist() for row in rows
        ]
        given = Prompts.from_ids(longer, spans=places, pad=pad)
        parts = [[1] * len(own) for own in stacks]
        return cls._of(given, stacks, token, parts)

    @classmethod
    def from_texts(
        cls,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        images: Sequence[Any],
        *,
        reader: ImageReader,
        prepend: Sequence[int | None] = (),
        spans: Mapping[str, str | Sequence[str]] | None = None,
        pad: int = 0,
    ) -> "ImagePrompts":
        """Tokenize texts and preprocess images.

        Args:
            tokenizer: the model's tokenizer.
            texts: one text per prompt, with `reader.placeholder` for each image.
            images: for each prompt an image, or a list of images: paths, Pillow images
                or arrays of pixels.
            reader: the model's preprocessing, `mijax.models.load(...).input`.
            prepend: token ids to put before each text.
            spans: name of a place, and the part of the text that it covers: one for
                all texts or one for each.
            pad: token id to fill with.

        Returns:
            The prompts.

        Raises:
            PositionError: another number of placeholders than images, or a part that
                occurs in a text never or more than once.
            TokenError: a tokenizer that has no such placeholder.
        """
        if isinstance(texts, str) or len(texts) != len(images):
            raise PositionError(
                f"{len(texts)} texts and {len(images)} lists of images: give a list of "
                "texts, and the images of each."
            )
        each = [own if isinstance(own, list | tuple) else [own] for own in images]
        read = [[reader(image) for image in own] for own in each]
        written = [
            _written(text, own, reader) for text, own in zip(texts, read, strict=True)
        ]
        given = Prompts.from_texts(
            tokenizer, written, prepend=prepend, spans=spans, pad=pad
        )
        stacks = [
            np.concatenate([np.asarray(one.crops, np.float32) for one in own])
            for own in read
        ]
        parts = [[len(one.crops) for one in own] for own in read]
        return cls._of(given, stacks, reader.token, parts)

    @classmethod
    def _of(
        cls,
        prompts: Prompts,
        stacks: Sequence[np.ndarray],
        token: int,
        parts: Sequence[Sequence[int]],
    ) -> "ImagePrompts":
        """Join the images of all prompts and find their places.

        Args:
            prompts: the expanded prompts.
            stacks: images of each prompt.
            token: id of the placeholder.
            parts: number of parts of each image of each prompt.
        """
        most = max(map(len, stacks))
        shape = (len(stacks), most, *stacks[0].shape[1:])
        every = np.zeros(shape, np.float32)
        for row, own in zip(every, stacks, strict=True):
            row[: len(own)] = own
        spans = prompts.spans | _places(np.asarray(prompts.tokens) == token, parts)
        named = Prompts(prompts.tokens, prompts.lengths, spans, prompts.texts)
        return cls(named, jnp.asarray(every), as_ids([len(own) for own in stacks]))

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        size = f"{len(self)} prompts, {shown(self.counts)} images"
        places = ", ".join(self.prompts.spans)
        return cut(f"ImagePrompts({size}, spans {places})")

    def __getitem__(self, index: Index) -> "ImagePrompts":
        """Choose prompts; one index gives a batch of one."""
        rows = chosen(len(self), index)
        return ImagePrompts(self.prompts[index], self.images[rows], self.counts[rows])

    @property
    def inputs(self) -> dict[str, Array]:
        """The batch as a model of both towers takes it."""
        return {"tokens": self.prompts.tokens, "images": self.images}

    @property
    def example(self) -> dict[str, Array]:
        """The first prompt, without an axis for the batch, for `mijax.model`."""
        return {name: value[0] for name, value in self.inputs.items()}

    @property
    def last(self) -> Int[Array, " batch"]:
        """Position of the last token of each prompt."""
        return self.prompts.last

    def position(self, name: str) -> Int[Array, " batch"]:
        """Position of the last token of a named place in each prompt.

        Raises:
            PositionError: the prompts have no such place.
        """
        return self.prompts.position(name)

    def span(self, name: str) -> slice:
        """A named place as a slice of positions, with one start and stop per prompt.

        Raises:
            PositionError: the prompts have no such place.
        """
        return self.prompts.span(name)

    def find(self, name: str) -> Span:
        """Start and stop of a named place in each prompt.

        Raises:
            PositionError: the prompts have no such place.
        """
        return self.prompts.find(name)

    def with_images(self, images: Any) -> "ImagePrompts":
        """Return the same prompts with other images of the same number and size.

        Args:
            images: preprocessed images of each prompt.

        Raises:
            ShapeError: images of another shape.
        """
        images = jnp.asarray(images, jnp.float32)
        if images.shape != self.images.shape:
            raise ShapeError(
                f"The images have shape {images.shape}, expected "
                f"{self.images.shape} as before."
            )
        return ImagePrompts(self.prompts, images, self.counts)


def _stacks(images: Any, count: int) -> list[np.ndarray]:
    """Return the images of each prompt as an array."""
    stacks = [np.asarray(own, np.float32) for own in images]
    shapes = {own.shape[1:] for own in stacks}
    if len(stacks) != count:
        raise ShapeError(
            f"There are images for {len(stacks)} prompts, but {count} prompts."
        )
    if {own.ndim for own in stacks} != {RANK} or len(shapes) != 1:
        raise ShapeError(
            "The images of each prompt are [image, channel, row, column], all of one "
            f"size; got shapes {', '.join(str(list(own.shape)) for own in stacks):.80}."
        )
    return stacks


def _written(text: str, read: Sequence[ReadImage], reader: ImageReader) -> str:
    """Return a text with what stands for each image in it."""
    pieces = text.split(reader.placeholder)
    if len(pieces) != len(read) + 1:
        raise PositionError(
            f"{text!r:.60} has {len(pieces) - 1} times {reader.placeholder!r} for "
            f"{len(read)} images: write it once for each."
        )
    texts = [one.text for one in read]
    return "".join(x for pair in zip(pieces, [*texts, ""], strict=True) for x in pair)


def _places(holds: np.ndarray, parts: Sequence[Sequence[int]]) -> dict[str, Span]:
    """Return the spans of the images that all prompts have."""
    ends = []
    for i, (row, own) in enumerate(zip(holds, parts, strict=True)):
        at, total = np.flatnonzero(row), sum(own)
        if (not len(at) or len(at) % total) if total else len(at):
            raise TokenError(
                f"Prompt {i} has {len(at)} placeholders for {total} images: the "
                "tokenizer has to know the placeholder as one token, and a text may "
                "hold no further ones."
            )
        edges = np.cumsum([0, *own]) * (len(at) // max(total, 1))
        ends.append([(at[a], at[b - 1] + 1) for a, b in itertools.pairwise(edges)])
    fewest = min(map(len, ends))
    found = {
        f"image_{k}": (
            as_ids([int(own[k][0]) for own in ends]),
            as_ids([int(own[k][1]) for own in ends]),
        )
        for k in range(fewest)
    }
    if all(len(own) == 1 for own in ends):
        found["image"] = found["image_0"]
    return found
