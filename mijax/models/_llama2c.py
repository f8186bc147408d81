"""Llama models in the format of llama2.c (Karpathy 2023), version 0, `.bin`.

A header of seven integers, then float32 arrays in a fixed order and without names; the
vocabulary is a second file, `tokenizer.bin` or `tok512.bin` for 512 tokens. Each array
has its name in GGUF files here, since both rotate neighboring features.
"""

import dataclasses
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mijax._errors import LoadError
from mijax.data import Tokenizer
from mijax.models._gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    TokenizerFields,
    build_tokenizer,
)
from mijax.models._llama_spec import LlamaSpec

HEADER = struct.Struct("<7i")
# Ids of the unknown token, of the two control tokens, and of the 256 single bytes.
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = range(3, 259)
UNREAD = ("freq_cis_real", "freq_cis_imag")


@dataclasses.dataclass(frozen=True)
class Header:
    """The seven integers, in their order; `vocab` is negative if untied."""

    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int


class Llama2c:
    """The arrays of one llama2.c file, read one at a time.

    Args:
        path: the file.

    Raises:
        LoadError: the length of the file does not fit its header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        self.header = read_header(path)
        shapes: dict[str, tuple[int, ...]] = {}
        self.offsets: dict[str, int] = {}
        offset = HEADER.size
        for name, shape, count in layout(self.header):
            for layer in range(count):
                # Nothing reads the tables of rotary frequencies any more.
                if name not in UNREAD:
                    real = name.replace("{layer}", str(layer))
                    shapes[real], self.offsets[real] = shape, offset
                offset += 4 * math.prod(shape)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, name: str) -> np.ndarray:
        """Read one array, in float32."""
        shape = self.shapes[name]
        with self.path.open("rb") as file:
            file.seek(self.offsets[name])
            data = file.read(4 * math.prod(shape))
        return np.frombuffer(data, "<f4").reshape(shape)

    def spec(self) -> LlamaSpec:
        """Return the sizes of the model."""
        h = self.header
        return LlamaSpec(
            layers=h.layers,
            embed=h.embed,
            heads=h.heads,
            kv_heads=h.kv_heads,
            head_dim=h.embed // h.heads,
            mlp=h.mlp,
            vocab=abs(h.vocab),
            context=h.context,
            tied=h.vocab > 0,
        )


def is_llama2c(path: Path) -> bool:
    """Check that a path is a `.bin` file of the length in its header."""
    if path.suffix != ".bin" or not path.is_file():
        return False
    try:
        read_header(path)
    except LoadError:
        return False
    return True


def read_header(path: Path) -> Header:
    """Read the header, and compare it with the length of the file."""
    with path.open("rb") as file:
        start = file.read(HEADER.size)
    size = path.stat().st_size
    if len(start) == HEADER.size:
        header = Header(*HEADER.unpack(start))
        sizes = dataclasses.astuple(header)
        fits = (
            header.vocab != 0
            and all(n > 0 for n in (*sizes[:5], header.context))
            # Each layer has at least one number, so that nothing long is listed.
            and header.layers < size
            and header.embed % header.heads == 0
            and header.heads % header.kv_heads == 0
        )
        if fits and size == HEADER.size + 4 * sum(
            count * math.prod(shape) for _, shape, count in layout(header)
        ):
            return header
    raise LoadError(
        f"{path} is not a model of llama2.c: {size} bytes do not fit its header. "
        "Download the file again; only version 0 of the format is supported."
    )


def layout(h: Header) -> list[tuple[str, tuple[int, ...], int]]:
    """Return name, shape and number of the arrays, in the order of the file."""
    head_dim = h.embed // h.heads
    width, n = h.kv_heads * head_dim, h.layers
    rows = [
        ("token_embd.weight", (abs(h.vocab), h.embed), 1),
        ("blk.{layer}.attn_norm.weight", (h.embed,), n),
        ("blk.{layer}.attn_q.weight", (h.heads * head_dim, h.embed), n),
        ("blk.{layer}.attn_k.weight", (width, h.embed), n),
        ("blk.{layer}.attn_v.weight", (width, h.embed), n),
        ("blk.{layer}.attn_output.weight", (h.embed, h.heads * head_dim), n),
        ("blk.{layer}.ffn_norm.weight", (h.embed,), n),
        ("blk.{layer}.ffn_gate.weight", (h.mlp, h.embed), n),
        ("blk.{layer}.ffn_down.weight", (h.embed, h.mlp), n),
        ("blk.{layer}.ffn_up.weight", (h.mlp, h.embed), n),
        ("output_norm.weight", (h.embed,), 1),
        *((name, (h.context, head_dim // 2), 1) for name in UNREAD),
    ]
    untied = [("output.weight", (abs(h.vocab), h.embed), 1)] if h.vocab < 0 else []
    return rows + untied


def llama2c_tokenizer(path: Path, vocab: int) -> tuple[Tokenizer | None, str]:
    """Rebuild the tokenizer next to a model.

    Args:
        path: the file of the model.
        vocab: number of tokens of the model.

    Returns:
        The tokenizer, or `None` and the reason why there is none.

    Raises:
        LoadError: the file of the vocabulary is broken.
    """
    names = (f"tok{vocab}.bin", "tokenizer.bin")
    found = [path.with_name(n) for n in names if path.with_name(n).is_file()]
    if not found:
        return None, f"{path.parent} has no {names[0]} or {names[1]}"
    tokens, scores = read_vocabulary(found[0], vocab)
    kinds = [NORMAL] * vocab
    for index in range(min(vocab, BYTES.stop)):
        kinds[index] = BYTE if index in BYTES else CONTROL
    kinds[0] = UNKNOWN
    fields = TokenizerFields(
        model="llama",
        tokens=[*SPECIAL, *tokens[len(SPECIAL) :]],
        scores=scores,
        kinds=kinds,
        bos=1,
        eos=2,
    )
    return build_tokenizer(fields, str(found[0]))


def read_vocabulary(path: Path, vocab: int) -> tuple[list[str], list[float]]:
    """Read the pieces and their scores."""
    data, offset = path.read_bytes(), 4
    pieces: list[str] = []
    scores: list[float] = []
    try:
        while offset < len(data) and len(pieces) <= vocab:
            score, length = struct.unpack_from("<fi", data, offset)
            offset += 8 + length
            if length < 0 or offset > len(data):
                raise ValueError("a piece ends after the file")
            # Files have spaces where SentencePiece has its own character.
            piece = data[offset - length : offset].decode().replace(" ", "▁")
            pieces.append(piece)
            scores.append(score)
    except (struct.error, ValueError) as error:
        raise LoadError(f"{path}: {error}. Download the file again.") from error
    if len(pieces) != vocab:
        count = f"{len(pieces)} tokens" if len(pieces) < vocab else "more tokens"
        raise LoadError(
            f"{path} has {count}, the model {vocab}. Put the vocabulary of this model "
            "there."
        )
    return pieces, scores
