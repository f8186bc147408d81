"""Text to token ids and back."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mijax._errors import LoadError, TokenError

if TYPE_CHECKING:
    import tokenizers

VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥"}


class Tokenizer:
    """A tokenizer of the `tokenizers` library, with what interpretability needs.

    Args:
        backend: the `tokenizers.Tokenizer`; one that pads or truncates is copied
            without, as token ids here are those of the text.
        bos: id of the token that begins a text, if the model has one.
        eos: id of the token that ends a text, if the model has one.

    Examples:
        >>> from tokenizers import Tokenizer as Backend, models
        >>> tokenizer = Tokenizer(Backend(models.WordLevel({"a": 0, "b": 1}, "b")))
        >>> tokenizer.encode("a"), tokenizer.token("a"), tokenizer.vocab_size
        ([0], 0, 2)
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        *,
        bos: int | None = None,
        eos: int | None = None,
    ) -> None:
        if backend.padding or backend.truncation:
            backend = _whole(backend)
        self.backend = backend
        self.bos = bos
        self.eos = eos

    @classmethod
    def from_pieces(cls, pieces: Sequence[str]) -> "Tokenizer":
        """Makes a tokenizer of the pieces that are to be one token, for toy models.

        Each word of a text is cut from the left into the longest pieces; what no piece
        covers is cut into bytes.

        Args:
            pieces: texts within a word, with the leading space if they begin one.

        Returns:
            The tokenizer; ids 0 to 255 are bytes, the next ones the pieces in order.

        Raises:
            TokenError: a piece is empty or crosses the border between two words.

        Examples:
            >>> tokenizer = Tokenizer.from_pieces([" Mary", " 17", "32"])
            >>> tokenizer.pieces(tokenizer.encode(" Mary 1732!"))
            [' Mary', ' 17', '32', '!']
        """
        from tokenizers import Tokenizer as Backend  # noqa: PLC0415
        from tokenizers import decoders, models, pre_tokenizers  # noqa: PLC0415

        byte = {value: character for character, value in byte_alphabet().items()}
        spelled = ("".join(byte[b] for b in piece.encode()) for piece in pieces)
        words = dict.fromkeys([*byte.values(), *spelled])
        backend = Backend(
            models.WordPiece(
                {word: i for i, word in enumerate(words)},
                unk_token=byte[0],
                continuing_subword_prefix="",
                max_input_chars_per_word=10**6,
            )
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = cls(backend)
        for piece in pieces:
            tokenizer.token(piece)
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Splits a text into token ids.

        Args:
            text: the text; special tokens that it spells out become those tokens.
            add_special: whether to add the special tokens that the tokenizer puts
                around every text.

        Returns:
            Token ids.

        Raises:
            TokenError: what was given is not one text.
        """
        check_text(text)
        return self.backend.encode(text, add_special_tokens=add_special).ids

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Splits a text into token ids and says which characters each one covers.

        Args:
            text: the text.

        Returns:
            Token ids, and the (start, stop) characters of each. Whether a leading
            space is counted depends on the tokenizer.

        Raises:
            TokenError: what was given is not one text.
        """
        check_text(text)
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Any) -> Any:
        """Joins token ids to a text; special tokens are spelled out.

        Args:
            ids: token ids `[seq]`, or of several texts `[batch, seq]`; padding is
                spelled out too.

        Returns:
            The text; a list of texts for a batch.

        Raises:
            TokenError: ids of another rank.

        Examples:
            >>> tokenizer = Tokenizer.from_pieces([" Mary", " went"])
            >>> tokenizer.decode([256, 257])
            ' Mary went'
            >>> tokenizer.decode([[256, 257], [257]])
            [' Mary went', ' went']
        """
        rank = rank_of(ids)
        if rank not in (1, 2):
            raise TokenError(
                f"Token ids of rank {rank} cannot be decoded: give [seq], or "
                "[batch, seq] for a list of texts."
            )
        if rank == 2:
            return [self.decode(row) for row in ids]
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, text: str) -> int:
        """Returns the id of a text that is one token.

        Args:
            text: the text, with its leading space if it follows a word.

        Returns:
            The id.

        Raises:
            TokenError: the text is no token or several, or not one text.
        """
        ids = self.encode(text)
        if len(ids) != 1:
            pieces = ", ".join(repr(piece) for piece in self.pieces(ids)) or "nothing"
            raise TokenError(
                f"{text!r} is {len(ids)} tokens, expected one: {pieces}. "
                "Choose another word; most words need a leading space."
            )
        return ids[0]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        r"""Spells each token for display.

        Args:
            ids: token ids.

        Returns:
            One string per token: spaces as they are, line breaks as `↵`, bytes that
            are not a whole character as `\xf0`.

        Raises:
            TokenError: an id is not in the vocabulary.
        """
        byte_level = "ByteLevel" in repr(self.backend.decoder)
        added = set(self.backend.get_added_tokens_decoder())
        return [self._piece(int(i), byte_level and int(i) not in added) for i in ids]

    def _piece(self, index: int, byte_level: bool) -> str:
        piece = self.backend.id_to_token(index) if index >= 0 else None
        if piece is None:
            raise TokenError(
                f"Token id {index} is not in the vocabulary of {self.vocab_size} ids."
            )
        text = spell(piece) if byte_level else piece.replace("▁", " ")
        for character, visible in VISIBLE.items():
            text = text.replace(character, visible)
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def check_text(text: Any) -> None:
    """Refuses what is not one text."""
    if not isinstance(text, str):
        raise TokenError(
            f"Expected one text, got {text!r:.60} ({type(text).__name__}): call this "
            "for each text, or make a batch with Prompts.from_texts(tokenizer, texts)."
        )


def rank_of(ids: Any) -> int:
    """Returns the rank of an array or of nested lists, whose rows may be unequal."""
    if hasattr(ids, "ndim"):
        return ids.ndim
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        return 0
    return 1 + (rank_of(ids[0]) if ids else 0)


def spell(piece: str) -> str:
    """Undoes the byte alphabet of byte-level BPE (Radford et al. 2019)."""
    table = byte_alphabet()
    if not all(character in table for character in piece):
        return piece
    whole = bytes(table[character] for character in piece)
    return whole.decode("utf-8", errors="backslashreplace")


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _whole(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """Returns a copy that neither pads nor truncates."""
    try:
        found = copy.deepcopy(backend)
    except Exception as error:  # the library raises nothing narrower
        raise TokenError(
            f"The tokenizer pads or truncates, and cannot be copied ({error}): call "
            "its no_padding() and no_truncation() first."
        ) from error
    found.no_padding()
    found.no_truncation()
    found.encode_special_tokens = backend.encode_special_tokens
    return found


def read_tokenizer(path: Path, **special: Any) -> Tokenizer:
    """Reads `tokenizer.json`.

    Args:
        path: the file.
        **special: ids of `bos` and `eos`.

    Returns:
        The tokenizer.

    Raises:
        LoadError: the file is missing or broken.
    """
    import tokenizers  # noqa: PLC0415 - not needed by those who work on token ids

    if not path.is_file():
        raise LoadError(f"{path} does not exist. Put the tokenizer's file there.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        reason = str(error).splitlines()[0]
        raise LoadError(
            f"{path} is not a tokenizer of the `tokenizers` library: {reason}. "
            "Download or copy the file again."
        ) from error
    return Tokenizer(backend, **special)
