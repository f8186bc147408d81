"""Labels that can be read: of tokens, and on axes."""

from collections.abc import Sequence

_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def readable(token: str, *, longest: int = 16) -> str:
    r"""A token as people can tell it from its neighbours.

    Args:
        token: the piece of text that the token stands for.
        longest: how many characters to keep.

    Returns:
        The piece with spaces at its ends as `·`, line ends as `↵`, tabs as `⇥`, and
        `…` where it was cut.

    Examples:
        >>> readable(" Mary\n")
        '·Mary↵'
    """
    inner = token.strip(" ")
    if inner:
        left = len(token) - len(token.lstrip(" "))
        right = len(token) - len(token.rstrip(" "))
        token = "·" * left + inner + "·" * right
    else:
        token = "·" * len(token)
    token = "".join(_SIGNS.get(c, c) for c in token)
    token = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in token)
    return token if len(token) <= longest else token[: longest - 1] + "…"


def drawable(text: str) -> str:
    r"""A label in which characters that matplotlib's font lacks are `\uXXXX`."""
    from matplotlib import font_manager, ft2font  # noqa: PLC0415

    font = ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))
    return "".join(
        c if font.get_char_index(ord(c)) else f"\\u{ord(c):04x}" for c in text
    )


def drawable_lines(text: str) -> str:
    """Return a text of several lines, each drawable."""
    return "\n".join(map(drawable, text.split("\n")))


def axis_labels(labels: Sequence[object]) -> list[str]:
    """Tick labels of an axis, each readable and drawable."""
    return [drawable(readable(str(label))) for label in labels]
