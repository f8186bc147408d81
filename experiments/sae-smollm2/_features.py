"""What makes latents active: some, drawn at random, in a table and on a page."""

from typing import Any

import numpy as np
from jaxtyping import Float

import mijax.experiment
from mijax import dictionaries as d
from mijax import viz
from mijax.data import Corpus, Tokenizer, Tokens
from mijax.models import Loaded

from ._activations import HeldOut
from ._training import Choice

# Latents in the table, examples of each, tokens before and after the one that is shown.
SHOWN, EXAMPLES, BEFORE, AFTER = 8, 3, 8, 3


def show(
    choice: Choice,
    dictionary: d.Dictionary,
    density: Float[np.ndarray, " latent"],
    given: tuple[HeldOut, Loaded, Any],
    run: mijax.experiment.Run,
) -> None:
    """Shows latents of one dictionary, drawn from those that are ever active.

    Args:
        choice: which dictionary.
        dictionary: it.
        density: share of activations in which each latent is active.
        given: what was held out, the model, and the config.
        run: takes the table and the page.
    """
    held, loaded, config = given
    alive = np.flatnonzero(density > 0)
    if not len(alive):
        return
    order = np.random.default_rng(config.seed).permutation(alive)[: config.features]
    bos = None if loaded.text is None else loaded.text.bos
    ids = held.whole if bos is None else held.whole[:, 1:]
    rows = min(config.prompts, len(ids))
    tokens = Tokens(Corpus.from_ids(ids), seq=config.seq, batch=rows, bos=bos)
    found = d.features(
        *(loaded.model, dictionary, tokens, held.site),
        latents=order.tolist(),
        exclude=held.exclude,
    )
    title = f"Latents of {choice.label}, drawn at random"
    columns = ["latent", "density", "largest", "first", "second", "third"]
    run.table(f"{title}: where they are largest", columns, table(found, loaded.text))
    page = viz.feature_pages(found, tokenizer=loaded.text, title=title)
    run.page("features", page, caption="On held-out text; not chosen by hand.")


def table(found: d.Features, tokenizer: Tokenizer | None) -> list[list[object]]:
    """Makes a row for each of the first latents: its largest examples."""
    rows = []
    for i, latent in enumerate(found.latents[:SHOWN]):
        texts = [excerpt(found.top, i, j, tokenizer) for j in range(EXAMPLES)]
        rows.append([str(latent), found.density[i], found.largest[i], *texts])
    return rows


def excerpt(
    found: d.Excerpts, latent: int, example: int, tokenizer: Tokenizer | None
) -> str | None:
    """Spells the tokens around an example, and marks its own; none if there is none."""
    if example >= found.row.shape[1] or found.row[latent, example] < 0:
        return None
    window = found.tokens[latent, example]
    pieces = []
    for place, index in enumerate(window.tolist()):
        if index < 0 or not -BEFORE <= place - found.before <= AFTER:
            continue
        piece = f" {index}" if tokenizer is None else tokenizer.pieces([index])[0]
        pieces.append(f"«{piece}»" if place == found.before else piece)
    return "".join(pieces).strip()
