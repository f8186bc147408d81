"""The model of a quick look, and its prompt."""

from typing import Any

from mijax._errors import TokenError


def load_model(name: str) -> Any:
    """Loads a model by name or path, as `mijax.models.load` does."""
    from mijax import models  # noqa: PLC0415

    return models.load(name)


def encode(loaded: Any, text: str) -> list[int]:
    """Return the token ids of a prompt, with the tokenizer's special tokens.

    Raises:
        TokenError: when the text has no tokens.
    """
    encoded = loaded.tokenizer.encode(text, add_special=True)
    tokens = [int(token) for token in encoded]
    if not tokens:
        raise TokenError(f"the text {text!r} has no tokens. Give at least one word.")
    return tokens


def pieces(loaded: Any, tokens: list[int]) -> list[str]:
    """The piece of text that each token stands for."""
    return [str(piece) for piece in loaded.tokenizer.pieces(tokens)]
