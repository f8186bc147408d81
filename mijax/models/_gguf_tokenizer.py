"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` library."""

import dataclasses
from typing import Annotated, Any

from mijax._errors import LoadError
from mijax.data import ChatTemplate, Tokenizer
from mijax.io import Gguf, Index, Key

# Kinds of tokens, as llama.cpp numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
KINDS = ("gpt2", "llama")
SPACE = "▁"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFields:
    """Keys of GGUF metadata that describe a tokenizer."""

    model: Annotated[str, Key("tokenizer.ggml.model")]
    pre: Annotated[str, Key("tokenizer.ggml.pre")] = "default"
    tokens: Annotated[list[str], Key("tokenizer.ggml.tokens")]
    merges: Annotated[list[str] | None, Key("tokenizer.ggml.merges")] = None
    kinds: Annotated[list[Index] | None, Key("tokenizer.ggml.token_type")] = None
    scores: Annotated[list[float] | None, Key("tokenizer.ggml.scores")] = None
    bos: Annotated[Index | None, Key("tokenizer.ggml.bos_token_id")] = None
    eos: Annotated[Index | None, Key("tokenizer.ggml.eos_token_id")] = None
    add_bos: Annotated[bool | int | None, Key("tokenizer.ggml.add_bos_token")] = None
    space_prefix: Annotated[bool, Key("tokenizer.ggml.add_space_prefix")] = True
    template: Annotated[str | None, Key("tokenizer.chat_template")] = None


def gguf_tokenizer(gguf: Gguf) -> tuple[Tokenizer | None, str]:
    """Rebuild the tokenizer of a GGUF file from its metadata.

    Args:
        gguf: the open file.

    Returns:
        The tokenizer, or `None` and the reason why there is none: no vocabulary in the
        file, or a kind that the `tokenizers` library cannot rebuild.

    Raises:
        LoadError: lists of the vocabulary that do not fit each other.
    """
    path = str(gguf.path)
    if "tokenizer.ggml.model" not in gguf:
        return None, f"{path} has no vocabulary"
    return build_tokenizer(gguf.record(TokenizerFields), path)


def build_tokenizer(found: TokenizerFields, path: str) -> tuple[Tokenizer | None, str]:
    """Build the tokenizer that metadata describes.

    Args:
        found: the metadata.
        path: the file that errors name.

    Returns:
        The tokenizer, or `None` and the reason why there is none.

    Raises:
        LoadError: lists of the vocabulary that do not fit each other.
    """
    if found.model not in KINDS:
        return None, (
            f"{path} has a tokenizer of kind '{found.model}', supported are 'gpt2' "
            "(byte-level BPE) and 'llama' (SentencePiece BPE)"
        )
    check_lists(found, path)
    if found.model == "gpt2" and pre_tokenizer(found.pre) is None:
        return None, f"{path} has pre-tokenizer '{found.pre}', which is not supported"
    try:
        backend = (byte_level if found.model == "gpt2" else sentence_piece)(found)
    except Exception as error:  # the library raises nothing narrower
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LoadError(
            f"{path}: no tokenizer can be built from the vocabulary ({reason}). "
            "Download or copy the file again."
        ) from error
    add_special(backend, found)
    template = None if found.template is None else ChatTemplate(found.template)
    return Tokenizer(backend, bos=found.bos, eos=found.eos, template=template), ""


def check_lists(found: TokenizerFields, path: str) -> None:
    """Refuse a vocabulary whose lists or ids do not fit each other."""
    count = len(found.tokens)
    wanted: dict[str, Any] = {"token_type": found.kinds}
    if found.model == "llama":
        wanted["scores"] = found.scores or []
    for name, values in wanted.items():
        if values is not None and len(values) != count:
            raise LoadError(
                f"{path}: 'tokenizer.ggml.{name}' has {len(values)} entries for "
                f"{count} tokens. Convert the model to GGUF again."
            )
    if len(set(found.tokens)) != count:
        raise LoadError(
            f"{path}: 'tokenizer.ggml.tokens' gives a token twice. Convert the "
            "model to GGUF again."
        )
    for name, index in (("bos", found.bos), ("eos", found.eos)):
        if index is not None and index >= count:
            raise LoadError(
                f"{path}: 'tokenizer.ggml.{name}_token_id' is {index}, the vocabulary "
                f"has {count} tokens. Convert the model to GGUF again."
            )


def byte_level(found: TokenizerFields) -> Any:
    """Build the backend of byte-level BPE."""
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415
    from tokenizers import decoders, models  # noqa: PLC0415

    splitter, whole_words = pre_tokenizer(found.pre) or (None, False)
    merges = [tuple(merge.split(" ")) for merge in found.merges or ()]
    vocab = {piece: index for index, piece in enumerate(found.tokens)}
    backend = Backend(
        models.BPE(
            vocab=vocab,
            merges=merges,  # pyright: ignore[reportArgumentType] - checked there
            ignore_merges=whole_words,
        )
    )
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    return backend


def sentence_piece(found: TokenizerFields) -> Any:
    """Build the backend of SentencePiece BPE (Kudo & Richardson 2018).

    SentencePiece joins the neighbors whose piece has the highest score; merges ranked
    by the score of the piece that they make do the same. Characters outside the
    vocabulary become byte tokens where the vocabulary has those.
    """
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415
    from tokenizers import decoders, models, normalizers  # noqa: PLC0415

    kinds = found.kinds or [NORMAL] * len(found.tokens)
    unknown = [t for t, k in zip(found.tokens, kinds, strict=True) if k == UNKNOWN]
    backend = Backend(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(found.tokens)},
            merges=ranked_merges(found.tokens, found.scores or [], kinds),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        )
    )
    space = normalizers.Replace(" ", SPACE)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if found.space_prefix:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), space])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = space
    backend.decoder = decoders.Sequence(parts)
    return backend


def ranked_merges(
    pieces: list[str], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
    """Return every way to make a piece of two others, best score first.

    Of the ways to make one piece, the one with the longest beginning comes first.
    """
    joined = {
        piece: score
        for piece, score, kind in zip(pieces, scores, kinds, strict=True)
        if kind in (NORMAL, USER_DEFINED)
    }
    found = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in joined.items()
        for cut in range(1, len(piece))
        if piece[:cut] in joined and piece[cut:] in joined
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def add_special(backend: Any, found: TokenizerFields) -> None:
    """Mark the special tokens, and the one that begins a text."""
    from tokenizers import AddedToken  # noqa: PLC0415

    marked: dict[int, list[Any]] = {CONTROL: [], USER_DEFINED: []}
    for piece, kind in zip(found.tokens, found.kinds or (), strict=False):
        if kind in marked:
            marked[kind].append(
                AddedToken(piece, normalized=False, special=kind == CONTROL)
            )
    backend.add_special_tokens(marked[CONTROL])
    backend.add_tokens(marked[USER_DEFINED])
    # SentencePiece vocabularies begin texts with it unless the file says otherwise.
    begins = found.model == "llama" if found.add_bos is None else bool(found.add_bos)
    if found.bos is not None and begins:
        backend.post_processor = begin(found.tokens[found.bos], found.bos)


def pre_tokenizer(name: str) -> tuple[Any, bool] | None:
    """Return the pre-tokenizer, and whether whole words in the vocabulary win.

    The names and patterns are those of llama.cpp; `None` for any other name.
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
    return None


def begin(piece: str, index: int) -> Any:
    """Put a token before every text, where special tokens are asked for."""
    from tokenizers import processors  # noqa: PLC0415

    return processors.TemplateProcessing(
        single=[piece, "$A"],
        pair=[piece, "$A", "$B"],
        special_tokens=[(piece, index)],
    )
