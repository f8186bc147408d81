"""Pages about latents of a dictionary, to read in a browser without a network."""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import jax
import numpy as np
from jaxtyping import Float, Int

from mijax._errors import ConfigError
from mijax.data import Tokenizer
from mijax.dictionaries import Features
from mijax.viz._html import Page

# Activations travel as shares of the latent's largest, in 16 bits.
_FULL, _NONE = 65534, 65535
_WORDS = 12


def feature_page(
    features: Features,
    latent: int,
    *,
    tokenizer: Tokenizer | None = None,
    title: str = "",
    index: str | None = None,
) -> Page:
    """Writes a page about one latent.

    It holds the examples with tokens coloured by activation, the histogram of
    activations, the tokens that the latent promotes and suppresses, and its neighbours.
    Pointing at a token shows its id and the activation, exact to 1 in 65,534 of the
    largest.

    Args:
        features: what is known of the latent, among others.
        latent: which.
        tokenizer: spells tokens; without it they are shown as their ids.
        title: title of the page.
        index: address of the page of `feature_pages`, for links to neighbours: a path
            relative to this page.

    Returns:
        HTML with its style, program and data inside it; a notebook shows it in a frame.

    Raises:
        ShapeError: the latent is not among the features.
        ConfigError: `index` is not a relative path.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> corpus = mijax.data.Corpus.from_ids([range(1, 61)])
        >>> stream = mijax.data.Tokens(corpus, seq=12, batch=5)
        >>> site = mijax.Site("resid_post", layer=1)
        >>> found = d.features(model, sae, stream, site, latents=[7])
        >>> feature_page(found, 7).startswith("<!doctype html>")
        True
    """
    place = features.place(latent)
    if index is not None and not is_relative(index):
        raise ConfigError(
            f"index={index!r} is not a relative path. Give the place of the page of "
            "feature_pages as seen from this page, such as 'features.html'."
        )
    title = title or f"Latent {latent}"
    return _page(features, [place], tokenizer, title, index)


def feature_pages(
    features: Features,
    *,
    tokenizer: Tokenizer | None = None,
    title: str = "Features",
) -> Page:
    """Writes one page about thousands of latents.

    A list that can be sorted, and searched by number, by tokens at which latents are
    strongest and by tokens that they promote or suppress. Each latent has the page of
    `feature_page` inside this one, at `#latent=<number>`. Only what is on the screen is
    drawn. The page takes about 4 kB per latent with what `Keep` keeps by default.

    Args:
        features: what is known of them.
        tokenizer: spells tokens; without it they are shown as their ids.
        title: title of the page.

    Returns:
        HTML with its style, program and data inside it; a notebook shows it in a frame.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> corpus = mijax.data.Corpus.from_ids([range(1, 61)])
        >>> stream = mijax.data.Tokens(corpus, seq=12, batch=5)
        >>> found = d.features(model, sae, stream, mijax.Site("resid_post", layer=1))
        >>> page = feature_pages(found, title="A dictionary that was not trained")
        >>> page.startswith("<!doctype html>")
        True
    """
    return _page(features, range(len(features.latents)), tokenizer, title, None)


def is_relative(address: str) -> bool:
    """Tells if an address stays on the site of the page, without scheme or host."""
    plain = address.isprintable() and "\\" not in address
    parts = urlsplit(address) if plain else None
    if parts is None or parts.scheme or parts.netloc:
        return False
    # A colon in the first folder would read as a scheme in some browsers.
    first = address.split("/", 1)[0]
    return (
        bool(parts.path)
        and first != ""
        and ":" not in first
        and address == address.strip()
    )


def _page(
    features: Features,
    places: Sequence[int],
    tokenizer: Tokenizer | None,
    title: str,
    index: str | None,
) -> Page:
    data = _data(features, np.asarray(places, np.int64), tokenizer) | {"index": index}
    # A "</script>" inside a token must not end the script.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    template = (
        resources.files("mijax.viz").joinpath("_features.html").read_text("utf-8")
    )
    before, after = template.split("{{data}}")
    return Page("".join((before.replace("{{title}}", escape(title)), text, after)))


def _data(
    features: Features,
    places: Int[np.ndarray, " shown"],
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    """What the page knows: a list per quantity, in the order of the latents."""
    some: Features = jax.tree.map(lambda leaf: leaf[places], features)
    ranks = [r for r in (some.promoted, some.suppressed) if r is not None]
    every = [some.top.tokens, some.sampled.tokens, *(rank.ids for rank in ranks)]
    ids = np.unique(np.concatenate([part.ravel() for part in every]))
    ids = ids[ids >= 0]
    data = {
        "tokens": some.tokens,
        "before": some.top.before,
        "window": some.top.tokens.shape[2],
        "bins": some.counts.shape[1],
        "wide": ids.size >= _NONE,
        "ids": ids.tolist(),
        "pieces": _pieces(ids, tokenizer),
        "latents": some.latents.tolist(),
        "active": some.active.tolist(),
        "largest": _short(some.largest, 6),
        "mean": _short(some.mean, 4),
        "reach": _short(some.reach, 6),
        "counts": [_trimmed(counts) for counts in some.counts],
        "near": some.neighbours.ids.tolist(),
        "cosines": _short(some.neighbours.values, 3),
        "promoted": None,
    }
    for rank, words, values in zip(
        ranks, ("promoted", "suppressed"), ("raised", "lowered"), strict=False
    ):
        data[words] = np.searchsorted(ids, rank.ids).tolist()
        data[values] = _short(rank.values, 4)
    packed = [_packed(some, ids, place) for place in range(len(places))]
    data["words"], data["examples"] = (list(part) for part in zip(*packed, strict=True))
    return data


def _packed(
    features: Features, ids: Int[np.ndarray, " used"], place: int
) -> tuple[list[int], str]:
    """The tokens at which a latent is strongest, and its examples as bytes.

    These are the numbers of both kinds of examples, their rows, positions, tokens (as
    places in `ids`) and activations (as shares of the largest), each without padding.
    """
    kinds = (features.top, features.sampled)
    top, sampled = (jax.tree.map(lambda leaf: leaf[place], kind) for kind in kinds)
    one, other = top.row >= 0, sampled.row >= 0
    both = jax.tree.map(lambda a, b: np.concatenate([a[one], b[other]]), top, sampled)
    size = np.array([one.sum(), other.sum()])
    if not size.any():
        return [], ""
    wide = "<u4" if ids.size >= _NONE else "<u2"
    local = np.searchsorted(ids, both.tokens)
    local = np.where(both.tokens < 0, np.iinfo(wide).max, local)
    share = np.round(np.nan_to_num(both.values) / features.largest[place] * _FULL)
    share = np.where(np.isnan(both.values), _NONE, np.clip(share, 0, _FULL))
    parts = (
        *((size, "<u2"), (both.row, "<u4"), (both.position, "<u4")),
        *((local, wide), (share, "<u2")),
    )
    data = b"".join(part.astype(kind).tobytes() for part, kind in parts)
    peaks = Counter(local[:, features.top.before].tolist())
    words = [k for k, _ in peaks.most_common(_WORDS)]
    return words, base64.b64encode(data).decode()


def _pieces(ids: Int[np.ndarray, " used"], tokenizer: Tokenizer | None) -> list[str]:
    """How tokens are written; models may have ids that their tokenizer lacks."""
    every = ids.tolist()
    names: dict[int, str] = {}
    if tokenizer is not None:
        known = [i for i in every if tokenizer.backend.id_to_token(i) is not None]
        names = dict(zip(known, tokenizer.pieces(known), strict=True))
    return [names.get(i, f"⟨{i}⟩") for i in every]


def _trimmed(counts: Int[np.ndarray, " bin"]) -> list[int]:
    """Counts up to the last that is not 0."""
    some = np.flatnonzero(counts)
    return counts[: some[-1] + 1].tolist() if some.size else []


def _short(values: Float[np.ndarray, "..."], digits: int) -> Any:
    """Numbers with so many digits, as lists."""
    if values.ndim > 1:
        return [_short(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
