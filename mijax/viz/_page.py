"""An attention pattern to explore in a browser, without a network."""

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np
from jaxtyping import Array, Real

from mijax._errors import ShapeError
from mijax.viz._heatmap import finite
from mijax.viz._html import Page
from mijax.viz._labels import readable

# Probabilities travel as 16-bit integers: errors below 1e-5, a third of the size.
_FULL = 65535


def attention_page(
    patterns: Real[Array | np.ndarray, "*layer heads seq key_seq"],
    *,
    tokens: Sequence[str],
    title: str = "Attention",
    first_layer: int = 0,
) -> Page:
    """Writes a page that shows where each token of each head attends.

    Small multiples of all heads; pointing at a token (or the arrow keys) highlights
    its row everywhere and colours the text by the attention of the chosen head.

    Args:
        patterns: attention probabilities `[heads, seq, seq]`, or
            `[layer, heads, seq, seq]` for a page with a choice of layers.
        tokens: the pieces of text, one per position.
        title: title of the page.
        first_layer: the number of the first layer, for the captions.

    Returns:
        HTML with its style, program and data inside it; a notebook shows it in a frame.

    Raises:
        ShapeError: when the patterns are not square or do not fit the tokens.

    Examples:
        >>> import numpy as np
        >>> page = attention_page(np.eye(2)[None], tokens=["Hello", " world"])
        >>> page.startswith("<!doctype html>")
        True
    """
    grid = finite(patterns)
    if grid.ndim == 3:
        grid = grid[None]
    count = len(tokens)
    if grid.ndim != 4 or grid.shape[2:] != (count, count) or not grid.size:
        raise ShapeError(
            f"patterns of shape {np.shape(patterns)} for {count} tokens; expected "
            f"[heads, {count}, {count}] or [layer, heads, {count}, {count}]."
        )
    whole = np.clip(np.nan_to_num(grid), 0.0, 1.0) * _FULL
    data = {
        "layers": grid.shape[0],
        "first": first_layer,
        "heads": grid.shape[1],
        "tokens": [readable(token, longest=24) for token in tokens],
        "values": base64.b64encode(np.round(whole).astype("<u2").tobytes()).decode(),
    }
    # A "</script>" inside a token must not end the script.
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    template = (
        resources.files("mijax.viz").joinpath("_attention.html").read_text("utf-8")
    )
    page = template.replace("{{title}}", escape(title)).replace("{{data}}", text)
    return Page(page)
