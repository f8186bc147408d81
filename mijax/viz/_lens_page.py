"""Offline page to explore the readings of a lens."""

import json
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from mijax.lens import LensReading
from mijax.viz._html import Page
from mijax.viz._labels import readable
from mijax.viz._lens_grid import best_tokens, hits


def lens_page(
    reading: LensReading,
    *,
    tokens: Sequence[str],
    decode: Callable[[int], str],
    title: str = "Lens",
) -> Page:
    """Write a page with the best token of every layer and position.

    Pointing at a cell (or the arrow keys) shows its best tokens with probabilities, the
    entropy, and the rank of the target. Colors show entropy or the target's rank.

    Args:
        reading: what a lens reads in one prompt, with `top=5` or so.
        tokens: the pieces of text, one per position.
        decode: from a token id to its text (`lambda i: tokenizer.decode([i])`).
        title: title of the page.

    Returns:
        HTML with its style, program and data inside it; a notebook shows it in a frame.

    Raises:
        ShapeError: a reading of several prompts, without best tokens, or that does not
            fit the tokens.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> reading = mijax.lens.read(model, [5, 6, 7], top=5)
        >>> page = lens_page(reading, tokens=["a", "b", "c"], decode=str)
        >>> page.startswith("<!doctype html>")
        True
    """
    best = best_tokens(reading, tokens)
    texts = {int(i): readable(decode(int(i)), longest=20) for i in np.unique(best)}
    ranks = reading.target_ranks
    data: dict[str, Any] = {
        "tokens": [readable(token, longest=20) for token in tokens],
        "texts": texts,
        "best": best.tolist(),
        "p": _rounded(np.exp(np.asarray(reading.log_probabilities(), np.float64))),
        "entropy": _rounded(np.asarray(reading.entropy, np.float64)),
        "ranks": None if ranks is None else np.asarray(ranks).tolist(),
        "hit": hits(reading).astype(int).tolist(),
    }
    # A "</script>" inside a token must not end the script.
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    template = resources.files("mijax.viz").joinpath("_lens.html").read_text("utf-8")
    page = template.replace("{{title}}", escape(title)).replace("{{data}}", text)
    return Page(page)


def _rounded(values: np.ndarray) -> Any:
    """Return numbers with four digits after the point, `None` where not finite."""
    kept = np.round(values, 4).astype(object)
    kept[~np.isfinite(values)] = None
    return kept.tolist()
