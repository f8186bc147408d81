"""What every task of text does: draw words, fill templates, look answers up."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax._errors import TokenError
from mijax.data.tasks._pairs import Pairs
from mijax.data.tasks._template import fill
from mijax.data.text._tokenizer import Tokenizer

TRIES = 100


class Draw(NamedTuple):
    """One pair before it is tokenized.

    Attributes:
        template: text with slots.
        clean: what goes into each slot.
        corrupt: what else goes into some of them in the counterpart.
        answer: id of the right answer, or of all right ones.
        wrong: id of the wrong answer, or of all wrong ones.
        group: index of the template.
    """

    template: str
    clean: Mapping[str, str]
    corrupt: Mapping[str, str]
    answer: int | Sequence[int]
    wrong: int | Sequence[int]
    group: int = 0


def collect(
    tokenizer: Tokenizer,
    draw: Callable[[int], Draw],
    n: int,
    *,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws pairs; a clean prompt comes twice only where others are hard to find.

    Args:
        tokenizer: the model's tokenizer.
        draw: draws the pair of an index; each call draws another one.
        n: number of pairs.
        prepend: token ids to put before each text.

    Returns:
        The pairs.
    """
    seen: set[tuple[str, ...]] = set()
    draws = [fresh(draw, i, seen) for i in range(n)]
    templates = [one.template for one in draws]
    rows = [one.clean for one in draws]
    others = [{**one.clean, **one.corrupt} for one in draws]
    return Pairs(
        clean=fill(tokenizer, templates, rows, prepend=prepend),
        corrupt=fill(tokenizer, templates, others, prepend=prepend),
        answer=pack([one.answer for one in draws]),
        wrong=pack([one.wrong for one in draws]),
        group=jnp.array([one.group for one in draws], jnp.int32),
    )


def fresh(draw: Callable[[int], Draw], i: int, seen: set[tuple[str, ...]]) -> Draw:
    """Draws a pair that was not seen, if there is one, and remembers it."""
    one = draw(i)
    for _ in range(TRIES):
        if (one.template, *one.clean.values()) not in seen:
            break
        one = draw(i)
    seen.add((one.template, *one.clean.values()))
    return one


def pack(ids: Sequence[int | Sequence[int]]) -> Int[Array, "batch *k"]:
    """Makes one array of the ids of each prompt, filled up with -1."""
    if all(isinstance(of, int) for of in ids):
        return jnp.array(ids, jnp.int32)
    rows = [np.atleast_1d(of) for of in ids]
    packed = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, of in zip(packed, rows, strict=True):
        row[: len(of)] = of
    return jnp.asarray(packed)


def single(
    tokenizer: Tokenizer,
    words: Sequence[str],
    *,
    at_least: int = 1,
    forms: Sequence[str] = (" {}",),
) -> list[str]:
    """Keeps the words of which every form is one token.

    Args:
        tokenizer: the model's tokenizer.
        words: words without a leading space.
        at_least: how many are needed.
        forms: how a word occurs in the texts, `" {}"` after a space.

    Returns:
        The words, in their order.

    Raises:
        TokenError: fewer words than needed are left.
    """
    kept = [
        word
        for word in words
        if all(tokenizer.is_token(form.format(word)) for form in forms)
    ]
    if len(kept) < at_least:
        like = " and ".join(repr(form.format(words[0])) for form in forms)
        raise TokenError(
            f"Only {len(kept)} of {len(words)} words like {like} are one token, "
            f"expected {at_least} at least. Use a tokenizer with whole words."
        )
    return kept
