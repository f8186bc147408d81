"""Texts as token ids, tokenised once."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Integer

from mijax._errors import LoadError, OutputError, TokenError
from mijax.data._files import check_file, read_json, write_json
from mijax.data._records import CorpusRecord
from mijax.data.text._tokenizer import Tokenizer
from mijax.io import check_files, read_record, replace_folder

FORM = "mijax tokens 1"
MANIFEST, IDS, ENDS = "manifest.json", "ids.bin", "ends.npy"
CHARACTERS = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Documents as token ids, one after the other.

    Attributes:
        ids: token ids of all documents; uint16 where the vocabulary allows it.
        ends: one past the last token of each document.
        separator: the token that ends every document, or `None`.
        last: the largest id.
        digest: of the ids, or of the texts and the tokenizer that they came from.

    Examples:
        >>> corpus = Corpus.from_ids([[5, 6, 7], [8]], separator=0)
        >>> corpus.ids.tolist(), corpus.ends.tolist()
        ([5, 6, 7, 0, 8, 0], [4, 6])
    """

    ids: Integer[np.ndarray, " tokens"]
    ends: Integer[np.ndarray, " documents"]
    separator: int | None
    last: int
    digest: str

    @classmethod
    def from_ids(
        cls,
        documents: Iterable[Sequence[int] | np.ndarray],
        *,
        separator: int | None = None,
    ) -> "Corpus":
        """Makes a corpus of token ids, or of the rows of an array.

        Args:
            documents: token ids of each document, of any lengths.
            separator: token id to put after each document.

        Returns:
            The corpus.

        Raises:
            TokenError: there are no tokens, or an id is negative.
        """
        end = [] if separator is None else [separator]
        arrays = [np.asarray([*row, *end], np.int64) for row in documents]
        ids, ends = joined(arrays)
        if not ids.size or ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
            raise TokenError(
                "A corpus needs at least one token, and ids from 0 to 2147483647."
            )
        last = int(ids.max())
        ids = ids.astype(smallest(last))
        found = hashlib.sha256(f"{ids.dtype}{separator}".encode())
        found.update(ids.data)
        found.update(ends.data)
        return cls(ids, ends, separator, last, found.hexdigest())

    def __repr__(self) -> str:
        return (
            f"Corpus({self.ids.size} tokens, {self.ends.size} documents, "
            f"{self.digest[:12]})"
        )


def joined(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of all documents, and one past the end of each; none is empty."""
    arrays = [array for array in arrays if array.size]
    ends = np.cumsum([array.size for array in arrays], dtype=np.int64)
    return (np.concatenate(arrays) if arrays else np.zeros(0, np.int64)), ends


def smallest(last: int) -> type[np.integer]:
    """Returns the type that token ids up to `last` are kept in."""
    return np.uint16 if last < 1 << 16 else np.int32


def tokenize(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    separator: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Corpus:
    """Tokenises documents, once.

    With a folder, the ids are kept there and read from there, memory-mapped, from then
    on. Texts, tokenizer and separator are the key: if they are the same, nothing is
    tokenised again; if they are not, the folder is refused.

    Args:
        tokenizer: the model's tokenizer.
        texts: the documents (`read_texts`, `read_dataset`, a list).
        separator: token id to put after each document, for instance `tokenizer.eos`.
        folder: where to keep the ids.

    Returns:
        The corpus. Documents without tokens are left out.

    Raises:
        TokenError: the documents have no tokens at all.
        OutputError: the folder holds another corpus, or cannot be written.
        LoadError: what the folder holds is damaged.

    Examples:
        >>> tokenizer = Tokenizer.from_pieces([" a", " b"])
        >>> corpus = tokenize(tokenizer, [" a b", " b"], separator=0, folder="corpus")
        >>> corpus.ids.tolist(), corpus.ends.tolist()
        ([256, 257, 0, 257, 0], [3, 5])
    """
    if isinstance(texts, str):
        raise TokenError(
            "Give documents, a list of texts, not one text: read_texts(path) reads "
            "those of a file."
        )
    work = Work(tokenizer, texts, separator)
    if folder is None:
        ids, ends = joined(list(work.documents()))
        work.check(ids.size)
        return Corpus(ids, ends, separator, int(ids.max()), work.digest)
    folder = Path(folder)
    if folder.exists():
        return kept(folder, work)
    replace_folder(folder, lambda new: fill(new, work))
    return read(folder)


class Work:
    """The tokenisation of some texts; its digest is known when they were read."""

    def __init__(
        self, tokenizer: Tokenizer, texts: Iterable[str], separator: int | None
    ) -> None:
        self.backend = tokenizer.backend
        self.texts = texts
        self.separator = separator
        last = max([*self.backend.get_vocab().values(), separator or 0])
        self.dtype = smallest(last)
        self._hash = hashlib.sha256(self.backend.to_str().encode())
        self._hash.update(f"{FORM} {separator}".encode())

    @property
    def digest(self) -> str:
        """Digest of the tokenizer, the separator and the texts read so far."""
        return self._hash.hexdigest()

    def read(self) -> Iterator[str]:
        """Reads and hashes the texts."""
        for text in self.texts:
            written = text.encode("utf-8", "surrogatepass")
            self._hash.update(len(written).to_bytes(8, "little"))
            self._hash.update(written)
            yield text

    def documents(self) -> Iterator[np.ndarray]:
        """Tokenises the texts, many at a time."""
        end = [] if self.separator is None else [self.separator]
        for chunk in chunks(self.read()):
            for found in self.backend.encode_batch_fast(
                chunk, add_special_tokens=False
            ):
                if found.ids:
                    yield np.asarray([*found.ids, *end], self.dtype)

    def check(self, tokens: int) -> None:
        """Refuses texts without tokens."""
        if not tokens:
            raise TokenError("The texts have no tokens: give documents that have some.")


def chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    """Gathers texts up to some number of characters."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def kept(folder: Path, work: Work) -> Corpus:
    """Returns the corpus of a folder if it is that of these texts."""
    for _ in work.read():
        pass
    corpus = read(folder)
    if (corpus.digest, corpus.separator) != (work.digest, work.separator):
        raise OutputError(
            f"{folder} holds another corpus (other texts, tokenizer or separator): "
            "delete it or give another folder."
        )
    return corpus


def fill(folder: Path, work: Work) -> None:
    """Write a corpus into an empty folder."""
    with (folder / IDS).open("wb") as file:
        ends, last, found = pour(work, file)
    work.check(sum(ends[-1:]))
    np.save(folder / ENDS, np.asarray(ends, np.int64))
    record = {
        "form": FORM,
        "digest": work.digest,
        "dtype": np.dtype(work.dtype).name,
        "separator": work.separator,
        "last": last,
        "tokens": ends[-1],
        "documents": len(ends),
        "sha256": found,
    }
    write_json(folder / MANIFEST, record)


def pour(work: Work, file: BinaryIO) -> tuple[list[int], int, str]:
    """Writes ids; returns where documents end, the largest id, and the SHA-256."""
    ends, count, last, found = [], 0, 0, hashlib.sha256()
    for ids in work.documents():
        found.update(ids.data)
        file.write(ids.data)
        count += ids.size
        last = max(last, int(ids.max()))
        ends.append(count)
    return ends, last, found.hexdigest()


def read(folder: Path) -> Corpus:
    """Opens a corpus; its ids stay on the disk.

    Raises:
        LoadError: the folder holds no corpus, or a damaged one.
    """
    check_files(folder, [MANIFEST, ENDS])
    path = folder / MANIFEST
    record = read_record(CorpusRecord, read_json(path, FORM), path, thing="corpus")
    dtype = np.dtype(record.dtype)
    check_file(folder / IDS, record.tokens * dtype.itemsize, record.sha256)
    try:
        ends = np.load(folder / ENDS, allow_pickle=False)
    except Exception as error:  # numpy raises many unrelated kinds
        raise LoadError(f"{folder / ENDS} cannot be read ({error}).") from error
    ids = np.memmap(folder / IDS, dtype, "r", shape=(record.tokens,))
    whole = ends.shape == (record.documents,) and ends.dtype.kind == "i"
    if (
        not whole
        or ends[-1] != record.tokens
        or np.any(np.diff(ends, prepend=0) <= 0)
        or int(ids.max()) != record.last
    ):
        raise LoadError(
            f"{folder} is damaged: documents, ids and manifest do not fit. Delete it "
            "and tokenize again."
        )
    return Corpus(ids, ends, record.separator, record.last, record.digest)
