"""Indirect-object identification."""

from collections.abc import Sequence

import numpy as np

from mijax._errors import ConfigError, nearest
from mijax.data.tasks._draws import Draw, collect, single
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._tokenizer import Tokenizer

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


def ioi(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    counterfactual: str = "s2_io_flip",
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws prompts like "When Mary and John went to the park, John gave a book to".

    Indirect-object identification (Wang et al. 2023, arXiv:2211.00593): the answer is
    the name that comes once, the wrong one the name that is repeated. Half of the
    prompts name the indirect object first (ABBA), half the subject first (BABA).
    Names, places and objects are one token each.

    Args:
        tokenizer: the model's tokenizer.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        templates: texts with the slots `a`, `b` (the names in order of mention),
            `subject2`, `place` and `object`.
        counterfactual: `"s2_io_flip"` repeats the other name, so the two answers swap
            (Mueller et al. 2025, arXiv:2504.13151); `"abc"` has three other names, so
            there is no answer (Wang et al.).
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `io`, `subject`, `subject2`, `place`, `object` and `last`.
        Each order of the names in each template is a group of its own.

    Raises:
        ConfigError: there is no such counterfactual.
        TokenError: fewer than five names, or no place or object, are one token.

    Examples:
        >>> words = "Mary John Anna Tom Paul park book"
        >>> tokenizer = Tokenizer.from_pieces([f" {word}" for word in words.split()])
        >>> pairs = ioi(tokenizer, 2)
        >>> pairs.clean.texts[0]
        'When Tom and Paul went to the park, Paul gave a book to'
        >>> pairs.corrupt.texts[0]
        'When Tom and Paul went to the park, Tom gave a book to'
        >>> tokenizer.pieces(pairs.answer.tolist())
        [' Tom', ' Paul']
    """
    if counterfactual not in COUNTERFACTUALS:
        raise ConfigError(
            f"There is no counterfactual {counterfactual!r}."
            f"{nearest(counterfactual, COUNTERFACTUALS)}"
        )
    random = np.random.default_rng(seed)
    names = single(tokenizer, NAMES, at_least=5)
    places = single(tokenizer, PLACES)
    objects = single(tokenizer, OBJECTS)

    def draw(i: int) -> Draw:
        io, subject, *others = (names[j] for j in random.permutation(len(names))[:5])
        # Templates and orders take turns, so every pair of them is there equally often.
        which = i // 2 % len(templates)
        first, second = ("io", "subject") if i % 2 == 0 else ("subject", "io")
        text = templates[which].replace("{a}", f"{{{first}}}")
        clean = {
            "io": io,
            "subject": subject,
            "subject2": subject,
            "place": places[random.integers(len(places))],
            "object": objects[random.integers(len(objects))],
        }
        abc: dict[str, str] = dict(
            zip(("io", "subject", "subject2"), others, strict=True)
        )
        return Draw(
            template=text.replace("{b}", f"{{{second}}}"),
            clean=clean,
            corrupt=abc if counterfactual == "abc" else {"subject2": io},
            answer=tokenizer.token(" " + io),
            wrong=tokenizer.token(" " + subject),
            group=2 * which + i % 2,
        )

    return collect(tokenizer, draw, n, prepend=prepend)
