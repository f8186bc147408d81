"""Which name is repeated, and at which position: prompts that tell these apart."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax import core, data
from mijax.causal import CausalModel

VARIABLES = ("position", "token")
KINDS = ("other position", "other token", "both other")


class Questions(NamedTuple):
    """Bases and their sources.

    Attributes:
        base: tokens of the bases.
        sources: of each kind in `KINDS`, tokens in the shape of the base.
        names: ids of the base's indirect object and subject, and of the source's new
            name, which is the source's answer.
        second: position of the repeated name.
        last: position of the last token.
        labels: index in `names` of what each program says after the swap.
    """

    base: Int[Array, "prompt seq"]
    sources: Int[Array, "kind prompt seq"]
    names: Int[Array, "prompt 3"]
    second: Int[Array, " prompt"]
    last: Int[Array, " prompt"]
    labels: Int[np.ndarray, "variable kind prompt"]


def of_position(first: Array, later: Array, variable: Array) -> Array:
    """Says the one of two names that is not repeated."""
    return jnp.where(variable, later, first)


def of_token(first: Array, later: Array, variable: Array) -> Array:
    """Says the one of two names that another name differs from."""
    return jnp.where(variable == first, later, first)


NAMES = ("first", "later", "repeated")
PROGRAMS = {
    "position": CausalModel(
        NAMES,
        {
            "variable": lambda first, repeated: repeated == first,
            "answer": of_position,
        },
    ),
    "token": CausalModel(
        NAMES, {"variable": lambda repeated: repeated, "answer": of_token}
    ),
}


def questions(tokenizer: data.Tokenizer, n: int, *, seed: int) -> Questions:
    """Draws bases of both orders and three sources of each.

    Args:
        tokenizer: the model's.
        n: number of bases.
        seed: of the draw.

    Returns:
        The questions.
    """
    pairs = data.ioi(tokenizer, n, seed=seed)
    base = np.asarray(pairs.clean.tokens)
    row = np.arange(n)
    at = {
        name: np.asarray(pairs.clean.position(name))
        for name in ("io", "subject", "subject2")
    }
    io, subject = base[row, at["io"]], base[row, at["subject"]]
    pool, random = np.unique(np.concatenate([io, subject])), np.random.default_rng(seed)
    new = np.array(
        [
            random.choice(pool[(pool != one) & (pool != two)])
            for one, two in zip(io, subject, strict=True)
        ]
    )

    def source(at_io: np.ndarray, at_subject: np.ndarray, again: np.ndarray) -> Array:
        tokens = base.copy()
        tokens[row, at["io"]], tokens[row, at["subject"]] = at_io, at_subject
        tokens[row, at["subject2"]] = again
        return jnp.asarray(tokens)

    sources = (
        source(subject, new, subject),
        source(new, io, io),
        source(io, new, io),
    )
    where = np.stack([at["io"], at["subject"]], 1)
    ends = np.stack([where.min(1), where.max(1), at["subject2"]], 1)
    labels = [
        [_labels(name, base, np.asarray(s), ends, (io, subject)) for s in sources]
        for name in VARIABLES
    ]
    return Questions(
        jnp.asarray(base),
        jnp.stack(sources),
        jnp.asarray(np.stack([io, subject, new], 1)),
        jnp.asarray(at["subject2"]),
        jnp.asarray(pairs.clean.last),
        np.array(labels),
    )


def _labels(
    name: str,
    base: np.ndarray,
    source: np.ndarray,
    ends: np.ndarray,
    answers: tuple[np.ndarray, np.ndarray],
) -> Int[np.ndarray, " prompt"]:
    """What a program says after its variable is swapped, as an index of names."""
    row = np.arange(len(base))[:, None]
    one, two = (
        dict(zip(NAMES, jnp.asarray(x[row, ends]).T, strict=True))
        for x in (base, source)
    )
    run = jax.vmap(lambda x, y: PROGRAMS[name].interchange(x, {"variable": y}))
    said = np.asarray(run(one, two)["answer"])
    is_io = said == answers[0]
    assert np.all(is_io | (said == answers[1]))
    return np.where(is_io, 0, 1)


class Chosen(core.AbstractMetric):
    """Index of the name with the greatest logit.

    Attributes:
        names: ids of the names of each prompt.
        position: where the next token is read.
    """

    names: Int[Array, "prompt 3"]
    position: Int[Array, " prompt"] | None

    def ids(self, prompt: Array | None) -> Int[Array, " 3"]:
        """See `AbstractMetric`."""
        assert prompt is not None
        return self.names[prompt]

    def score(self, logits: Array, prompt: Array | None) -> Array:
        """See `AbstractMetric`."""
        return logits[0].argmax().astype(jnp.float32)
