"""Errors that mijax raises on bad input.

Every message is one line: given, expected, what to do. The command line prints it
without a traceback and exits with code 2.

Each class derives from the built-in errors that NumPy, JAX or Python raise in the same
case, so `except ValueError` works as it does elsewhere. A case for which libraries
differ has two, as `numpy.exceptions.AxisError` has.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class MijaxError(Exception):
    r"""Base of every error that mijax raises on purpose.

    Names and values from files can hold terminal escapes; the message shows them as
    text, `\x1b`, and stays one line.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))

    def __str__(self) -> str:
        """Return the message in one line, whatever value it quotes."""
        # `str` of a `KeyError` would be the repr of the message.
        text = Exception.__str__(self)
        return " ".join(line.strip() for line in text.splitlines())


class SiteError(MijaxError, KeyError, IndexError):
    """An unknown site, or a layer, head or feature that the site does not have."""


class PositionError(MijaxError, IndexError, KeyError):
    """A position, span or alignment that the prompts do not have."""


class ShapeError(MijaxError, ValueError, TypeError):
    """An array whose shape, rank or dtype does not fit its place."""


class TokenError(MijaxError, ValueError):
    """A text that does not map to tokens as the caller needs."""


class LoadError(MijaxError, ValueError):
    """A model, weight file or checkpoint that cannot be loaded as asked."""


class ConfigError(MijaxError, ValueError):
    """A config key, value or experiment name that does not exist."""


class OutputError(MijaxError, OSError):
    """A folder or file that cannot be written."""


class TrainingError(MijaxError, FloatingPointError):
    """A training run that cannot go on: its loss is not finite or has exploded."""


class NotFiniteError(MijaxError, ValueError):
    """A NaN or an infinity in a value that has to be finite."""


class NetworkError(MijaxError, ConnectionError):
    """Something that would have to be downloaded and cannot be."""


class FrameError(MijaxError, ValueError):
    """A weight frame that the requested analysis or processing cannot use."""


def quoted(value: Any, most: int = 60) -> str:
    """Return the start of a value's text, in one line."""
    text = " ".join(f"{value!r:.300}".split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(name: str, options: Iterable[str]) -> str:
    """Ends an error message with the closest valid names, or with all of them.

    Args:
        name: what was given.
        options: every valid name.

    Returns:
        A sentence that begins with a space: `" Did you mean 'resid_pre'?"`, or the
        list of valid names where none is close.

    Examples:
        >>> nearest("resid_per", ["resid_pre", "attn_out"])
        " Did you mean 'resid_pre'?"
    """
    names = list(options)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    return f" Valid names: {', '.join(names)}." if names else ""


def printable(text: str, keep: str = "") -> str:
    r"""Shows control characters, terminal escapes and lone surrogates as text.

    Args:
        text: any text, for example a name from a file.
        keep: characters to leave as they are.

    Returns:
        The text, with `\x1b` for the character that begins a terminal escape.

    Examples:
        >>> printable("red \x1b[31m")
        'red \\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
