"""Text in place of token ids, for a model that comes with its tokenizer."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from mijax._errors import ShapeError, TokenError
from mijax.core._check import check_model
from mijax.core._function import FunctionModel
from mijax.core._model import AbstractModel
from mijax.core._sharding import automatic
from mijax.core._tokens import Padded, TokensLike


@runtime_checkable
class LanguageModel(Protocol):
    """A model and its tokenizer, such as `mijax.models.load` returns."""

    model: Any
    tokenizer: Any


@runtime_checkable
class SourceModel(Protocol):
    """A model that writes a target for a source, such as an encoder-decoder."""

    start: tuple[int, ...]

    def on_source(self, source: Any) -> tuple[AbstractModel, Any]:
        """Return the decoder of some sources, and the first tokens of targets."""
        ...


ModelLike = AbstractModel | FunctionModel | LanguageModel
TextLike = TokensLike | str | Sequence[str]


def padded(ids: Sequence[Sequence[int]]) -> Padded:
    """Pad the token ids of several texts on the right, with the place `"last"`."""
    lengths = np.array([len(row) for row in ids], np.int32)
    tokens = np.zeros((len(ids), lengths.max()), np.int32)
    for row, new in zip(tokens, ids, strict=True):
        row[: len(new)] = new
    tokens, lengths = jax.device_put(tokens), jax.device_put(lengths)
    return Padded(tokens, lengths, {"last": (lengths - 1, lengths)})


def opened(model: Any, tokens: Any) -> tuple[AbstractModel, Any]:
    """Return a model and token ids, given a language model and a text or tokens.

    Texts are tokenized with the special tokens that the tokenizer puts around every
    text, such as the first token of Llama 3.

    Args:
        model: a model, or a model with its tokenizer.
        tokens: a text, a list of texts, or whatever else the verbs take.

    Returns:
        The model, and tokens `[seq]`, prompts of several texts, or `tokens` as given.

    Raises:
        TokenError: a text without a tokenizer, or without tokens.
    """
    texts = texts_of(tokens)
    lone = getattr(model, "model", None)
    if isinstance(lone, SourceModel) or isinstance(model, SourceModel):
        raise ShapeError(
            f"{type(lone or model).__name__} takes a source and a target: make a model "
            "of both, mijax.model(one, one.example), and its inputs, one.inputs(source,"
            " target); or take the decoder of a source, one.on_source(source)."
        )
    if isinstance(model, AbstractModel) or not isinstance(lone, AbstractModel):
        if texts is not None:
            raise TokenError(
                f"A bare model cannot read the text {texts[0]!r:.40}: give the "
                "language model, run(lm, text) with lm = mijax.models.load(...), or "
                "ids, tokenizer.encode(text)."
            )
        check_model(model)
        return automatic(model), automatic(tokens)
    lone = automatic(lone)
    if texts is None:
        return lone, automatic(tokens)
    return lone, _encoded(model.tokenizer, texts, alone=isinstance(tokens, str))


def opened_target(model: Any, tokens: Any) -> tuple[AbstractModel, Any]:
    """Do the same as `opened`; what a `SourceModel` is given is its source.

    Args:
        model: a model, or a model with its tokenizer.
        tokens: what `opened` takes, or the source of targets.

    Returns:
        The model and its prompts: of a `SourceModel` the decoder of the sources, and
        the tokens that their targets begin with.
    """
    lone = model if isinstance(model, SourceModel) else getattr(model, "model", None)
    if not isinstance(lone, SourceModel):
        return opened(model, tokens)
    texts = texts_of(tokens)
    if texts is None:
        return automatic(lone).on_source(automatic(tokens))
    if lone is model:
        raise TokenError(
            f"A bare model cannot read the text {texts[0]!r:.40}: give the model with "
            "its tokenizer, mijax.models.load(...)."
        )
    alone = isinstance(tokens, str)
    given: Any = model
    return automatic(lone).on_source(_encoded(given.tokenizer, texts, alone=alone))


def _encoded(tokenizer: Any, texts: list[str], *, alone: bool) -> Any:
    """Return the tokens of one text, or prompts of several."""
    ids = [tokenizer.encode(text, add_special=True) for text in texts]
    for text, found in zip(texts, ids, strict=True):
        if not found:
            raise TokenError(f"The text {text!r:.40} has no tokens: give some words.")
    if alone:
        return jax.device_put(np.asarray(ids[0], np.int32))
    return padded(ids)


def texts_of(tokens: Any) -> list[str] | None:
    """Return one text or several as a list, and `None` for anything else.

    Raises:
        TokenError: texts and other things in one list.
    """
    if isinstance(tokens, str):
        return [tokens]
    if not isinstance(tokens, list | tuple):
        return None
    texts = [text for text in tokens if isinstance(text, str)]
    if texts and len(texts) < len(tokens):
        raise TokenError(
            "Some of the prompts are texts and some are not: give one kind."
        )
    return texts or None
