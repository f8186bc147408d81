"""Text to token ids and back."""

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mijax._errors import LoadError, TokenError, printable
from mijax.data.text._chat import ChatTemplate

if TYPE_CHECKING:
    import tokenizers

# The rule of the `tokenizers` library that puts a space before every text.
PREFIX = "Prepend"
VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥"}


class Tokenizer:
    """A tokenizer of the `tokenizers` library, with what interpretability needs.

    Args:
        backend: the `tokenizers.Tokenizer`; one that pads or truncates is copied
            without, as token ids here are those of the text.
        bos: id of the token that begins a text, if the model has one.
        eos: id of the token that ends a text, if the model has one.
        template: how the model writes conversations, if it is known; see `chat`.

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
        template: ChatTemplate | None = None,
    ) -> None:
        if backend.padding or backend.truncation:
            backend = _whole(backend)
        self.backend = backend
        self.bos = bos
        self.eos = eos
        self.template = template

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
        """Split a text into token ids.

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
        """Split a text into token ids and says which characters each one covers.

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
        """Join token ids to a text; special tokens are spelled out.

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
        """Return the id of a text that is one token.

        Tokenizers such as Llama 2's put a space before every text. A text that begins
        with a space is read there as inside a longer text, so that `" Mary"` is the
        same word for every tokenizer.

        Args:
            text: the text, with its leading space if it follows a word.

        Returns:
            The id.

        Raises:
            TokenError: the text is not a token, is several, or is not one text.
        """
        ids = self._word(text)
        if len(ids) != 1:
            pieces = ", ".join(repr(piece) for piece in self.pieces(ids)) or "nothing"
            raise TokenError(
                f"{text!r} is {len(ids)} tokens, expected one: {pieces}. "
                "Choose another word; most words need a leading space."
            )
        return ids[0]

    def is_token(self, text: str) -> bool:
        """Tell if a text is exactly one token, as `token` reads it.

        Args:
            text: the text, with its leading space if it follows a word.

        Returns:
            True if `token` returns its id.

        Examples:
            >>> tokenizer = Tokenizer.from_pieces([" Mary"])
            >>> tokenizer.is_token(" Mary"), tokenizer.is_token(" Mary!")
            (True, False)
        """
        return len(self._word(text)) == 1

    def continuation(self, text: str) -> list[int]:
        """Split a text that continues another one.

        This is `encode` without the space that some tokenizers, such as Llama 2's, put
        before every text.

        Args:
            text: the text, with its leading space if it follows a word.

        Returns:
            Token ids.

        Raises:
            TokenError: the argument is not one text.

        Examples:
            >>> tokenizer = Tokenizer.from_pieces([" 17", "32"])
            >>> tokenizer.pieces(tokenizer.continuation(" 1732"))
            [' 17', '32']
        """
        check_text(text)
        backend = self._unprefixed or self.backend
        return backend.encode(text, add_special_tokens=False).ids

    def _word(self, text: str) -> list[int]:
        """Split a text as inside a longer one, unless it is one token at the start."""
        ids = self.encode(text)
        return ids if len(ids) == 1 and text[:1] != " " else self.continuation(text)

    @functools.cached_property
    def _unprefixed(self) -> Any:
        """The backend without the space that it puts before every text, if it does."""
        content = json.loads(self.backend.to_str()) if self.backend.normalizer else {}
        rules = content.get("normalizer") or {}
        kept = [r for r in rules.get("normalizers", [rules]) if r.get("type") != PREFIX]
        if not rules or len(kept) == len(rules.get("normalizers", [rules])):
            return None
        content["normalizer"] = {"type": "Sequence", "normalizers": kept}
        return type(self.backend).from_str(json.dumps(content))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        r"""Write a conversation as the model was trained to read it.

        The template comes from the model's files and is rendered by jinja2 in a
        sandbox, as transformers does.

        Args:
            messages: `{"role": "user", "content": "..."}` and so on, in order.
            add_generation_prompt: whether to end with what begins an answer.
            **variables: other variables of the template, such as `tools`.

        Returns:
            The text, special tokens included: give it to `encode` as it is.

        Raises:
            TokenError: no template, or one that refuses these messages.

        Examples:
            >>> source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
            >>> template = ChatTemplate(source + "{% endfor %}")
            >>> plain = Tokenizer.from_pieces([" Mary"])
            >>> tokenizer = Tokenizer(plain.backend, template=template)
            >>> tokenizer.chat([{"role": "user", "content": "Hi"}])
            '[user] Hi'
        """
        if self.template is None:
            raise TokenError(
                "This tokenizer has no chat template: load an instruction-tuned model "
                "whose files have one, or write the conversation as plain text."
            )
        ids = {"bos_token": self.bos, "eos_token": self.eos}
        names = {
            name: self.backend.id_to_token(index)
            for name, index in ids.items()
            if index is not None
        }
        variables["add_generation_prompt"] = add_generation_prompt
        return self.template.render(messages, {**names, **variables})

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        r"""Spell each token for display.

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
        return printable(text)


def check_text(text: Any) -> None:
    """Refuse what is not one text."""
    if not isinstance(text, str):
        raise TokenError(
            f"Expected one text, got {text!r:.60} ({type(text).__name__}): call this "
            "for each text, or make a batch with Prompts.from_texts(tokenizer, texts)."
        )


def rank_of(ids: Any) -> int:
    """Return the rank of an array or of nested lists, whose rows may be unequal."""
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
    """Return a copy that neither pads nor truncates."""
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
    """Read `tokenizer.json`.

    Args:
        path: the file.
        **special: `bos`, `eos` and `template` of the `Tokenizer`.

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
