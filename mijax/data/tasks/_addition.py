"""Sums of two numbers."""

from collections.abc import Sequence

import numpy as np

from mijax._errors import TokenError
from mijax.data.tasks._draws import TRIES, Draw, collect
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._tokenizer import Tokenizer

TEMPLATES = ("Q: What is {operand} plus {operand2}? A:",)


def addition(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws prompts like "Q: What is 23 plus 45? A:".

    Two-digit addition, as in the arithmetic of Mueller et al. 2025 (arXiv:2504.13151)
    and Stolfo et al. 2023 (arXiv:2305.15054). Operands and sums have two digits, so
    prompts have one length and no answer is known by its number of digits. The
    counterpart has two other operands, and the wrong answer is its sum. Where a token
    is one digit, answers are the first digits, which differ between the two prompts.
    Where the space before a number is a token of its own, prompts end with it.

    Args:
        tokenizer: the model's tokenizer.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        templates: texts with the slots `operand` and `operand2`, which end before the
            space before the sum.
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `operand`, `operand2` and `last`.

    Raises:
        TokenError: two-digit numbers are neither one token nor one token per digit.

    Examples:
        >>> numbers = [f" {number}" for number in range(10, 100)]
        >>> tokenizer = Tokenizer.from_pieces(numbers)
        >>> pairs = addition(tokenizer, 1)
        >>> pairs.clean.texts[0], tokenizer.pieces(pairs.answer.tolist())
        ('Q: What is 53 plus 35? A:', [' 88'])
        >>> digits = Tokenizer.from_pieces([])
        >>> pairs = addition(digits, 1)
        >>> pairs.clean.texts[0], digits.pieces(pairs.answer.tolist())
        ('Q: What is 53 plus 35? A: ', ['8'])
    """
    random = np.random.default_rng(seed)
    gap, first = first_tokens(tokenizer)

    def operands() -> tuple[int, int]:
        total = int(random.integers(20, 100))
        operand = int(random.integers(10, total - 9))
        return operand, total - operand

    def draw(i: int) -> Draw:
        which = i % len(templates)
        clean = corrupt = operands()
        for _ in range(TRIES):
            if first[sum(corrupt)] != first[sum(clean)]:
                break
            corrupt = operands()
        return Draw(
            template=templates[which] + gap,
            clean=dict(zip(("operand", "operand2"), map(str, clean), strict=True)),
            corrupt=dict(zip(("operand", "operand2"), map(str, corrupt), strict=True)),
            answer=first[sum(clean)],
            wrong=first[sum(corrupt)],
            group=which,
        )

    return collect(tokenizer, draw, n, prepend=prepend)


def first_tokens(tokenizer: Tokenizer) -> tuple[str, dict[int, int]]:
    """Finds the token with which each number goes on, and what comes before it.

    Returns:
        A space if that is a token of its own, else nothing; and the first token of
        each two-digit number after it.
    """
    first, gap = {}, None
    for number in range(10, 100):
        ids = tokenizer.encode(f" {number}")
        pieces = tokenizer.pieces(ids)
        apart = pieces[0] == " " and len(ids) > 1
        spelled = [piece.strip() for piece in pieces[int(apart) :]]
        known = spelled in ([str(number)], list(str(number)))
        if not known or gap not in (None, " " * apart):
            raise TokenError(
                f"{f' {number}'!r} is {', '.join(map(repr, pieces))} in this "
                "tokenizer, expected one token or one per digit, as other numbers. "
                "Use a model with another tokenizer."
            )
        first[number], gap = ids[int(apart)], " " * apart
    return gap or "", first
