"""Pronouns that agree with a name."""

from collections.abc import Sequence

import numpy as np

from mijax.data.tasks._draws import Draw, collect, single
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._tokenizer import Tokenizer

TEMPLATES = ("So {name} is a really {quality} {role}, isn't",)
SHE = (
    *(
        "Mary",
        "Sarah",
        "Anna",
        "Emma",
        "Lisa",
        "Laura",
        "Alice",
        "Kate",
        "Jane",
        "Susan",
    ),
    *("Helen", "Rachel", "Maria", "Julia", "Emily", "Amy", "Elizabeth", "Jessica"),
)
HE = (
    *("John", "James", "Tom", "Peter", "Paul", "David", "Michael", "Robert", "William"),
    *("Richard", "Thomas", "Charles", "Daniel", "Matthew", "George", "Andrew", "Kevin"),
)
QUALITIES = (
    *("great", "good", "nice", "kind", "strong", "smart", "clever", "careful", "funny"),
    *("talented", "brilliant", "bad", "terrible", "loyal", "quiet", "serious", "busy"),
)
ROLES = (
    *("friend", "person", "student", "teacher", "doctor", "writer", "player", "driver"),
    *("neighbor", "colleague", "guest", "dancer", "singer", "leader", "parent", "cook"),
)


def gendered_pronouns(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws prompts like "So Mary is a really great friend, isn't".

    Gendered pronouns (Mathwin et al. 2023, "Identifying a preliminary circuit for
    predicting gendered pronouns in GPT-2 small"): the answer is `" she"` or `" he"`,
    half of the prompts each. The counterpart has a name of the other gender.

    Args:
        tokenizer: the model's tokenizer.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        templates: texts with the slots `name`, `quality` and `role`.
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `name`, `quality`, `role` and `last`.

    Raises:
        TokenError: a pronoun is several tokens, or no name of a gender, no quality or
            no role is one token.

    Examples:
        >>> words = "Mary John great friend she he".split()
        >>> tokenizer = Tokenizer.from_pieces([f" {word}" for word in words])
        >>> pairs = gendered_pronouns(tokenizer, 2)
        >>> pairs.clean.texts[0]
        "So Mary is a really great friend, isn't"
        >>> tokenizer.pieces(pairs.answer.tolist())
        [' she', ' he']
    """
    random = np.random.default_rng(seed)
    pronouns = (tokenizer.token(" she"), tokenizer.token(" he"))
    names = (single(tokenizer, SHE), single(tokenizer, HE))
    qualities, roles = single(tokenizer, QUALITIES), single(tokenizer, ROLES)

    def draw(i: int) -> Draw:
        this, other = i % 2, 1 - i % 2
        which = i // 2 % len(templates)
        return Draw(
            template=templates[which],
            clean={
                "name": names[this][random.integers(len(names[this]))],
                "quality": qualities[random.integers(len(qualities))],
                "role": roles[random.integers(len(roles))],
            },
            corrupt={"name": names[other][random.integers(len(names[other]))]},
            answer=pronouns[this],
            wrong=pronouns[other],
            group=which,
        )

    return collect(tokenizer, draw, n, prepend=prepend)
