"""Sentences with two labels: of films, or made of two kinds of words."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mijax._errors import ConfigError
from mijax.data import Tokenizer
from mijax.io import digest

FILES = ("rt-polarity.neg", "rt-polarity.pos")
# Of generated sentences: tokens at most, and how likely a word is of the label's kind.
LENGTH, SHARE = 8, 0.85


class Sentences(NamedTuple):
    """Sentences and their labels.

    Attributes:
        tokens: `[sentence, seq]`, padded on the right.
        lengths: number of tokens, `[sentence]`.
        labels: 1 is positive, `[sentence]`.
    """

    tokens: Int[np.ndarray, "sentence seq"]
    lengths: Int[np.ndarray, " sentence"]
    labels: Int[np.ndarray, " sentence"]


def polarity(
    data: str, tokenizer: Tokenizer, size: tuple[int, int], *, longest: int, seed: int
) -> tuple[Sentences, Sentences, str]:
    """Reads as many sentences of both labels, in random order.

    Args:
        data: folder or zip file of the sentence polarity data.
        tokenizer: the model's.
        size: sentences to train on and to measure on.
        longest: sentences of more tokens are left out.
        seed: decides the order.

    Returns:
        Sentences to train on, others to measure on, and the digest of the data.

    Raises:
        ConfigError: no such file, or too few sentences in it.
    """
    path = Path(data).expanduser()
    texts = [_lines(path, name) for name in FILES]
    prepend = [] if tokenizer.bos is None else [tokenizer.bos]
    rng = np.random.default_rng(seed)
    # A sentence that comes twice would be on both sides.
    rows = [
        (prepend + tokenizer.encode(text), label)
        for label, of_label in enumerate(texts)
        for text in dict.fromkeys(of_label)
    ]
    rows = [row for row in rows if 3 <= len(row[0]) <= longest]
    total = sum(size)
    sides = [[row for row in rows if row[1] == label] for label in (0, 1)]
    least = min(map(len, sides))
    if 2 * least < total:
        raise ConfigError(
            f"{path} has {least} sentences of each label with at most {longest} tokens;"
            f" {total} were asked for: ask for fewer, or for longer ones."
        )
    picked = [rng.permutation(len(side))[: -(-total // 2)] for side in sides]
    rows = [
        side[i]
        for pair in zip(*picked, strict=True)
        for side, i in zip(sides, pair, strict=True)
    ]
    rows = [rows[i] for i in rng.permutation(total)]
    found = _padded([tokens for tokens, _ in rows], [label for _, label in rows])
    parts = [path] if path.is_file() else [path / name for name in FILES]
    return *_split(found, size[0]), digest(parts)


def generated(
    vocab: int, size: tuple[int, int], seed: int
) -> tuple[Sentences, Sentences]:
    """Draws sentences most of whose words are of the kind of their label.

    Args:
        vocab: number of token ids; even ones are of one kind, odd ones of the other.
        size: sentences to train on and to measure on.
        seed: decides all.

    Returns:
        Sentences of both.
    """
    rng = np.random.default_rng(seed)
    total = sum(size)
    labels = np.arange(total) % 2
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, size=total)
    same = rng.random((total, LENGTH)) < SHARE
    kind = np.where(same, labels[:, None], 1 - labels[:, None])
    words = 2 * rng.integers(vocab // 2, size=(total, LENGTH)) + kind
    words = np.where(np.arange(LENGTH) < lengths[:, None], words, 0)
    found = Sentences(words.astype(np.int32), lengths, labels)
    return _split(found, size[0])


def _lines(path: Path, name: str) -> list[str]:
    """Reads one label's sentences."""
    try:
        if path.is_dir():
            raw = (path / name).read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                inside = next(i for i in archive.namelist() if i.endswith(name))
                raw = archive.read(inside)
    except (OSError, StopIteration, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"--data {path} is no folder or zip file with {' and '.join(FILES)} in it."
        ) from error
    lines = (line.strip() for line in raw.decode("latin-1").splitlines())
    return [line for line in lines if line]


def _padded(rows: list[list[int]], labels: list[int]) -> Sentences:
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for out, row in zip(tokens, rows, strict=True):
        out[: len(row)] = row
    return Sentences(tokens, lengths, np.array(labels))


def _split(found: Sentences, at: int) -> tuple[Sentences, Sentences]:
    return (
        Sentences(*(part[:at] for part in found)),
        Sentences(*(part[at:] for part in found)),
    )
