"""Sentences with two labels, as prompts."""

import zipfile
from pathlib import Path

import numpy as np

from mijax._errors import ConfigError
from mijax.data import Prompts, Tokenizer
from mijax.io import digest

FILES = ("rt-polarity.neg", "rt-polarity.pos")
Labeled = tuple[Prompts, np.ndarray]


def polarity(
    data: str, tokenizer: Tokenizer, count: int, *, longest: int, seed: int
) -> tuple[Labeled, str]:
    """Read sentences of both labels in random order, and the digest of the file.

    Args:
        data: zip file of the sentence polarity data.
        tokenizer: the model's.
        count: number of sentences.
        longest: sentences of more tokens are left out.
        seed: of the order.

    Raises:
        ConfigError: no such file, or too few sentences in it.
    """
    path = Path(data)
    if not zipfile.is_zipfile(path):
        raise ConfigError(
            f"--data {data} is not a zip file of the sentence polarity data."
        )
    prepend = [] if tokenizer.bos is None else [tokenizer.bos]
    rows: list[tuple[list[int], int]] = []
    with zipfile.ZipFile(path) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for label, file in enumerate(FILES):
            if file not in names:
                raise ConfigError(f"{path} has no file {file}.")
            lines = archive.read(names[file]).decode("latin-1").splitlines()
            chosen = np.random.default_rng(seed).permutation(len(lines))[:count]
            texts = [lines[i].strip() for i in chosen]
            rows += [(prepend + tokenizer.encode(t), label) for t in texts if t]
    rows = [row for row in rows if 3 <= len(row[0]) <= longest]
    if len(rows) < count:
        raise ConfigError(
            f"{path} has {len(rows)} sentences of at most {longest} tokens among those "
            f"drawn, {count} are asked for: ask for fewer or longer ones."
        )
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    prompts = Prompts.from_ids([rows[i][0] for i in order])
    labels = np.array([rows[i][1] for i in order])
    return (prompts, labels), digest([path])


def generated(vocab: int, count: int, seed: int) -> Labeled:
    """Draw prompts whose last token is even or odd, which is the label."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocab, (count, 6))
    return Prompts.from_ids(tokens.tolist()), tokens[:, -1] % 2
