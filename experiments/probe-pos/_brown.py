"""The Brown corpus, read from files of `word/tag`."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mijax._errors import ConfigError
from mijax.data import Tokenizer
from mijax.io import digest

from ._words import Words

# Of documents, one in so many is held out.
HELD_OUT = 3
# Longer sentences are left out, in tokens.
LONGEST = 40
# Classes of Brown's tags, by how these begin; the first that fits counts.
CLASSES = (
    ("noun", ("nn", "np", "nr")),
    ("verb", ("vb", "be", "hv", "do", "md")),
    ("adjective", ("jj",)),
    ("adverb", ("rb", "wrb", "ql", "rn", "*")),
    ("pronoun", ("pp", "pn", "wp", "wql", "ex")),
    ("determiner", ("at", "dt", "ap", "ab", "wdt")),
    ("adposition", ("in",)),
    ("conjunction", ("cc", "cs")),
    ("numeral", ("cd", "od")),
    ("particle", ("to", "rp")),
)
NAMES = tuple(name for name, _ in CLASSES)


def brown(
    data: str, tokenizer: Tokenizer, size: tuple[int, int], seed: int
) -> tuple[Words, Words, str]:
    """Reads words and their classes; training and held-out ones of other documents.

    Args:
        data: folder or zip file of the corpus.
        tokenizer: the model's.
        size: words to train on and to measure on.
        seed: decides the order of documents.

    Returns:
        Words to train on, words to measure on, and the digest of the data.

    Raises:
        ConfigError: no such file, or no document in it.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise ConfigError(f"--data {data} is no folder or zip file of the corpus.")
    files = _files(path)
    if not files:
        raise ConfigError(f"{path} holds no document such as brown/ca01.")
    order = np.random.default_rng(seed).permutation(len(files))
    texts = [files[name] for name in np.array(sorted(files))[order]]
    kinds: dict[str, int] = {}
    cut = len(texts) // HELD_OUT
    train = _words(texts[cut:], tokenizer, size[0], kinds)
    held_out = _words(texts[:cut], tokenizer, size[1], kinds)
    parts = [path] if path.is_file() else sorted(path.rglob("c???"))
    return train, held_out, digest(parts)


def _files(path: Path) -> dict[str, str]:
    """Reads every document, `ca01` to `cr09`."""
    if path.is_dir():
        return {p.name: p.read_text() for p in path.rglob("c[a-r][0-9][0-9]")}
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if _is_document(name)]
        return {name: archive.read(name).decode() for name in names}


def _is_document(name: str) -> bool:
    stem = name.rpartition("/")[2]
    return len(stem) == 4 and stem[0] == "c" and stem[2:].isdigit()


def _words(
    texts: list[str], tokenizer: Tokenizer, size: int, kinds: dict[str, int]
) -> Words:
    """Takes sentences until there are enough words."""
    prepend = [] if tokenizer.bos is None else [tokenizer.bos]
    sentences: list[list[int]] = []
    rows: list[tuple[int, int, int, int]] = []
    for pairs in _sentences(texts):
        tokens, found = list(prepend), []
        for word, tag in pairs:
            tokens += tokenizer.encode(" " + word)
            name = _class(tag)
            if name is not None:
                kind = kinds.setdefault(word.lower(), len(kinds))
                at = (len(sentences), len(tokens) - 1, NAMES.index(name), kind)
                found.append(at)
        if len(tokens) > LONGEST or not found:
            continue
        sentences.append(tokens)
        rows += found
        if len(rows) >= size:
            break
    out = np.zeros((len(sentences), LONGEST), np.int32)
    for row, tokens in zip(out, sentences, strict=True):
        row[: len(tokens)] = tokens
    sentence, position, tags, kind = np.array(rows[:size], np.int32).T
    return Words(out, sentence, position, tags, kind, NAMES)


def _sentences(texts: list[str]) -> Iterator[list[tuple[str, str]]]:
    """Yields sentences as words and tags."""
    for text in texts:
        for line in text.splitlines():
            pairs = [part.rpartition("/") for part in line.split()]
            if pairs:
                yield [(word, tag.lower()) for word, _, tag in pairs]


def _class(tag: str) -> str | None:
    """Returns the class of a tag, or none for punctuation and interjections."""
    tag = tag.removeprefix("fw-")
    if tag[:1] != "*" and not tag[:1].isalpha():
        return None
    for name, beginnings in CLASSES:
        if tag.startswith(beginnings):
            return name
    return None
