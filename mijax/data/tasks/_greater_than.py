"""Years that come after another year."""

from collections.abc import Sequence

import numpy as np

from mijax._errors import TokenError
from mijax.data.tasks._draws import Draw, collect, single
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._tokenizer import Tokenizer

TEMPLATE = "The {noun} lasted from the year {century}{year} to the year {century2}"
NOUNS = (
    *("war", "siege", "reign", "rule", "journey", "voyage", "expedition", "conflict"),
    *("dispute", "alliance", "marriage", "friendship", "plague", "epidemic", "famine"),
    *("campaign", "revolt", "rebellion", "uprising", "occupation", "invasion", "trial"),
    *("investigation", "negotiation", "treaty", "agreement", "contract", "project"),
    *("program", "study", "test", "experiment", "tour", "pilgrimage", "quest", "work"),
    *("construction", "expansion", "crisis", "decline", "dynasty", "kingdom", "empire"),
    *("exile", "imprisonment", "illness", "drought", "tradition", "process", "plan"),
    *("operation", "rivalry", "attack", "battle", "scandal", "fall", "rise", "boom"),
)
CENTURIES = tuple(str(century) for century in range(11, 18))
YEARS = tuple(f"{year:02d}" for year in range(100))
# The counterpart's year; every other year comes after it.
FIRST = "01"


def greater_than(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    nouns: Sequence[str] = NOUNS,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws prompts like "The war lasted from the year 1732 to the year 17".

    Greater-than (Hanna et al. 2023, arXiv:2305.00586): right are all two-digit tokens
    above the year, here `33` to `99`, wrong those up to it, `00` to `32`. The
    counterpart starts in the year `01` of the same century, so nearly every answer is
    right. Measure with `pairs.probability_difference()`. Centuries run from 11 to 17,
    years from 02 to 98; those that the tokenizer does not split into century and year
    are left out. For tokenizers that keep digits apart see `greater_than_digits`.

    Args:
        tokenizer: the model's tokenizer; two digits are one token in it.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        nouns: what lasts; those that are one token are used.
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `noun`, `century`, `year`, `century2` and `last`.

    Raises:
        TokenError: the tokenizer does not split years into a century and two digits,
            or no noun is one token.

    Examples:
        >>> years = [f"{year:02d}" for year in range(100)]
        >>> tokenizer = Tokenizer.from_pieces([" war", " 17", *years])
        >>> pairs = greater_than(tokenizer, 1)
        >>> pairs.clean.texts[0]
        'The war lasted from the year 1784 to the year 17'
        >>> pairs.corrupt.texts[0]
        'The war lasted from the year 1701 to the year 17'
        >>> tokenizer.pieces(pairs.answer[0].tolist())[:2]
        ['85', '86']
    """
    random = np.random.default_rng(seed)
    known = single(tokenizer, nouns)
    dates = split_dates(tokenizer)
    ids = [tokenizer.continuation(year)[0] for year in YEARS]

    def draw(_: int) -> Draw:
        century, years = dates[random.integers(len(dates))]
        year = years[random.integers(len(years))]
        noun = known[random.integers(len(known))]
        right, wrong = ids[int(year) + 1 :], ids[: int(year) + 1]
        return dated(noun, century, year, right, wrong)

    return collect(tokenizer, draw, n, prepend=prepend)


def greater_than_digits(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    nouns: Sequence[str] = NOUNS,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws the prompts of `greater_than` for tokenizers that keep every digit apart.

    The next token is the first of two digits. After "from the year 1742 to the year
    17" a digit above 4 is right and one below it is wrong; of 4 itself the next digit
    would decide, so it counts as neither. The counterpart starts in the year `01`, so
    nearly every digit is right. Measure with `pairs.probability_difference()`, as
    published, or with `pairs.logit_difference()`, the best right digit minus the best
    wrong one. Centuries run from 11 to 17, years from 20 to 79: two digits at least
    are on either side.

    Args:
        tokenizer: the model's tokenizer; every digit is one token in it.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        nouns: what lasts; those that are one token are used.
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `noun`, `century`, `year`, `century2` and `last`.

    Raises:
        TokenError: the tokenizer does not keep the digits of a year apart, or no noun
            is one token.

    Examples:
        >>> tokenizer = Tokenizer.from_pieces([" war"])
        >>> pairs = greater_than_digits(tokenizer, 1)
        >>> pairs.clean.texts[0]
        'The war lasted from the year 1655 to the year 16'
        >>> tokenizer.pieces([i for i in pairs.answer[0].tolist() if i >= 0])
        ['6', '7', '8', '9']
    """
    random = np.random.default_rng(seed)
    known = single(tokenizer, nouns)
    ids = digits(tokenizer)

    def draw(_: int) -> Draw:
        century = str(random.integers(11, 18))
        tens, unit = int(random.integers(2, 8)), int(random.integers(10))
        noun = known[random.integers(len(known))]
        return dated(noun, century, f"{tens}{unit}", ids[tens + 1 :], ids[:tens])

    return collect(tokenizer, draw, n, prepend=prepend)


def dated(
    noun: str, century: str, year: str, answer: list[int], wrong: list[int]
) -> Draw:
    """Returns a prompt of a year, and its counterpart of the first one."""
    clean = {"noun": noun, "century": century, "year": year, "century2": century}
    return Draw(TEMPLATE, clean, {"year": FIRST}, answer, wrong)


def digits(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of the digits of a tokenizer that keeps them apart in years."""
    ids = [tokenizer.continuation(str(digit))[-1] for digit in range(10)]
    year = tokenizer.continuation(" 1732")
    apart = year[-4:] == [ids[digit] for digit in (1, 7, 3, 2)]
    if not apart or len(set(ids)) < len(ids):
        raise TokenError(
            f"' 1732' is {', '.join(map(repr, tokenizer.pieces(year)))} in this "
            "tokenizer, expected '1', '7', '3' and '2', each a token. Where two digits "
            "are kept together use greater_than."
        )
    return ids


def split_dates(tokenizer: Tokenizer) -> list[tuple[str, list[str]]]:
    """Finds the centuries and the years of each that are tokens of their own."""
    dates = []
    split_of = tokenizer.continuation
    if all(len(split_of(year)) == 1 for year in YEARS):
        for century in CENTURIES:
            parts = split_of(" " + century)
            split = [
                year
                for year in YEARS
                if split_of(f" {century}{year}") == [*parts, *split_of(year)]
            ]
            years = [year for year in split if FIRST < year < YEARS[-1]]
            if len(parts) == 1 and FIRST in split and years:
                dates.append((century, years))
    if not dates:
        pieces = tokenizer.pieces(split_of(" 1732"))
        raise TokenError(
            f"' 1732' is {', '.join(map(repr, pieces))} in this tokenizer, expected "
            "' 17' and '32'. Use greater_than_digits where every digit is a token, or "
            "a model whose tokenizer keeps two digits together, such as GPT-2."
        )
    return dates
