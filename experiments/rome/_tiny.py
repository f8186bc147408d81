"""A random GPT-2 with a vocabulary of words, and facts about them, for tests."""

import equinox as eqx
import jax
import jax.numpy as jnp

import mijax
from mijax.data import Tokenizer
from mijax.editing import Fact
from mijax.models import Loaded

from ._records import Record

SUBJECTS = ("Ann", "Bob", "Cid")
PLACES = (" Rome", " Oslo", " Bonn")
WORDS = (*SUBJECTS, *(f" {name}" for name in SUBJECTS), *PLACES, " is", " in", " a")


def random_model(seed: int) -> Loaded:
    """Return a random model and its tokenizer."""
    model = mijax.testing.tiny_gpt2(jax.random.key(seed))
    tokenizer = Tokenizer.from_pieces(WORDS)
    size = (tokenizer.vocab_size, model.embedding.weight.shape[1])
    table = 0.7 * jax.random.normal(jax.random.key(seed + 1), size)
    model = eqx.tree_at(lambda m: m.embedding.weight, model, jnp.asarray(table))
    return Loaded(model, tokenizer, None, "random", "none")


def random_records() -> list[Record]:
    """Return facts about the words."""
    found = []
    for i, subject in enumerate(SUBJECTS):
        near = tuple(f"{name} is in" for name in SUBJECTS if name != subject)
        new, true = PLACES[i], PLACES[(i + 1) % 3]
        fact = Fact("{} is in", subject, new, true, (f"{subject} is",), near)
        found.append((fact, (Fact("{} is in", SUBJECTS[(i + 1) % 3], PLACES[2]),)))
    return found
