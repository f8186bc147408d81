"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` library."""

from typing import Any

from mijax._errors import LoadError, nearest
from mijax.data import Tokenizer
from mijax.io import Gguf

CONTROL, USER_DEFINED = 3, 4
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(gguf: Gguf) -> Tokenizer:
    """Rebuilds a byte-level BPE tokenizer from metadata.

    Args:
        gguf: the open file.

    Returns:
        The tokenizer.

    Raises:
        LoadError: the file has another kind of tokenizer.
    """
    from tokenizers import AddedToken, decoders, models  # noqa: PLC0415
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415

    kind = gguf.metadata("tokenizer.ggml.model")
    if kind != "gpt2":
        raise LoadError(
            f"{gguf.path}: tokenizer model '{kind}' is not supported, only 'gpt2' "
            "(byte-level BPE). Use the Hugging Face folder of this model."
        )
    name = gguf.metadata("tokenizer.ggml.pre", "default")
    splitter, whole_words = pre_tokenizer(name, gguf)
    pieces = gguf.metadata("tokenizer.ggml.tokens")
    merges = gguf.metadata("tokenizer.ggml.merges")
    kinds = gguf.metadata("tokenizer.ggml.token_type")
    backend = Backend(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=whole_words,
        )
    )
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    marked = {CONTROL: [], USER_DEFINED: []}
    for piece, what in zip(pieces, kinds, strict=True):
        if what in marked:
            marked[what].append(
                AddedToken(piece, normalized=False, special=what == CONTROL)
            )
    backend.add_special_tokens(marked[CONTROL])
    backend.add_tokens(marked[USER_DEFINED])
    bos = optional(gguf, "tokenizer.ggml.bos_token_id")
    if bos is not None and optional(gguf, "tokenizer.ggml.add_bos_token"):
        backend.post_processor = begin(pieces[bos], bos)
    eos = optional(gguf, "tokenizer.ggml.eos_token_id")
    return Tokenizer(backend, bos=bos, eos=eos)


def pre_tokenizer(name: str, gguf: Gguf) -> tuple[Any, bool]:
    """How a text is cut before merging, and whether whole words in the vocabulary win.

    The names and patterns are those of llama.cpp.
    """
    from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("gpt-2", "gpt2"):
        return gpt2, False
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, gpt2]), False
    if name in ("llama-bpe", "llama3", "llama-v3"):
        words = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([words, plain]), True
    hint = nearest(name, ("gpt-2", "smollm", "llama-bpe"))
    raise LoadError(f"{gguf.path}: pre-tokenizer '{name}' is not supported.{hint}")


def begin(piece: str, index: int) -> Any:
    """Puts a token before every text, where special tokens are asked for."""
    from tokenizers import processors  # noqa: PLC0415

    return processors.TemplateProcessing(
        single=[piece, "$A"],
        pair=[piece, "$A", "$B"],
        special_tokens=[(piece, index)],
    )


def optional(gguf: Gguf, key: str) -> Any:
    """Metadata, or `None`."""
    return gguf.metadata(key) if key in gguf else None
