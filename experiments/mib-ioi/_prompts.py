"""Prompts to find circuits on and others to measure them on."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from mijax._errors import ConfigError
from mijax.data import Pairs, Tokenizer, induction, ioi

# Tokens of the runs that repeat, where the task is induction.
RUN = 8


def draw(
    tokenizer: Tokenizer,
    task: Literal["ioi", "induction"],
    sizes: tuple[int, int],
    *,
    seed: int,
    bos: bool,
) -> tuple[Pairs, Pairs]:
    """Draws two sets of prompts that have none in common.

    Args:
        tokenizer: the model's.
        task: what the prompts ask for.
        sizes: how many prompts of each set.
        seed: of both sets.
        bos: whether prompts begin with the token that begins a text.

    Returns:
        Prompts to find circuits on, and prompts to measure them on.

    Raises:
        ConfigError: there is no token that begins a text, or there are not as many
            different prompts.
    """
    if bos and tokenizer.bos is None:
        raise ConfigError(
            "The tokenizer has no token that begins a text: run with --no-prepend-bos."
        )
    prepend = () if not bos or tokenizer.bos is None else (tokenizer.bos,)

    def some(n: int) -> Pairs:
        if task == "ioi":
            return ioi(tokenizer, n, seed=seed, prepend=prepend)
        options = {"length": RUN, "seed": seed, "prepend": prepend}
        return induction(tokenizer.vocab_size, n, **options)

    return split(some, sizes)


def split(some: Callable[[int], Pairs], sizes: tuple[int, int]) -> tuple[Pairs, Pairs]:
    """Keeps of the second set what is neither prompt nor counterpart in the first."""
    first, second = sizes
    pairs = some(first + 2 * second)
    texts = [rows(prompts.tokens) for prompts in (pairs.clean, pairs.corrupt)]
    seen = {text for column in texts for text in column[:first]}
    both = list(zip(*texts, strict=True))
    fresh = [i for i in range(first, len(both)) if not seen & set(both[i])]
    if len(fresh) < second:
        raise ConfigError(
            f"Only {len(fresh)} of {len(both) - first} prompts are not among those "
            f"that circuits are found on, {second} are needed: give fewer."
        )
    return pairs[slice(0, first)], pairs[fresh[:second]]


def in_common(one: Pairs, other: Pairs) -> int:
    """Counts prompts of one set that are prompts or counterparts of the other."""
    known = {*rows(one.clean.tokens), *rows(one.corrupt.tokens)}
    return sum(text in known for text in rows(other.clean.tokens))


def rows(tokens: object) -> list[tuple[int, ...]]:
    """Returns each prompt's tokens, to compare."""
    return list(map(tuple, np.asarray(tokens).tolist()))
