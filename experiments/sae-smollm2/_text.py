"""Text of the user as token ids: what is trained on, and what is held out."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from mijax._errors import ConfigError
from mijax.data import Corpus, read_dataset, read_texts, tokenize
from mijax.models import Loaded

SUFFIXES = (".txt", ".jsonl", ".ndjson")


class Text(NamedTuple):
    """Tokens.

    Attributes:
        train: what is trained on.
        held_out: sequences that come after it, `[sequence, seq]`.
        bos: the token that every sequence begins with, if any.
        exclude: tokens whose activations are left out: `bos` and separator.
        digest: of all of it.
    """

    train: Corpus
    held_out: Int[np.ndarray, "sequence seq"]
    bos: int | None
    exclude: tuple[int, ...]
    digest: str


def read(loaded: Loaded, config: Any, folder: Path) -> Text:
    """Reads and tokenises the text that a config names, and holds out its end.

    Args:
        loaded: the model.
        config: of the experiment.
        folder: where token ids are kept.

    Returns:
        The tokens.

    Raises:
        ConfigError: no text, or too little.
    """
    bos = None if loaded.text is None else loaded.text.bos
    width = config.seq - (bos is not None)
    if config.generated:
        corpus = repeats(loaded.spec.vocab, (config.generated, width), config.seed)
    else:
        tokenizer = loaded.tokenizer
        given = islice(documents(config), config.documents)
        corpus = tokenize(tokenizer, given, separator=tokenizer.eos, folder=folder)
    train, rest = split(corpus, config.held_out * width)
    held_out = rest[: config.held_out * width].reshape(config.held_out, width)
    held_out = held_out.astype(np.int32)
    if bos is not None:
        first = np.full((config.held_out, 1), bos, np.int32)
        held_out = np.concatenate([first, held_out], axis=1)
    found = {i for i in (bos, corpus.separator) if i is not None}
    return Text(train, held_out, bos, tuple(sorted(found)), corpus.digest)


def check(config: Any) -> None:
    """Refuses a config without text, or with several, before any work.

    Raises:
        ConfigError: neither is given, or both.
    """
    if not config.generated and (config.data is None) == (config.dataset is None):
        raise ConfigError(
            "This needs some text: give --data, a text file, a JSON-lines file or a "
            "folder of such files, or --dataset, a data set of the Hugging Face hub "
            "(one of the two)."
        )


def documents(config: Any) -> Iterable[str]:
    """Finds the documents of a file, a folder of files or a data set.

    Raises:
        ConfigError: there is no text in the folder.
    """
    if config.dataset is not None:
        return read_dataset(config.dataset, field=config.column, streaming=True)
    path = Path(config.data).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(f"--data {path} holds no file {', '.join(SUFFIXES)}.")
    return read_texts(files, field=config.column, separator=config.separator)


def repeats(vocab: int, shape: tuple[int, int], seed: int) -> Corpus:
    """Draws documents whose second half repeats their first, without token 0."""
    rng = np.random.default_rng(seed)
    half = rng.integers(1, vocab, (shape[0], -(-shape[1] // 2)))
    return Corpus.from_ids(np.tile(half, 2)[:, : shape[1]])


def split(corpus: Corpus, tokens: int) -> tuple[Corpus, Int[np.ndarray, " token"]]:
    """Cuts the end off a corpus, at the end of a document if it has several.

    Args:
        corpus: all of it.
        tokens: how many the end has at least.

    Returns:
        What comes before, and the end.

    Raises:
        ConfigError: nothing would be left.
    """
    cut = corpus.ids.size - tokens
    before = int((corpus.ends <= cut).sum())
    if before:
        cut = int(corpus.ends[before - 1])
    if cut < 1:
        raise ConfigError(
            f"There are {corpus.ids.size} tokens of text and {tokens} would be held "
            "out: give more text, or hold out less with --held-out."
        )
    ends = corpus.ends[:before] if before else np.array([cut])
    digest = f"{corpus.digest} to {cut}"
    train = Corpus(corpus.ids[:cut], ends, corpus.separator, corpus.last, digest)
    return train, np.asarray(corpus.ids[cut:])
