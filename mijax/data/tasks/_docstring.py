"""Arguments of a function, in the order in which its docstring lists them."""

from collections.abc import Sequence

import numpy as np

from mijax.data.tasks._draws import Draw, collect, single
from mijax.data.tasks._pairs import Pairs
from mijax.data.text._tokenizer import Tokenizer

TEMPLATE = '''
def {name}(self, {rand0}, {rand1}, {a_def}, {b_def}, {c_def}, {rand2}):
    """{about} {about1} {about2}

    :param {a_doc}: {of_a} {of_a1}
    :param {b_doc}: {of_b} {of_b1}
    :param'''
ARGUMENTS = (
    *("load", "size", "files", "last", "name", "value", "index", "data", "text", "key"),
    *("user", "path", "state", "result", "message", "title", "label", "model", "node"),
    *("table", "field", "format", "version", "width", "height", "target", "source"),
    *("start", "end", "line", "page", "image", "option", "content", "request", "group"),
    *("order", "token", "task", "code", "list", "event", "count", "client", "parent"),
    *("host", "port", "url", "session", "config", "error", "shape", "output", "input"),
    *("string", "number", "item", "query", "level", "mode", "color", "method", "time"),
)
WORDS = (
    *("oil", "column", "piece", "crime", "population", "unit", "dark", "river", "fire"),
    *("stone", "music", "winter", "garden", "animal", "window", "letter", "market"),
    *("history", "paper", "doctor", "season", "metal", "flower", "island", "engine"),
    *("summer", "kitchen", "bridge", "farmer", "camera", "train", "water", "glass"),
    *("story", "forest", "school", "light", "ground", "sound", "health", "weather"),
)
ABOUT = ("about", "about1", "about2", "of_a", "of_a1", "of_b", "of_b1")
PLACES = ("rand0", "rand1", "rand2", "a_def", "b_def", "c_def")


def docstring(
    tokenizer: Tokenizer,
    n: int,
    *,
    seed: int = 0,
    arguments: Sequence[str] = ARGUMENTS,
    prepend: Sequence[int | None] = (),
) -> Pairs:
    r"""Draws functions whose docstring is to list the next argument.

    The docstring task (Heimersheim and Janiak 2023, "A circuit for Python docstrings
    in a 4-layer attention-only transformer"), in the shape of Conmy et al. 2023
    (arXiv:2304.14997): six arguments, of which the docstring has described the third
    and the fourth; the answer is the fifth. In the counterpart these arguments of the
    definition are three others, and those of the docstring two others again, so
    nothing says what comes next. Wrong are all other arguments of both prompts.

    Args:
        tokenizer: the model's tokenizer.
        n: number of prompts.
        seed: equal seeds give equal prompts.
        arguments: names of functions and arguments; those that are one token are used.
        prepend: token ids to put before each text.

    Returns:
        Pairs with the spans `a_def`, `b_def`, `c_def` (the arguments that count),
        `rand0`, `rand1`, `rand2` (the others), `a_doc`, `b_doc`, `name`, those of the
        words that describe them, and `last`.

    Raises:
        TokenError: fewer than twelve arguments are one token, or fewer than seven of
            the words that describe them.

    Examples:
        >>> names = "load size files last name value index data text key user path"
        >>> words = "oil column piece crime population unit dark".split()
        >>> pieces = [f" {word}" for word in [*names.split(), *words]] + words
        >>> tokenizer = Tokenizer.from_pieces(pieces)
        >>> pairs = docstring(tokenizer, 1)
        >>> lines = pairs.clean.texts[0].splitlines()
        >>> lines[1]
        'def key(self, files, data, value, path, load, name):'
        >>> lines[4:]
        ['    :param value: dark oil', '    :param path: unit population', '    :param']
        >>> tokenizer.pieces(pairs.answer.tolist())
        [' load']
    """
    random = np.random.default_rng(seed)
    names = single(tokenizer, arguments, at_least=12)
    # The first word follows the quotes without a space.
    words = single(tokenizer, WORDS, at_least=len(ABOUT), forms=(" {}", "{}"))

    def draw(_: int) -> Draw:
        name, *chosen = (names[j] for j in random.permutation(len(names))[:12])
        known, (a_def, b_def, c_def, a_doc, b_doc) = chosen[:6], chosen[6:]
        told = (words[j] for j in random.permutation(len(words))[: len(ABOUT)])
        clean = dict(zip((*PLACES, *ABOUT), (*known, *told), strict=True))
        clean |= {"name": name, "a_doc": clean["a_def"], "b_doc": clean["b_def"]}
        answer = clean["c_def"]
        return Draw(
            template=TEMPLATE,
            clean=clean,
            corrupt={
                **{"a_def": a_def, "b_def": b_def, "c_def": c_def},
                **{"a_doc": a_doc, "b_doc": b_doc},
            },
            answer=tokenizer.token(" " + answer),
            wrong=[tokenizer.token(" " + word) for word in chosen if word != answer],
        )

    return collect(tokenizer, draw, n, prepend=prepend)
