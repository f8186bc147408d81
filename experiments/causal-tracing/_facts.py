"""Facts: records, those that a model knows, and subjects to put in their place."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mijax
from mijax._errors import ConfigError, LoadError
from mijax.data import Prompts, Tokenizer
from mijax.io import digest
from mijax.io.internal import parse_json
from mijax.models import Loaded

# Prompts of one forward pass.
BATCH = 32


class Fact(NamedTuple):
    """A fact: a prompt that names a subject, and what follows it."""

    subject: str
    attribute: str
    prompt: str
    relation: str


def read_facts(path: str) -> tuple[list[Fact], str]:
    """Reads facts whose prompt names their subject once; returns also the digest."""
    try:
        content: Any = parse_json(Path(path).read_text(encoding="utf-8"))
        facts = [
            Fact(r["subject"], r["attribute"], r["prompt"], r["relation_id"])
            for r in content
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{path} is not a list of facts with subject, attribute, prompt and "
            f"relation_id: {str(error)[:80]}."
        ) from error
    kept = [fact for fact in facts if fact.prompt.count(fact.subject) == 1]
    return kept, digest([Path(path)])


def with_subjects(tokenizer: Tokenizer, facts: list[Fact]) -> Prompts:
    """Tokenizes prompts with the place of their subject."""
    return Prompts.from_texts(
        tokenizer,
        [fact.prompt for fact in facts],
        spans={"subject": [fact.subject for fact in facts]},
    )


def known(loaded: Loaded, facts: list[Fact], most: int) -> list[Fact]:
    """Returns the first facts whose attribute is the model's most likely token."""
    found: list[Fact] = []
    for first in range(0, len(facts), BATCH):
        some = facts[first : first + BATCH]
        prompts = Prompts.from_texts(loaded.tokenizer, [f.prompt for f in some])
        at = mijax.Site("logits", position=prompts.last)
        best = np.asarray(mijax.capture(loaded.model, prompts, at)).argmax(-1)
        for fact, token in zip(some, best, strict=True):
            if loaded.tokenizer.decode([int(token)]).strip() == fact.attribute:
                found.append(fact)
        if len(found) >= most:
            break
    if len(found) < 2:
        raise ConfigError(f"The model knows {len(found)} of the facts: give others.")
    return found[:most]


def counterparts(
    tokenizer: Tokenizer, facts: list[Fact], every: list[Fact]
) -> tuple[list[Fact], list[Fact]]:
    """Returns the facts for which another subject fits, and their prompts with it.

    It is of the same relation, has another attribute, and the prompt has the same
    tokens outside of it and as many in it.
    """
    kept, others = [], []
    for fact in facts:
        spans = with_subjects(tokenizer, [fact])
        for other in every:
            if other.relation != fact.relation or other.attribute == fact.attribute:
                continue
            text = fact.prompt.replace(fact.subject, other.subject)
            if text.count(other.subject) != 1:
                continue
            changed = Fact(other.subject, other.attribute, text, fact.relation)
            if _fits(spans, with_subjects(tokenizer, [changed])):
                kept.append(fact)
                others.append(changed)
                break
    return kept, others


def _fits(one: Prompts, other: Prompts) -> bool:
    """Tells whether two prompts differ in their subjects only, of equal length."""
    if one.tokens.shape != other.tokens.shape:
        return False
    start, stop = (int(ends[0]) for ends in one.find("subject"))
    if (start, stop) != tuple(int(ends[0]) for ends in other.find("subject")):
        return False
    same = np.asarray(one.tokens == other.tokens)[0]
    return bool(same[:start].all() and same[stop:].all() and not same.all())
