"""Batches of prompts with named places in them."""

from collections.abc import Iterable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mijax._errors import PositionError, TokenError, nearest, quoted
from mijax.core.internal import cut, integers, shown
from mijax.data.text._tokenizer import Tokenizer

Span = tuple[Int[Array, " batch"], Int[Array, " batch"]]
Index = int | slice | Sequence[int] | np.ndarray | Array


class Prompts(eqx.Module):
    """A batch of prompts, padded on the right.

    Attributes:
        tokens: token ids; what follows a prompt's length is padding.
        lengths: number of tokens of each prompt.
        spans: name of a place, and the first and one past the last token of it in each
            prompt.
        texts: the text of each prompt, without what was prepended.

    Examples:
        >>> prompts = Prompts.from_ids([[1, 2, 3], [4, 5]])
        >>> prompts.last.tolist(), prompts.mask.tolist()[1]
        ([2, 1], [True, True, False])
    """

    tokens: Int[Array, "batch seq"]
    lengths: Int[Array, " batch"]
    spans: dict[str, Span]
    texts: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def from_texts(
        cls,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        *,
        prepend: Sequence[int | None] = (),
        spans: Mapping[str, str | Sequence[str]] | None = None,
        pad: int = 0,
    ) -> "Prompts":
        """Tokenizes texts.

        Args:
            tokenizer: the model's tokenizer.
            texts: one text per prompt.
            prepend: token ids to put before each text, for example
                `[tokenizer.bos]`.
            spans: name of a place, and the part of the text that it covers: one for
                all texts or one for each. The span has every token that overlaps it.
            pad: token id to fill with.

        Returns:
            The prompts, with the spans and `"last"`.

        Raises:
            PositionError: there are no texts, one of them has no tokens, or a part
                occurs in a text never or more than once.
            TokenError: one text instead of a list of texts, or a tokenizer without a
                BOS token in `prepend=[tokenizer.bos]`.

        Examples:
            >>> from mijax.data import Tokenizer
            >>> tokenizer = Tokenizer.from_pieces([" Mary", " went"])
            >>> Prompts.from_texts(tokenizer, [" Mary went", " Mary"]).tokens.tolist()
            [[256, 257], [256, 0]]
            >>> prompts = Prompts.from_texts(
            ...     tokenizer, [" Mary went", " went"], spans={"verb": "went"}
            ... )
            >>> prompts.position("verb").tolist()
            [1, 0]
        """
        if isinstance(texts, str):
            raise TokenError(
                f"texts is the text {texts!r:.60}, expected a list of texts: write "
                "[text]."
            )
        check_prepend(prepend)
        ids = [[*prepend, *tokenizer.encode(text)] for text in texts]
        places = {
            name: covering(tokenizer, texts, name, parts, len(prepend))
            for name, parts in (spans or {}).items()
        }
        return cls.from_ids(ids, texts=texts, spans=places, pad=pad)

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[Sequence[int]],
        *,
        texts: Sequence[str] | None = None,
        spans: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        pad: int = 0,
    ) -> "Prompts":
        """Makes prompts of token ids.

        Args:
            ids: token ids of each prompt, of any lengths.
            texts: the text of each prompt.
            spans: name of a place, and its (start, stop) tokens in each prompt.
            pad: token id to fill with.

        Returns:
            The prompts, with the spans and `"last"`.

        Raises:
            PositionError: there are no prompts, one of them has no tokens, or a span
                is empty or outside its prompt.
            TokenError: ids that are not integers of 32 bits.
        """
        if not isinstance(ids, Iterable) or isinstance(ids, str | bytes | Mapping):
            raise TokenError(f"Give a list of token ids per prompt, got {quoted(ids)}.")
        if spans is not None and not isinstance(spans, Mapping):
            raise PositionError(
                f"Spans are a mapping from names to places, got {quoted(spans)}."
            )
        ids = [integers(row, "A token id", TokenError) for row in ids]
        wrong = next((row.shape for row in ids if row.ndim != 1), None)
        if wrong is not None:
            raise TokenError(f"Token ids of a prompt are a flat list, got {wrong}.")
        filler = integers(pad, "The padding", TokenError)
        if filler.ndim:
            raise TokenError(f"The padding is one token id, got {quoted(pad)}.")
        lengths = np.array([len(row) for row in ids], np.int32)
        if not len(lengths) or not lengths.all():
            which = f"Prompt {int(lengths.argmin())}" if len(lengths) else "The batch"
            raise PositionError(f"{which} is empty; every prompt needs a token.")
        tokens = np.full((len(ids), lengths.max()), filler, np.int32)
        for row, new in zip(tokens, ids, strict=True):
            row[: len(new)] = new
        places = {
            name: span_of(name, pairs, lengths) for name, pairs in (spans or {}).items()
        }
        places["last"] = (as_ids(lengths - 1), as_ids(lengths))
        names = tuple(texts) if texts is not None else ("",) * len(ids)
        return cls(as_ids(tokens), as_ids(lengths), places, names)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __repr__(self) -> str:
        places = ", ".join(self.spans)
        text = f", {cut(repr(self.texts[0]), 40)}" if any(self.texts) else ""
        size = f"{len(self)} prompts, lengths {shown(self.lengths)}"
        return cut(f"Prompts({size}, spans {places}{text})")

    def __getitem__(self, index: Index) -> "Prompts":
        """Chooses prompts; one index gives a batch of one."""
        rows = chosen(len(self), index)
        tokens, lengths, spans = jax.tree.map(
            lambda x: x[rows], (self.tokens, self.lengths, self.spans)
        )
        return Prompts(tokens, lengths, spans, tuple(self.texts[i] for i in rows))

    @property
    def last(self) -> Int[Array, " batch"]:
        """Position of the last token of each prompt."""
        return self.lengths - 1

    @property
    def mask(self) -> Bool[Array, "batch seq"]:
        """Which tokens are not padding."""
        return jnp.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def position(self, name: str) -> Int[Array, " batch"]:
        """Position of the last token of a named place in each prompt.

        Raises:
            PositionError: the prompts have no such place.
        """
        return self.find(name)[1] - 1

    def span(self, name: str) -> slice:
        """A named place as a slice of positions, with one start and stop per prompt.

        Raises:
            PositionError: the prompts have no such place.
        """
        return slice(*self.find(name))

    def find(self, name: str) -> Span:
        """Start and stop of a named place in each prompt.

        Raises:
            PositionError: the prompts have no such place.
        """
        if name not in self.spans:
            raise PositionError(
                f"These prompts have no place {name!r}.{nearest(name, self.spans)}"
            )
        return self.spans[name]


def check_prepend(prepend: Sequence[int | None]) -> None:
    """Refuses the BOS token of a tokenizer that has none."""
    if any(token is None for token in prepend):
        raise TokenError(
            "prepend has None: this tokenizer has no BOS token. Leave prepend out, or "
            "give the id of a token."
        )


def covering(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    name: str,
    parts: str | Sequence[str],
    shift: int,
) -> list[tuple[int, int]]:
    """Returns the (start, stop) tokens that overlap a part of each text."""
    each = [parts] * len(texts) if isinstance(parts, str) else list(parts)
    if len(each) != len(texts):
        raise PositionError(
            f"Span {name!r} has {len(each)} parts for {len(texts)} texts: give one "
            "for all texts, or one for each."
        )
    found = []
    for text, part in zip(texts, each, strict=True):
        times = text.count(part) if part else 0
        if times != 1:
            raise PositionError(
                f"Span {name!r}: {part!r} occurs {times} times in {text!r:.80}, "
                "expected once. Give a longer part of the text."
            )
        begin = text.index(part)
        end = begin + len(part)
        inside = [
            i
            for i, (start, stop) in enumerate(tokenizer.offsets(text)[1])
            if start < end and stop > begin
        ]
        if not inside:
            raise PositionError(
                f"Span {name!r}: {part!r} has no token in {text!r:.80}."
            )
        found.append((shift + inside[0], shift + inside[-1] + 1))
    return found


def span_of(
    name: str, pairs: Sequence[tuple[int, int]], lengths: Int[np.ndarray, " batch"]
) -> Span:
    """Return the starts and the stops of a place, one pair per prompt.

    Raises:
        PositionError: not one pair per prompt, or a place outside its prompt.
    """
    found = integers(pairs, f"Place {name!r}", PositionError)
    if found.shape != (len(lengths), 2):
        raise PositionError(
            f"Place {name!r} needs a (start, stop) for each of {len(lengths)} prompts, "
            f"got shape {found.shape}."
        )
    start, stop = found[:, 0], found[:, 1]
    wrong = np.flatnonzero((start < 0) | (stop <= start) | (stop > lengths))
    if wrong.size:
        i = int(wrong[0])
        raise PositionError(
            f"Place {name!r} of prompt {i} is ({start[i]}, {stop[i]}), expected a "
            f"start and a later stop from 0 to its {lengths[i]} tokens."
        )
    return as_ids(start), as_ids(stop)


def chosen(length: int, index: Index) -> np.ndarray:
    """Returns the rows that an index chooses of so many."""
    rows = np.arange(length)
    return np.atleast_1d(rows[index if isinstance(index, slice) else np.asarray(index)])


def as_ids(values: Sequence[int] | np.ndarray) -> Int[Array, "..."]:
    """Copy integers to the device."""
    return jnp.asarray(integers(values), jnp.int32)


def aligned(clean: Prompts, corrupt: Prompts) -> None:
    """Checks that two batches can be patched into each other token by token.

    Args:
        clean: one batch.
        corrupt: its counterpart.

    Raises:
        PositionError: the batches have different sizes, or a prompt and its
            counterpart have different numbers of tokens.

    Examples:
        >>> aligned(Prompts.from_ids([[1, 2]]), Prompts.from_ids([[3, 4]]))
    """
    if len(clean) != len(corrupt):
        raise PositionError(
            f"{len(clean)} clean prompts and {len(corrupt)} corrupt ones; "
            "give one counterpart per prompt."
        )
    different = np.flatnonzero(np.asarray(clean.lengths != corrupt.lengths))
    if len(different):
        i = int(different[0])
        raise PositionError(
            f"Prompt {i} has {clean.lengths[i]} tokens and its counterpart "
            f"{corrupt.lengths[i]}: {clean.texts[i]!r} and {corrupt.texts[i]!r}. "
            "Choose words of equally many tokens."
        )
