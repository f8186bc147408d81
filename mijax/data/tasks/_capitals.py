"""Capitals of countries."""

from collections.abc import Sequence

import numpy as np

from mijax._errors import TokenError
from mijax.data.tasks._draws import Draw, collect
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._tokenizer import Tokenizer

TEMPLATES = (
    "The capital of {country} is the city of",
    "The capital city of {country} is called",
    "Everybody knows that the capital of {country} is",
    "The government of {country} sits in the city of",
)
# A country and its capital; both are one word, as a tokenizer may keep them whole.
CAPITALS = (
    *(("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome")),
    *(("Spain", "Madrid"), ("England", "London"), ("Russia", "Moscow")),
    *(("China", "Beijing"), ("Japan", "Tokyo"), ("Egypt", "Cairo")),
    *(("Greece", "Athens"), ("Austria", "Vienna"), ("Poland", "Warsaw")),
    *(("Portugal", "Lisbon"), ("Ireland", "Dublin"), ("Sweden", "Stockholm")),
    *(("Norway", "Oslo"), ("Denmark", "Copenhagen"), ("Finland", "Helsinki")),
    *(("Hungary", "Budapest"), ("Belgium", "Brussels"), ("Turkey", "Ankara")),
    *(("Iran", "Tehran"), ("Iraq", "Baghdad"), ("Syria", "Damascus")),
    *(("Lebanon", "Beirut"), ("Cuba", "Havana"), ("Peru", "Lima")),
    *(("Chile", "Santiago"), ("Canada", "Ottawa"), ("Thailand", "Bangkok")),
    *(("Vietnam", "Hanoi"), ("Kenya", "Nairobi"), ("Ukraine", "Kyiv")),
    *(("Romania", "Bucharest"), ("Bulgaria", "Sofia"), ("Serbia", "Belgrade")),
    *(("Pakistan", "Islamabad"), ("Afghanistan", "Kabul"), ("Australia", "Canberra")),
    *(("Jordan", "Amman"), ("Nepal", "Kathmandu"), ("Scotland", "Edinburgh")),
    *(("Wales", "Cardiff"), ("Jamaica", "Kingston"), ("Qatar", "Doha")),
)
FEWEST = 2


def capitals(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws prompts like "The capital of France is the city of".

    Recall of a fact (the kind of Meng et al. 2022, arXiv:2202.05262): the answer is the
    capital, `" Paris"`. The counterpart names another country, and the wrong answer is
    its capital. Countries and capitals of which one is not one token are left out.

    Args:
        tokenizer: the model's tokenizer.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        templates: texts with the slot `country`.
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `country` and `last`. Each template is a group.

    Raises:
        TokenError: fewer than two countries and their capitals are one token each.

    Examples:
        >>> words = [" France", " Paris", " Japan", " Tokyo"]
        >>> pairs = capitals(Tokenizer.from_pieces(words), 1)
        >>> pairs.clean.texts[0], pairs.corrupt.texts[0][:20]
        ('The capital of France is the city of', 'The capital of Japan')
        >>> pairs.answer.tolist() == [Tokenizer.from_pieces(words).token(" Paris")]
        True
    """
    random = np.random.default_rng(seed)
    known = whole(tokenizer)

    def draw(i: int) -> Draw:
        which = i % len(templates)
        first, second = random.permutation(len(known))[:2]
        (country, capital), (other, wrong) = known[first], known[second]
        return Draw(
            template=templates[which],
            clean={"country": country},
            corrupt={"country": other},
            answer=tokenizer.token(" " + capital),
            wrong=tokenizer.token(" " + wrong),
            group=which,
        )

    return collect(tokenizer, draw, n, prepend=prepend)


def whole(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Keeps the countries that are one token, and so is their capital."""
    kept = [
        pair
        for pair in CAPITALS
        if all(tokenizer.is_token(" " + word) for word in pair)
    ]
    if len(kept) < FEWEST:
        country, capital = CAPITALS[0]
        raise TokenError(
            f"Only {len(kept)} of {len(CAPITALS)} countries and capitals like "
            f"{' ' + country!r} and {' ' + capital!r} are one token each, expected "
            f"{FEWEST} at least. Use a tokenizer with whole words."
        )
    return kept
