"""Prompts with images: expansion of placeholders, spans, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from mijax._errors import PositionError, ShapeError, TokenError
from mijax.data import ImagePrompts, ReadImage, Tokenizer

IMAGES = np.arange(2 * 3 * 1 * 2 * 2, dtype=np.float32).reshape(2, 3, 1, 2, 2)
TOKENIZER = Tokenizer.from_pieces(["USER", " see", " cat", " dog"])
TOKENIZER.backend.add_special_tokens(["<image>"])
USER, SEE, CAT, DOG, PLACE = range(256, 261)
(BAR,) = TOKENIZER.encode("|")


class Reader:
    """One crop and two features for an array of zeros, else two crops with a bar."""

    placeholder = "<image>"
    token = PLACE

    def __call__(self, image):
        if not image.any():
            return ReadImage(image[None], "<image><image>")
        return ReadImage(np.stack([image, -image]), "<image><image>|<image><image>")


def test_placeholders_of_ids_are_expanded_and_spans_move():
    prompts = ImagePrompts.from_ids(
        [[1, 9, 5, 9, 6], [9, 2, 9, 3]],
        IMAGES[:, :2],
        token=9,
        expand=3,
        spans={"word": [(2, 3), (1, 2)], "both": [(0, 4), (0, 3)]},
        pad=7,
    )
    assert prompts.prompts.tokens.tolist() == [
        [1, 9, 9, 9, 5, 9, 9, 9, 6],
        [9, 9, 9, 2, 9, 9, 9, 3, 7],
    ]
    spans = prompts.prompts.spans
    ends = {name: [end.tolist() for end in spans[name]] for name in spans}
    assert ends == {
        "word": [[4, 3], [5, 4]],
        "both": [[0, 0], [8, 7]],
        "last": [[8, 7], [9, 8]],
        "image_0": [[1, 0], [4, 3]],
        "image_1": [[5, 4], [8, 7]],
    }
    assert prompts.span("word").start.tolist() == [4, 3]
    assert prompts.position("image_1").tolist() == [7, 6]
    assert prompts.last.tolist() == [8, 7]
    assert "2 prompts, [2, 2] images" in repr(prompts)
    chosen = prompts[1]
    assert chosen.images.tolist() == IMAGES[1:, :2].tolist()
    assert chosen.find("image_0")[1].tolist() == [3]
    assert {k: v.shape for k, v in prompts.example.items()} == {
        "tokens": (9,),
        "images": (2, 1, 2, 2),
    }


def test_texts_are_written_with_what_the_reader_says():
    zero, one = np.zeros((1, 2, 2), np.float32), np.ones((1, 2, 2), np.float32)
    prompts = ImagePrompts.from_texts(
        TOKENIZER,
        ["USER<image> see cat", "USER<image> see dog"],
        [zero, [one]],
        reader=Reader(),
        prepend=[5],
        spans={"animal": [" cat", " dog"]},
    )
    assert prompts.prompts.tokens.tolist() == [
        [5, USER, PLACE, PLACE, SEE, CAT, 0, 0, 0],
        [5, USER, PLACE, PLACE, BAR, PLACE, PLACE, SEE, DOG],
    ]
    assert prompts.counts.tolist() == [1, 2]
    # The image of the first prompt has one part; the other place is not read.
    assert prompts.images[0, 1].tolist() == zero.tolist()
    assert prompts.images[1, 1].tolist() == (-one).tolist()
    assert [end.tolist() for end in prompts.find("image")] == [[2, 2], [4, 7]]
    assert prompts.position("animal").tolist() == [5, 8]


def test_prompts_may_have_different_numbers_of_images():
    prompts = ImagePrompts.from_ids(
        [[1, 9], [9, 9], [2]], [IMAGES[0, :1], IMAGES[1, :2], IMAGES[1, :0]], token=9
    )
    assert prompts.counts.tolist() == [1, 2, 0]
    assert prompts.images.shape == (3, 2, 1, 2, 2)
    assert set(prompts.prompts.spans) == {"last"}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: ImagePrompts.from_ids([[1, 9, 9]], IMAGES[:1, :1], token=9),
            PositionError,
            "Prompt 0 has 2 placeholders .token 9. for 1 images",
        ),
        (
            lambda: ImagePrompts.from_ids(
                [[1, 9, 5]], IMAGES[:1, :1], token=9, expand=3, spans={"a": [(1, -1)]}
            ),
            PositionError,
            "of prompt 0 is .1, -1., expected .* its 3 tokens",
        ),
        (
            lambda: ImagePrompts.from_ids([[1, 9]], IMAGES[:2, :1], token=9),
            ShapeError,
            "images for 2 prompts, but 1 prompts",
        ),
        (
            lambda: ImagePrompts.from_ids([[1, 9]], IMAGES[:1, 0], token=9),
            ShapeError,
            "are .image, channel, row, column., all of one size",
        ),
        (
            lambda: ImagePrompts.from_texts(
                TOKENIZER, [" cat"], [np.zeros((1, 2, 2))], reader=Reader()
            ),
            PositionError,
            "has 0 times '<image>' for 1 images",
        ),
        (
            lambda: ImagePrompts.from_texts(
                TOKENIZER, ["<image>"], [], reader=Reader()
            ),
            PositionError,
            "1 texts and 0 lists of images",
        ),
        (
            lambda: ImagePrompts.from_texts(
                Tokenizer.from_pieces([" cat"]),
                ["<image>"],
                [np.zeros((1, 2, 2))],
                reader=Reader(),
            ),
            TokenError,
            "the tokenizer has to know the placeholder as one token",
        ),
        (
            lambda: ImagePrompts.from_ids([[9]], IMAGES[:1, :1], token=9).with_images(
                jnp.zeros((1, 1, 1, 3, 3))
            ),
            ShapeError,
            "expected .1, 1, 1, 2, 2. as before",
        ),
    ],
)
def test_refuses(call, error, says):
    with pytest.raises(error, match=says):
        call()
