"""Indirect-object identification (Wang et al. 2023, arXiv:2211.00593)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax._errors import ConfigError, TokenError, nearest
from mijax.data._prompts import Prompts, aligned
from mijax.data._template import fill
from mijax.data._tokenizer import Tokenizer

# `{a}` and `{b}` are the two names in the order in which they come.
TEMPLATES = (
    "When {a} and {b} went to the {place}, {subject2} gave a {object} to",
    "After {a} and {b} arrived at the {place}, {subject2} handed a {object} to",
    "Then, {a} and {b} met at the {place}, and {subject2} passed a {object} to",
    "While {a} and {b} were working at the {place}, {subject2} brought a {object} to",
    "Yesterday {a} and {b} met near the {place}, and {subject2} sold a {object} to",
    "Once {a} and {b} had found the {place}, {subject2} decided to give a {object} to",
    "Friends since school, {a} and {b} walked to the {place}. There {subject2} offered "
    "a {object} to",
    "Because {a} and {b} were late for the {place}, {subject2} threw a {object} to",
)
NAMES = (
    *("Mary", "John", "James", "Tom", "Sarah", "Anna", "Peter", "Paul", "Mark", "Emma"),
    *("David", "Michael", "Robert", "William", "Richard", "Thomas", "Charles", "Jack"),
    *("Daniel", "Matthew", "George", "Andrew", "Joseph", "Kevin", "Brian", "Jason"),
    *("Lisa", "Laura", "Alice", "Kate", "Jane", "Susan", "Helen", "Rachel", "Maria"),
    *("Julia", "Simon", "Adam", "Henry", "Martin", "Alex", "Steven", "Emily", "Amy"),
    *(
        "Ben",
        "Sam",
        "Max",
        "Luke",
        "Ryan",
        "Eric",
        "Scott",
        "Frank",
        "Rose",
        "Elizabeth",
    ),
)
PLACES = (
    *("store", "park", "school", "office", "station", "garden", "hospital", "church"),
    *("restaurant", "library", "market", "house", "beach", "museum", "hotel", "bank"),
)
OBJECTS = (
    *("drink", "book", "ring", "letter", "ball", "key", "gift", "ticket", "box", "bag"),
    *("basket", "computer", "phone", "picture", "card", "bottle", "coin", "pen"),
)
COUNTERFACTUALS = ("s2_io_flip", "abc")


class IOI(NamedTuple):
    """Prompts and their counterparts.

    Attributes:
        clean: prompts with the spans `io`, `subject`, `subject2`, `place`, `object`,
            `last`.
        corrupt: the counterpart of each prompt, token by token.
        io: id of the name that completes each clean prompt.
        s: id of the name that is repeated in it.
    """

    clean: Prompts
    corrupt: Prompts
    io: Int[Array, " batch"]
    s: Int[Array, " batch"]


def ioi(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    counterfactual: str = "s2_io_flip",
    prepend: Sequence[int] = (),
) -> IOI:
    """Draws prompts like "When Mary and John went to the park, John gave a book to".

    Half of them name the indirect object first (ABBA), half the subject first (BABA).
    Names, places and objects are one token each.

    Args:
        tokenizer: the model's tokenizer.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        templates: texts with the slots `a`, `b` (the names in order of mention),
            `subject2`, `place` and `object`.
        counterfactual: `"s2_io_flip"` repeats the other name, so the two answers swap;
            `"abc"` has three other names, so there is no answer.
        prepend: token ids to put before each text.

    Returns:
        Clean prompts, corrupt prompts, ids of the indirect object, ids of the subject.

    Raises:
        ConfigError: there is no such counterfactual.
        TokenError: fewer than five names, or no place or object, are one token.
    """
    if counterfactual not in COUNTERFACTUALS:
        raise ConfigError(
            f"There is no counterfactual {counterfactual!r}."
            f"{nearest(counterfactual, COUNTERFACTUALS)}"
        )
    random = np.random.default_rng(seed)
    names = single(tokenizer, NAMES, at_least=5)
    places = single(tokenizer, PLACES, at_least=1)
    objects = single(tokenizer, OBJECTS, at_least=1)
    clean, corrupt, chosen = [], [], []
    for i in range(n):
        io, subject, *others = (names[j] for j in random.permutation(len(names))[:5])
        # Templates and orders take turns, so every pair of them is there equally often.
        text = templates[i // 2 % len(templates)]
        text = text.replace("{a}", "{io}" if i % 2 == 0 else "{subject}")
        text = text.replace("{b}", "{subject}" if i % 2 == 0 else "{io}")
        row = {
            "io": io,
            "subject": subject,
            "subject2": subject,
            "place": places[random.integers(len(places))],
            "object": objects[random.integers(len(objects))],
        }
        abc = dict(zip(("io", "subject", "subject2"), others, strict=True))
        clean.append(row)
        corrupt.append(row | (abc if counterfactual == "abc" else {"subject2": io}))
        chosen.append(text)
    before = fill(tokenizer, chosen, clean, prepend=prepend)
    after = fill(tokenizer, chosen, corrupt, prepend=prepend)
    aligned(before, after)
    ids = {
        name: jnp.array([tokenizer.token(" " + row[name]) for row in clean], jnp.int32)
        for name in ("io", "subject")
    }
    return IOI(before, after, ids["io"], ids["subject"])


def single(tokenizer: Tokenizer, words: Sequence[str], *, at_least: int) -> list[str]:
    """Keeps the words that are one token after a space."""
    kept = [word for word in words if len(tokenizer.encode(" " + word)) == 1]
    if len(kept) < at_least:
        raise TokenError(
            f"Only {len(kept)} of {len(words)} words like {' ' + words[0]!r} are one "
            f"token, expected {at_least} at least. Use a tokenizer with whole words."
        )
    return kept
