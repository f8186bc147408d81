"""Random tokens, repeated."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from mijax._errors import ConfigError, TokenError, nearest
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._prompts import Prompts

COUNTERFACTUALS = ("run", "answer")


def induction(
    ids: int | Sequence[int],
    n: int,
    *,
    length: int = 10,
    seed: int = 0,
    prepend: Sequence[int] = (),
    counterfactual: str = "run",
) -> Pairs:
    """Draws random tokens that begin again and stop before the last one.

    Induction on repeated random tokens (Elhage et al. 2021,
    transformer-circuits.pub/2021/framework; Olsson et al. 2022, arXiv:2209.11895): the
    answer to `a b c d a b c` is `d`, the token that followed the last one before. In
    the counterpart the first run is other tokens, `w x y z a b c`, so nothing can be
    looked up, and the wrong answer is a token that neither prompt has. With
    `counterfactual="answer"` one token only differs, `a b c z a b c`, and its answer,
    `z`, is the wrong one here: what is found is how the answer is fetched, not that
    the runs match. No token comes twice in a run.

    Args:
        ids: token ids to draw from, or their number to draw from all below it.
        n: number of prompts.
        length: number of tokens until they repeat.
        seed: equal seeds give equal prompts.
        prepend: token ids to put before each prompt; they are not drawn.
        counterfactual: what differs in the counterpart, the first `"run"` or the
            `"answer"` in it alone.

    Returns:
        Pairs with the spans `first` and `second` (the two runs), `match` (where the
        last token was before), `answer` (the token after that) and `last`.

    Raises:
        TokenError: fewer ids than two runs and a wrong answer need, or runs of fewer
            than two tokens.
        ConfigError: there is no such counterfactual.

    Examples:
        >>> pairs = induction(100, 2, length=4)
        >>> pairs.clean.tokens[0].tolist(), pairs.answer[0].item()
        ([78, 59, 48, 29, 78, 59, 48], 29)
        >>> pairs.corrupt.tokens[0].tolist(), pairs.wrong[0].item()
        ([17, 25, 7, 3, 78, 59, 48], 1)
        >>> induction(100, 1, length=4, counterfactual="answer").corrupt.tokens.tolist()
        [[78, 59, 48, 1, 78, 59, 48]]
    """
    if counterfactual not in COUNTERFACTUALS:
        raise ConfigError(
            f"There is no counterfactual {counterfactual!r}."
            f"{nearest(counterfactual, COUNTERFACTUALS)}"
        )
    pool = np.setdiff1d(np.arange(ids) if isinstance(ids, int) else ids, prepend)
    if length < 2 or len(pool) < 2 * length + 1:
        raise TokenError(
            f"{len(pool)} token ids to draw from and runs of {length}; runs need 2 "
            f"tokens at least, and {2 * max(length, 2) + 1} ids for that length."
        )
    random = np.random.default_rng(seed)
    size = 2 * length + 1
    draws = [random.choice(pool, size, replace=False) for _ in range(n)]
    drawn = np.array(draws, int).reshape(n, size)
    first, other, wrong = np.split(drawn, [length, 2 * length], axis=1)
    if counterfactual == "answer":
        other = np.concatenate([first[:, :-1], wrong], axis=1)
    before = np.tile(np.asarray(prepend, int), (n, 1))
    start, stop = len(prepend), len(prepend) + length
    places = {
        "first": (start, stop),
        "second": (stop, stop + length - 1),
        "match": (stop - 2, stop - 1),
        "answer": (stop - 1, stop),
    }
    spans = {name: [place] * n for name, place in places.items()}
    clean, corrupt = (
        Prompts.from_ids(
            np.concatenate([before, run, first[:, :-1]], axis=1).tolist(), spans=spans
        )
        for run in (first, other)
    )
    return Pairs(
        clean=clean,
        corrupt=corrupt,
        answer=jnp.asarray(first[:, -1], jnp.int32),
        wrong=jnp.asarray(wrong[:, 0], jnp.int32),
        group=jnp.zeros(n, jnp.int32),
    )
