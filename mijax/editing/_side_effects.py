"""`side_effects`: changes that an edit causes in the rest of a model."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mijax._errors import ConfigError, TokenError
from mijax.core import AbstractModel, compose, edited, generate
from mijax.core.internal import as_tokens, checked, opened, padded_lengths
from mijax.data import Prompts
from mijax.editing._delta import AbstractDelta, Dense, LowRank
from mijax.editing._effects import Effects, SideEffects
from mijax.editing._facts import Fact
from mijax.editing._queries import Queries, divergences, ngram_entropy
from mijax.editing._weight_edit import Change, WeightEdit
from mijax.editing._weights import bare

TOP = 5


@checked
def side_effects(
    model: Any,
    edit: Any,
    facts: Any,
    *,
    related: Sequence[Fact] = (),
    text: Any = None,
    steps: int = 40,
    placebo: Any = None,
    batch: int = 16,
    key: PRNGKeyArray | None = None,
) -> SideEffects:
    r"""Measure an edit's effects and side effects, compared with a placebo.

    Efficacy, paraphrases and neighbors are scored as in CounterFact's evaluation (Meng
    et al. 2022), by whether the new or the true target has the higher mean
    log-likelihood per token. Text is sampled from the 5 most likely tokens, with the
    same key for all three models.

    Args:
        model: a language model, before the edit.
        edit: a `WeightEdit`, or placed edits of activations.
        facts: the rewritten `Fact` or facts, each with its `true` target; for edits
            that rewrite nothing, facts that should not change, with any other target.
        related: facts with the same relation about other subjects, which should not
            change; their correct answer is `true`, or `target` if `true` is missing.
        text: held-out text for the divergence: a list of texts, `Prompts` or token ids.
        steps: tokens to generate after each fact's prompt; 0 generates none.
        placebo: the edit to compare with; by default a random edit of the same weights
            with the same rank and norm. Activation edits require one: give the same
            edit at a random place or in a random direction.
        batch: number of prompts to run at a time.
        key: key for the placebo and the generated text; `jax.random.key(0)` by default.

    Returns:
        The report, which prints as a table; `mijax.viz.side_effects` draws it.

    Raises:
        TokenError: a model without a tokenizer, or a fact without a true target.
        ConfigError: an activation edit without a placebo.
        MijaxError: an edit that does not fit the model.
    """
    lone = bare(model)
    if lone is model:
        raise TokenError("side_effects reads facts in words: give a language model.")
    known = [facts] if isinstance(facts, Fact) else list(facts)
    for fact in known:
        if not isinstance(fact, Fact) or fact.true is None:
            raise TokenError(
                f"Expected facts with their true target, got {fact!r:.80}: give "
                "Fact(..., true=...)."
            )
    key = jax.random.key(0) if key is None else key
    if placebo is None:
        if not isinstance(edit, WeightEdit):
            raise ConfigError(
                "An activation edit needs a placebo to compare with: give placebo=, an "
                "edit in a random direction or at a random place."
            )
        placebo = placebo_of(edit, key)
    measure = _Measure(model, known, tuple(related), text, steps, batch, key)
    return SideEffects(
        before=measure(lone, None),
        edited=measure(_applied(lone, edit), edit),
        placebo=measure(_applied(lone, placebo), placebo),
    )


def placebo_of(edit: WeightEdit, key: PRNGKeyArray) -> WeightEdit:
    """Return an edit of the same size and weights in random directions.

    Every delta has the rank and the Frobenius norm of the original.

    Args:
        edit: the edit.
        key: key for the directions.

    Returns:
        The placebo.

    Examples:
        >>> delta = LowRank(jnp.ones((4, 1)), jnp.ones((1, 3)))
        >>> edit = WeightEdit((Change("norm", None, delta),))
        >>> other = placebo_of(edit, jax.random.key(0))
        >>> bool(jnp.isclose(other.norms()[0], delta.norm()))
        True
    """
    changes = []
    for i, change in enumerate(edit.changes):
        new = _random(change.delta, jax.random.fold_in(key, i))
        scale = change.delta.norm() / new.norm()
        changes.append(
            Change(change.weight, change.layer, new.scaled(scale), change.base)
        )
    return WeightEdit(tuple(changes))


def _random(delta: AbstractDelta, key: PRNGKeyArray) -> AbstractDelta:
    """Draw a delta of the same kind and shape."""
    if isinstance(delta, LowRank):
        left, right = jax.random.split(key)
        return LowRank(
            jax.random.normal(left, delta.left.shape),
            jax.random.normal(right, delta.right.shape),
        )
    return Dense(jax.random.normal(key, delta.shape))


def _applied(model: AbstractModel, edit: Any) -> AbstractModel:
    if isinstance(edit, WeightEdit):
        return edit.apply(model)
    return edited(model, compose(edit))


class _Measure:
    """Measurements to make on every model, with text tokenized once."""

    def __init__(
        self,
        model: Any,
        facts: list[Fact],
        related: tuple[Fact, ...],
        text: Any,
        steps: int,
        batch: int,
        key: PRNGKeyArray,
    ) -> None:
        self.base, self.tokenizer = bare(model), model.tokenizer
        self.facts, self.batch, self.key = facts, batch, key
        self.steps = steps
        pairs: list[tuple[str, str]] = []
        for fact in facts:
            for prompt in (fact.text, *fact.paraphrases, *fact.neighbors):
                pairs += [(prompt, fact.target), (prompt, fact.true or "")]
        self.related = len(related)
        pairs += [(fact.text, fact.true or fact.target) for fact in related]
        self.queries = Queries.of(self.tokenizer, pairs)
        self.text = None
        if text is not None:
            given = opened(model, text)[1]
            tokens = jnp.atleast_2d(as_tokens(given))
            lengths = padded_lengths(given, tokens.shape[1])
            full = jnp.full(len(tokens), tokens.shape[1])
            lengths = full if lengths is None else lengths
            self.text = tokens, jnp.arange(tokens.shape[1]) < lengths[:, None]

    def __call__(self, model: AbstractModel, edit: Any) -> Effects:
        """Measure one model."""
        nll, right = self.queries.score(model, self.batch)
        found = self._facts(nll)
        first = len(nll) - self.related
        divergence = np.zeros(0)
        if self.text is not None:
            divergence = np.asarray(divergences(self.base, model, *self.text))
        growth = np.zeros(0)
        if isinstance(edit, WeightEdit):
            growth = np.asarray(edit.growth(self.base), np.float64)
        elif edit is None:
            growth = np.zeros(1)
        return Effects(
            *found,
            related=right[first:].astype(np.float64),
            divergence=np.asarray(divergence, np.float64),
            entropy=self._entropy(model),
            growth=growth,
        )

    def _facts(self, nll: Array | np.ndarray) -> list[np.ndarray]:
        """Return efficacy, paraphrase and neighborhood, each with its margin."""
        at, rows = 0, []
        for fact in self.facts:
            row = []
            sizes = (1, len(fact.paraphrases), len(fact.neighbors))
            for size, sign in zip(sizes, (1, 1, -1), strict=True):
                new, true = np.asarray(nll[at : at + 2 * size]).reshape(size, 2).T
                at += 2 * size
                margin = sign * (np.exp(-new) - np.exp(-true))
                # A tie counts for neither target.
                wins = sign * (true - new) > 0
                row += [wins.mean(), margin.mean()] if size else [np.nan, np.nan]
            rows.append(row)
        return list(np.array(rows, np.float64).T)

    def _entropy(self, model: AbstractModel) -> np.ndarray:
        """Return the entropy of text after each fact's prompt."""
        if self.steps < 3:
            return np.zeros(0)
        ids = [self.tokenizer.encode(f.text, add_special=True) for f in self.facts]
        options: Any = {"temperature": 1.0, "top_k": TOP, "key": self.key}
        prompts = Prompts.from_ids(ids)
        new = generate(model, prompts, steps=self.steps, **options)
        return np.array([ngram_entropy(row) for row in np.asarray(new)])
