"""Words in sentences, their tags, and a small grammar that makes some."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Tokens of a generated sentence, and how likely the class after this one comes next.
LENGTH, NEXT = 16, 0.8
CLASSES = ("first", "second", "third")
# One in so many words belongs to two classes.
AMBIGUOUS = 4


class Words(NamedTuple):
    """Words to read tags from.

    Attributes:
        tokens: `[sentence, seq]`, padded on the right.
        sentence: the sentence of each word, in order, `[word]`.
        position: its last token there, `[word]`.
        tags: its tag `[word]`, an index of `names`.
        kinds: its type `[word]`: words that are spelled alike have the same.
        names: of the tags.
    """

    tokens: Int[np.ndarray, "sentence seq"]
    sentence: Int[np.ndarray, " word"]
    position: Int[np.ndarray, " word"]
    tags: Int[np.ndarray, " word"]
    kinds: Int[np.ndarray, " word"]
    names: tuple[str, ...]


def generated(vocab: int, size: tuple[int, int], seed: int) -> tuple[Words, Words]:
    """Draws sentences of a grammar with three classes of words.

    Args:
        vocab: number of token ids.
        size: words to train on and to measure on.
        seed: decides all.

    Returns:
        Words of both kinds.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(vocab)
    base = np.arange(vocab) % len(CLASSES)
    members = []
    for label in range(len(CLASSES)):
        shared = (base == (label + 1) % 3) & (np.arange(vocab) % AMBIGUOUS == 0)
        members.append(ids[(base == label) | shared])
    train, held_out = (_sentences(rng, members, words) for words in size)
    return train, held_out


def _sentences(rng: np.random.Generator, members: list, words: int) -> Words:
    count = -(-words // LENGTH)
    tags = np.zeros((count, LENGTH), np.int32)
    tags[:, 0] = rng.integers(3, size=count)
    for at in range(1, LENGTH):
        step = np.where(rng.random(count) < NEXT, 1, 2)
        tags[:, at] = (tags[:, at - 1] + step) % 3
    tokens = np.array([[rng.choice(members[t]) for t in row] for row in tags], np.int32)
    sentence, position = np.divmod(np.arange(words), LENGTH)
    flat = (tags.reshape(-1)[:words], tokens.reshape(-1)[:words])
    return Words(tokens, sentence, position, *flat, CLASSES)
