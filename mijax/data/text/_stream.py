"""Batches of tokens in a shuffled order whose state is one integer."""

from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from mijax._errors import ShapeError, TokenError
from mijax.core.internal import digest as digest_of
from mijax.data._source import AbstractSource
from mijax.data.text._corpus import Corpus

SEEDS = 2**32
LAST = np.iinfo(np.int32).max


class TokenBatch(eqx.Module):
    """Token ids, padded on the right.

    Attributes:
        tokens: token ids; what follows a row's length is padding (id 0).
        lengths: number of tokens of each row.

    Examples:
        >>> import numpy as np
        >>> batch = TokenBatch(np.array([[5, 6, 0]]), np.array([2]))
        >>> batch.mask.tolist()
        [[True, True, False]]
    """

    tokens: Int[np.ndarray, "batch seq"] | Int[Array, "batch seq"]
    lengths: Int[np.ndarray, " batch"] | Int[Array, " batch"]

    @property
    def mask(self) -> Bool[np.ndarray, "batch seq"] | Bool[Array, "batch seq"]:
        """Which tokens are not padding."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]


class Windows:
    """Windows of a corpus by index: what is shuffled.

    Args:
        corpus: the documents.
        seq: tokens of a window, `bos` included.
        pack: whether windows are cut from the joined documents, or each is the
            beginning of one document.
        bos: token id that every window begins with, if any.
    """

    def __init__(self, corpus: Corpus, seq: int, pack: bool, bos: int | None) -> None:
        self.corpus = corpus
        self.seq = seq
        self.pack = pack
        self.head = [] if bos is None else [bos]
        self.width = seq - len(self.head)

    def __len__(self) -> int:
        corpus = self.corpus
        return corpus.ids.size // self.width if self.pack else corpus.ends.size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
        if self.pack:
            start = index * self.width
            stop = start + self.width
        else:
            start = int(self.corpus.ends[index - 1]) if index else 0
            stop = min(start + self.width, int(self.corpus.ends[index]))
        row = np.zeros(self.seq, np.int32)
        skip = len(self.head)
        row[:skip] = self.head
        row[skip : skip + stop - start] = self.corpus.ids[start:stop]
        return row, np.int32(skip + stop - start)


class Tokens(AbstractSource):
    """Batches of tokens, in an order shuffled anew in every epoch.

    The state is the number of batches taken, one integer. Any batch can be had from
    it at once, so going on where one stopped costs nothing. Where there are several
    processes, each reads its share of the rows of a batch.

    Args:
        corpus: the documents (`tokenize`, `Corpus.from_ids`).
        seq: tokens of a row.
        batch: rows of a batch, of all processes together.
        pack: whether rows are cut from the joined documents, so that no row is padded
            and the rest that fills no row is left out. Otherwise each row is one
            document, cut after `seq` tokens or padded.
        bos: token id to begin every row with, for instance `tokenizer.bos`.
        seed: of the order.
        epochs: how often the corpus is gone through; without end if `None`. Rows that
            the last batch lacks have length 0.

    Raises:
        TokenError: the corpus is too small for one batch.
        ShapeError: sizes or a seed that make no sense.

    Examples:
        >>> corpus = Corpus.from_ids([[1, 2, 3, 4], [5, 6, 7, 8, 9, 10]])
        >>> source = Tokens(corpus, seq=3, batch=2, bos=0)
        >>> state, batch = source.batch(source.start())
        >>> int(state), batch.tokens.shape, batch.tokens[:, 0].tolist()
        (1, (2, 3), [0, 0])
    """

    corpus: Corpus
    seq: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    pack: bool = eqx.field(static=True)
    bos: int | None = eqx.field(static=True)
    seed: int = eqx.field(static=True)
    epochs: int | None = eqx.field(static=True)

    def __init__(
        self,
        corpus: Corpus,
        *,
        seq: int,
        batch: int,
        pack: bool = True,
        bos: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
    ) -> None:
        check_seed(seed)
        if (
            seq < 1 + (bos is not None)
            or batch < 1
            or (epochs is not None and epochs < 1)
        ):
            raise ShapeError(
                f"A batch of {batch} rows of {seq} tokens, {epochs} times, cannot be: "
                "every row needs a token besides bos, and all sizes are positive."
            )
        self.corpus, self.seq, self.rows = corpus, seq, batch
        self.pack, self.bos, self.seed, self.epochs = pack, bos, seed, epochs
        if self.windows < batch:
            raise TokenError(
                f"The corpus is too small: {corpus.ids.size} tokens in "
                f"{corpus.ends.size} documents make {self.windows} rows of {seq} "
                f"tokens, and a batch takes {batch}. Give more text or smaller sizes."
            )

    @property
    def windows(self) -> int:
        """Number of rows in an epoch."""
        return len(self._windows)

    @property
    def length(self) -> int | None:
        """Number of batches, `None` without end."""
        if self.epochs is None:
            return None
        return -(-self.windows * self.epochs // self.rows)

    @property
    def digest(self) -> str:
        """SHA-256 of the corpus and of every setting."""
        settings = (self.seq, self.rows, self.pack, self.bos, self.seed, self.epochs)
        return digest_of((self.corpus.digest, settings))

    def start(self) -> Shaped[np.ndarray, ""]:
        """Returns the state before the first batch: 0."""
        return np.asarray(0, np.int32)

    def batch(self, state: Any) -> tuple[Shaped[np.ndarray, ""], TokenBatch]:
        """Returns the next state and batch; of several processes, this one's rows.

        Raises:
            TokenError: the epochs are over.
            ShapeError: the rows cannot be shared evenly by the processes.
        """
        processes = jax.process_count()
        if self.rows % processes:
            raise ShapeError(
                f"{self.rows} rows cannot be shared by {processes} processes: give a "
                "multiple."
            )
        share = self.rows // processes
        first = jax.process_index() * share
        batch = self.whole(int(state), range(first, first + share))
        return np.asarray(int(state) + 1, np.int32), batch

    def whole(self, position: int, rows: Sequence[int] | None = None) -> TokenBatch:
        """Returns some batch, whichever process asks.

        Args:
            position: which one.
            rows: which rows of it; all if `None`.

        Returns:
            The batch.

        Raises:
            TokenError: there is no such batch.
        """
        if position >= (LAST if self.length is None else self.length):
            raise TokenError(
                f"The {self.epochs} epochs of {self.windows} rows are over after "
                f"{self.length} batches: give more epochs or take fewer batches."
            )
        wanted = range(self.rows) if rows is None else rows
        row = self._row  # made once for all rows
        return stack((row(position * self.rows + i) for i in wanted), self.seq)

    def count(self, exclude: Sequence[int] = (), enough: int | None = None) -> int:
        """Counts the tokens of an epoch that are neither padding nor excluded.

        Args:
            exclude: token ids not to count.
            enough: where to stop counting.

        Returns:
            The number, or one that is `enough`.
        """
        windows, found = self._windows, 0
        for first in range(0, len(windows), 4096):
            rows = range(first, min(first + 4096, len(windows)))
            batch = stack((windows[i] for i in rows), self.seq)
            found += int(valid(batch, exclude).sum())
            if enough is not None and found >= enough:
                break
        return found

    @property
    def _windows(self) -> Windows:
        return Windows(self.corpus, self.seq, self.pack, self.bos)

    @property
    def _row(self) -> Any:
        """Returns what gives the row at any place of the shuffled stream."""
        import grain  # noqa: PLC0415 - slow to import

        data = grain.MapDataset.source(self._windows)
        data = data.seed(self.seed).shuffle().repeat(self.epochs)
        empty = np.zeros(self.seq, np.int32), np.int32(0)
        return lambda i: data[i] if i < len(data) else empty


def check_seed(seed: int) -> None:
    """Refuses a seed that the order cannot be made of."""
    if not 0 <= seed < SEEDS:
        raise ShapeError(f"A seed is an integer from 0 to {SEEDS - 1}, got {seed}.")


def stack(rows: Iterable[tuple[np.ndarray, np.int32]], seq: int) -> TokenBatch:
    """Makes a batch of rows."""
    found = list(rows)
    tokens = np.stack([row for row, _ in found]) if found else np.zeros((0, seq))
    lengths = np.asarray([length for _, length in found], np.int32)
    return TokenBatch(tokens.astype(np.int32), lengths)


def valid(batch: TokenBatch, exclude: Sequence[int]) -> Bool[np.ndarray, "batch seq"]:
    """Tells which tokens are neither padding nor excluded."""
    mask = np.asarray(batch.mask)
    return mask & ~np.isin(np.asarray(batch.tokens), list(exclude))
