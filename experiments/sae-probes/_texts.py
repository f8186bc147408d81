"""Texts of two classes, from public corpora or generated."""

import hashlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mijax._errors import ConfigError
from mijax.data import Tokenizer
from mijax.io import digest

# Pairs of the Brown corpus' categories.
PAIRS = (
    ("news", "editorial"),
    ("news", "government"),
    ("reviews", "editorial"),
    ("religion", "belles_lettres"),
    ("hobbies", "lore"),
    ("government", "learned"),
    ("fiction", "mystery"),
    ("romance", "adventure"),
)
# Of addresses: the first year of the second class. Sentences of fewer words are left
# out, there and in the Brown corpus.
YEAR, WORDS = 1900, 5
# Of generated texts: tokens at most, and how likely a token is of the class's kind.
LENGTH, SHARE = 8, 0.85


class Texts(NamedTuple):
    """Texts with labels, as many of both.

    Attributes:
        name: of the data set.
        tokens: `[text, seq]`, padded on the right.
        lengths: number of tokens, `[text]`.
        labels: 0 or 1, `[text]`.
    """

    name: str
    tokens: Int[np.ndarray, "text seq"]
    lengths: Int[np.ndarray, " text"]
    labels: Int[np.ndarray, " text"]

    @property
    def key(self) -> str:
        """The name and a digest of all the rest, for names of files."""
        found = hashlib.sha256()
        for part in self[1:]:
            found.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name)}-{found.hexdigest()[:12]}"


def corpora(
    folder: str, tokenizer: Tokenizer, size: int, *, longest: int, seed: int
) -> tuple[list[Texts], str]:
    """Reads every data set whose file is in a folder.

    Args:
        folder: with some of `sentence_polarity.zip`, `subjectivity.zip`, `names.zip`,
            `inaugural.zip` and `brown.zip`, as NLTK distributes them.
        tokenizer: the model's.
        size: texts of each data set.
        longest: texts of more tokens are left out.
        seed: decides which texts, and their order.

    Returns:
        The data sets, and the digest of their files.

    Raises:
        ConfigError: none of the files is there, one is not what its name says, or it
            has too few texts.
    """
    path = Path(folder).expanduser()
    files = [path / name for name in READERS if (path / name).is_file()]
    if not files:
        raise ConfigError(
            f"--data {folder} is no folder with any of {', '.join(READERS)} in it."
        )
    found: dict[str, tuple[list[str], list[str]]] = {}
    for file in files:
        try:
            with zipfile.ZipFile(file) as archive:
                found |= READERS[file.name](archive)
        except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{file} is not the archive that its name says ({error}): fetch it "
                "again, or take it out of the folder."
            ) from error
    sets = [
        _tokens(name, sides, tokenizer, (size, longest), seed)
        for name, sides in found.items()
    ]
    return sets, digest(files)


def generated(vocab: int, size: int, seed: int) -> list[Texts]:
    """Draws texts most of whose tokens are of the kind of their label.

    Args:
        vocab: number of token ids.
        size: texts of each data set.
        seed: decides all.

    Returns:
        Two data sets: tokens are even or odd, or of the lower or the upper half.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    out = []
    for name in ("even", "lower"):
        lengths = rng.integers(LENGTH // 2, LENGTH + 1, size=size)
        same = rng.random((size, LENGTH)) < SHARE
        kind = np.where(same, labels[:, None], 1 - labels[:, None])
        some = rng.integers(vocab // 2, size=(size, LENGTH))
        tokens = 2 * some + kind if name == "even" else some + vocab // 2 * kind
        tokens = np.where(np.arange(LENGTH) < lengths[:, None], tokens, 0)
        out.append(Texts(name, tokens.astype(np.int32), lengths, labels))
    return out


def _tokens(
    name: str,
    sides: tuple[list[str], list[str]],
    tokenizer: Tokenizer,
    size: tuple[int, int],
    seed: int,
) -> Texts:
    """Draws texts of both classes; one that comes twice is taken once."""
    prepend = [] if tokenizer.bos is None else [tokenizer.bos]
    rng = np.random.default_rng(seed)
    total, longest = size
    each, rows = total // 2, []
    for label, texts in enumerate(sides):
        unique = list(dict.fromkeys(texts))
        picked: list[list[int]] = []
        for i in rng.permutation(len(unique)):
            tokens = prepend + tokenizer.encode(unique[i])
            if 3 <= len(tokens) <= longest:
                picked.append(tokens)
            if len(picked) == each:
                break
        if len(picked) < each:
            raise ConfigError(
                f"{name} has {len(picked)} texts of class {label} with at most "
                f"{longest} tokens, {each} were asked for: ask for fewer."
            )
        rows += [(tokens, label) for tokens in picked]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    out = np.zeros((len(rows), longest), np.int32)
    for row, (tokens, _) in zip(out, rows, strict=True):
        row[: len(tokens)] = tokens
    lengths = np.array([len(tokens) for tokens, _ in rows])
    return Texts(name, out, lengths, np.array([label for _, label in rows]))


def _lines(
    name: str, files: tuple[str, str], form: str = "{}"
) -> Callable[[zipfile.ZipFile], dict[str, tuple[list[str], list[str]]]]:
    """Reads a text per line, a file per class."""

    def read(archive: zipfile.ZipFile) -> dict[str, tuple[list[str], list[str]]]:
        sides = []
        for file in files:
            inside = next((i for i in archive.namelist() if i.endswith("/" + file)), "")
            lines = archive.read(inside or file).decode("latin-1").splitlines()
            sides.append([form.format(x.strip()) for x in lines if x.strip()])
        return {name: (sides[0], sides[1])}

    return read


def _addresses(archive: zipfile.ZipFile) -> dict[str, tuple[list[str], list[str]]]:
    """Cuts addresses into sentences, of two times."""
    sides: tuple[list[str], list[str]] = ([], [])
    for inside in sorted(archive.namelist()):
        year = inside.rpartition("/")[2][:4]
        if year.isdigit():
            text = " ".join(archive.read(inside).decode("latin-1").split())
            cut = re.split(r"(?<=[.?!;]) (?=[A-Z])", text)
            sides[int(year) >= YEAR].extend(_long(cut))
    return {f"address before {YEAR}": sides}


def _brown(archive: zipfile.ZipFile) -> dict[str, tuple[list[str], list[str]]]:
    """Reads sentences of categories without their tags."""
    names = {i.rpartition("/")[2]: i for i in archive.namelist()}
    listed = archive.read(names["cats.txt"]).decode().splitlines()
    sentences: dict[str, list[str]] = {}
    for document, category in (line.split() for line in listed):
        text = archive.read(names[document]).decode()
        lines = [
            " ".join(part.rpartition("/")[0] for part in line.split())
            for line in text.splitlines()
        ]
        sentences.setdefault(category, []).extend(_long(lines))
    return {
        f"{one} or {other}".replace("_", " "): (sentences[one], sentences[other])
        for one, other in PAIRS
    }


def _long(texts: list[str]) -> list[str]:
    return [text for text in texts if len(text.split()) >= WORDS]


READERS = {
    "sentence_polarity.zip": _lines(
        "sentiment", ("rt-polarity.neg", "rt-polarity.pos")
    ),
    "subjectivity.zip": _lines(
        "subjective", ("plot.tok.gt9.5000", "quote.tok.gt9.5000")
    ),
    "names.zip": _lines(
        "first name", ("female.txt", "male.txt"), "My first name is {}"
    ),
    "inaugural.zip": _addresses,
    "brown.zip": _brown,
}
