"""Four behaviours as prompts of one shape, so that one program serves them all."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import mijax
from mijax._errors import ConfigError, nearest
from mijax.data import (
    Pairs,
    Prompts,
    Tokenizer,
    capitals,
    greater_than_digits,
    induction,
    ioi,
)

# Where a prompt and its counterpart differ; of induction, if all of the first run does,
# this is the answer.
CHANGED = {
    "ioi": "subject2",
    "greater_than": "year",
    "capitals": "country",
    "induction": "answer",
}
LABELS = {
    "ioi": "IOI",
    "greater_than": "greater-than",
    "capitals": "capitals",
    "induction": "induction",
}
# Tokens of a run that is repeated.
RUN = 8
# Two templates of one length.
GIVING = (
    "When {a} and {b} went to the {place}, {subject2} gave a {object} to",
    "After {a} and {b} arrived at the {place}, {subject2} handed a {object} to",
)
NOUNS = ("war", "siege", "reign", "journey", "conflict", "plague", "project", "trial")
# Draws per prompt that is needed, so that enough are left.
SPARE = 4


class Problem(NamedTuple):
    """One behaviour.

    Attributes:
        name: what configs call it.
        train: prompts to find circuits on.
        test: others, to measure on.
        both: all of them.
    """

    name: str
    train: Pairs
    test: Pairs
    both: Pairs

    @property
    def label(self) -> str:
        """What pictures call it."""
        return LABELS[self.name]


def problems(
    tokenizer: Tokenizer,
    names: tuple[str, ...],
    sizes: tuple[int, int],
    seed: int,
    *,
    repeated: str,
) -> list[Problem]:
    """Draws prompts for every behaviour, padded to one length.

    Args:
        tokenizer: the model's.
        names: of behaviours.
        sizes: how many prompts to find circuits on, and how many others.
        seed: of all prompts.
        repeated: the counterfactual of induction.

    Returns:
        The behaviours.

    Raises:
        ConfigError: there is no such behaviour, or there are too few prompts.
    """
    for name in names:
        if name not in LABELS:
            hint = nearest(name, LABELS)
            raise ConfigError(f"There is no behaviour {name!r}.{hint}")
    first, second = sizes
    n = first + SPARE * second
    drawn = [draw(tokenizer, name, n, seed, repeated) for name in names]
    seq = max(pairs.clean.tokens.shape[1] for pairs in drawn)
    answers = [np.atleast_2d(np.asarray(pairs.answer).T).T for pairs in drawn]
    wrongs = [np.atleast_2d(np.asarray(pairs.wrong).T).T for pairs in drawn]
    k = max(ids.shape[1] for ids in (*answers, *wrongs))
    found = []
    for name, pairs, answer, wrong in zip(names, drawn, answers, wrongs, strict=True):
        same = padded(pairs, widened(answer, k), widened(wrong, k), seq)
        train, test = split(same, sizes)
        both = same[np.concatenate([train, test])]
        found.append(Problem(name, same[train], same[test], both))
    return found


def draw(tokenizer: Tokenizer, name: str, n: int, seed: int, repeated: str) -> Pairs:
    """Draws the prompts of one behaviour."""
    if name == "ioi":
        return ioi(tokenizer, n, seed=seed, templates=GIVING)
    if name == "capitals":
        return capitals(tokenizer, n, seed=seed)
    if name == "induction":
        options = {"length": RUN, "seed": seed, "counterfactual": repeated}
        return induction(tokenizer.vocab_size, n, **options)
    return greater_than_digits(tokenizer, n, seed=seed, nouns=NOUNS)


def widened(ids: Int[np.ndarray, "prompt k"], k: int) -> Int[np.ndarray, "prompt wide"]:
    """Fills sets of tokens up with -1."""
    return np.pad(ids, ((0, 0), (0, k - ids.shape[1])), constant_values=-1)


def padded(pairs: Pairs, answer: Any, wrong: Any, seq: int) -> Pairs:
    """Gives pairs of all behaviours one shape; padding follows, so nothing sees it."""
    more = ((0, 0), (0, seq - pairs.clean.tokens.shape[1]))
    parts = (
        *(jnp.pad(side.tokens, more) for side in (pairs.clean, pairs.corrupt)),
        *(jnp.asarray(ids, jnp.int32) for ids in (answer, wrong)),
    )
    return eqx.tree_at(
        lambda p: (p.clean.tokens, p.corrupt.tokens, p.answer, p.wrong), pairs, parts
    )


def split(pairs: Pairs, sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Chooses rows of two sets; no prompt of the second is anywhere in the first."""
    first, second = sizes
    rows = [
        list(map(tuple, np.asarray(side.tokens).tolist()))
        for side in (pairs.clean, pairs.corrupt)
    ]
    both = list(zip(*rows, strict=True))
    seen = {text for pair in both[:first] for text in pair}
    fresh: list[int] = []
    for i in range(first, len(both)):
        if len(fresh) < second and not seen.intersection(both[i]):
            fresh.append(i)
            # Nor twice in the second.
            seen.add(both[i][0])
    if len(fresh) < second:
        raise ConfigError(
            f"Only {len(fresh)} prompts are not among the first {first}, {second} are "
            "needed: give fewer --evaluation."
        )
    return np.arange(first), np.array(fresh)


def slots(problem: Problem, prompts: Prompts) -> dict[str, Int[Array, " prompt"]]:
    """Names the positions that all behaviours have."""
    start = prompts.find(CHANGED[problem.name])[0]
    last = prompts.last
    return {
        "before": start - 1,
        "changed": start,
        "after": start + 1,
        "last but one": last - 1,
        "last": last,
    }


def end_logits(
    model: mijax.nn.Transformer, prompts: Prompts
) -> Float[Array, "prompt vocab"]:
    """Returns what the model says after each prompt."""
    return mijax.capture(
        model, prompts.tokens, mijax.Site("logits", position=prompts.last)
    )


def best(
    logits: Float[Array, "prompt vocab"], ids: Int[Array, "prompt k"]
) -> Int[Array, " prompt"]:
    """Returns of each prompt's tokens the one with the largest logit."""
    of = jnp.take_along_axis(logits, jnp.maximum(ids, 0), axis=1)
    at = jnp.where(ids >= 0, of, -jnp.inf).argmax(1)
    return jnp.take_along_axis(ids, at[:, None], axis=1)[:, 0]
