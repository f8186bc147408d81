"""Verbs that agree with their subject, and not with a nearer noun."""

from collections.abc import Sequence

import numpy as np

from mijax.data.tasks._draws import Draw, collect, single
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._tokenizer import Tokenizer

TEMPLATES = (
    "The {subject} near the {attractor}",
    "The {subject} behind the {attractor}",
    "The {subject} next to the {attractor}",
    "The {subject} in front of the {attractor}",
)
# Their plural ends in s.
SUBJECTS = (
    *(
        "key",
        "book",
        "car",
        "dog",
        "cat",
        "door",
        "friend",
        "doctor",
        "teacher",
        "tree",
    ),
    *(
        "student",
        "player",
        "picture",
        "letter",
        "house",
        "boy",
        "girl",
        "king",
        "phone",
    ),
    *("soldier", "farmer", "driver", "writer", "lawyer", "guard", "parent", "artist"),
    *("officer", "manager", "tool", "gift", "card", "bottle", "lamp", "chair", "bird"),
)
ATTRACTORS = (
    *("cabinet", "table", "wall", "garden", "window", "school", "tower", "bridge"),
    *(
        "station",
        "store",
        "river",
        "park",
        "hotel",
        "road",
        "building",
        "field",
        "shop",
    ),
)


def subject_verb_agreement(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    """Draws prompts like "The keys near the cabinet".

    Subject-verb agreement across an attractor (Linzen et al. 2016, arXiv:1611.01368;
    as a circuit: Marks et al. 2024, arXiv:2403.19647): the answer is `" is"` or
    `" are"`. Singular and plural subjects and attractors take turns, so each of the
    four combinations is there equally often. The counterpart has the subject's other
    number.

    Args:
        tokenizer: the model's tokenizer.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        templates: texts with the slots `subject` and `attractor`.
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `subject`, `attractor` and `last`.

    Raises:
        TokenError: a verb is several tokens, or no noun is one token in both numbers.

    Examples:
        >>> words = "key keys cabinet cabinets is are".split()
        >>> tokenizer = Tokenizer.from_pieces([f" {word}" for word in words])
        >>> pairs = subject_verb_agreement(tokenizer, 2)
        >>> pairs.clean.texts
        ('The key near the cabinet', 'The keys near the cabinet')
        >>> pairs.corrupt.texts[1]
        'The key near the cabinet'
        >>> tokenizer.pieces(pairs.answer.tolist())
        [' is', ' are']
    """
    random = np.random.default_rng(seed)
    verbs = (tokenizer.token(" is"), tokenizer.token(" are"))
    subjects = single(tokenizer, SUBJECTS, forms=(" {}", " {}s"))
    attractors = single(tokenizer, ATTRACTORS, forms=(" {}", " {}s"))

    def draw(i: int) -> Draw:
        this, other = i % 2, 1 - i % 2
        which = i // 4 % len(templates)
        subject = subjects[random.integers(len(subjects))]
        attractor = attractors[random.integers(len(attractors))]
        return Draw(
            template=templates[which],
            clean={
                "subject": subject + "s" * this,
                "attractor": attractor + "s" * (i // 2 % 2),
            },
            corrupt={"subject": subject + "s" * other},
            answer=verbs[this],
            wrong=verbs[other],
            group=which,
        )

    return collect(tokenizer, draw, n, prepend=prepend)
