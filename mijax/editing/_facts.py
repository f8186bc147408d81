"""Facts to rewrite, in words and as token ids."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, PositionError, ShapeError, TokenError
from mijax.core.internal import bucket, integers
from mijax.data import Tokenizer

SLOT = "{}"
# The prompt whose predictions after the subject should not change.
ESSENCE = "{} is a"


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact to rewrite, in words.

    Attributes:
        prompt: text with `{}` in place of the subject; the target completes it.
        subject: the subject.
        target: the new completion; a leading space is added if it has none.
        true: the completion before the edit, for comparison.
        paraphrases: texts that the target should also complete.
        neighbors: texts about other subjects that `true` should still complete.

    Raises:
        TokenError: a prompt without exactly one `{}`, or an empty text.

    Examples:
        >>> fact = Fact("{} is in the city of", "The Eiffel Tower", "Rome")
        >>> fact.text, fact.target
        ('The Eiffel Tower is in the city of', ' Rome')
    """

    prompt: str
    subject: str
    target: str
    true: str | None = None
    paraphrases: Sequence[str] = ()
    neighbors: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.prompt.count(SLOT) != 1:
            raise TokenError(
                f"The prompt {self.prompt!r:.60} has {self.prompt.count(SLOT)} places "
                f"for the subject {self.subject!r:.40}: write {SLOT} exactly once."
            )
        if not self.subject.strip() or not self.target.strip():
            raise TokenError(
                f"A fact needs a subject and a target, got {self.subject!r:.40} and "
                f"{self.target!r:.40}."
            )
        for name in ("target", "true"):
            value = getattr(self, name)
            if value is not None and value[:1] != " ":
                object.__setattr__(self, name, f" {value}")
        for name in ("paraphrases", "neighbors"):
            if isinstance(getattr(self, name), str):
                raise TokenError(f"{name} must be a list of texts, got a single text.")
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace(SLOT, self.subject)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Texts around a prompt, over which its key is averaged.

    Attributes:
        groups: texts with `{}` in place of the prompt; keys are averaged within each
            group, then over groups. The first text is `{}`, the prompt itself.

    Raises:
        ConfigError: a text without `{}`, or a first text other than `{}`.

    Examples:
        >>> Contexts((("{}", "He said: {}"), ("They wrote that {}",))).weights.tolist()
        [0.25, 0.25, 0.5]
    """

    groups: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.groups or not all(self.groups) or self.texts[0] != SLOT:
            raise ConfigError(
                f"Contexts must be groups of texts that start with {SLOT!r}."
            )
        wrong = next((text for text in self.texts if text.count(SLOT) != 1), None)
        if wrong is not None:
            raise ConfigError(f"Context {wrong!r:.60} must have {SLOT!r} exactly once.")

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts in all groups."""
        return sum(self.groups, start=())

    @property
    def weights(self) -> Float[np.ndarray, " context"]:
        """Weight of each text in the average."""
        sizes = [len(group) for group in self.groups for _ in group]
        return 1 / (len(self.groups) * np.array(sizes, np.float64))


class Requests(eqx.Module):
    """Facts as token ids, padded on the right.

    Attributes:
        tokens: prompts for each fact: one per context, up to the second-to-last token
            of the target, then the prompt whose predictions should not change.
        lookup: position of the subject's last token in each prompt.
        ends: number of tokens before the target in each context's prompt.
        target: token ids of the target, padded after `lengths`.
        lengths: number of tokens in each target.
        weights: weight of each context in the average of keys.
    """

    tokens: Int[Array, "fact prompt seq"]
    lookup: Int[Array, "fact prompt"]
    ends: Int[Array, "fact context"]
    target: Int[Array, "fact target"]
    lengths: Int[Array, " fact"]
    weights: Float[Array, " context"]

    @classmethod
    def from_texts(
        cls, tokenizer: Tokenizer, facts: Sequence[Fact], contexts: Contexts
    ) -> "Requests":
        """Tokenize facts, each prompt with the tokenizer's special tokens before it.

        Raises:
            TokenError: a target without tokens, or special tokens after a text.
        """
        prompts, lookup, targets = [], [], []
        for fact in facts:
            before, after = fact.prompt.split(SLOT)
            around = [text.split(SLOT) for text in contexts.texts]
            parts = [(a + before, fact.subject, after + b) for a, b in around]
            parts.append(("", fact.subject, ESSENCE.replace(SLOT, "")))
            found = [_located(tokenizer, *each) for each in parts]
            prompts.append([ids for ids, _ in found])
            lookup.append([at for _, at in found])
            targets.append(tokenizer.continuation(fact.target))
        return cls.from_ids(prompts, lookup, targets, weights=contexts.weights)

    @classmethod
    def from_ids(
        cls,
        prompts: Sequence[Sequence[Sequence[int]]],
        lookup: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> "Requests":
        """Create requests from token ids.

        Args:
            prompts: for each fact, the ids of its prompts: one per context, starting
                with the plain prompt, then the prompt whose predictions should not
                change.
            lookup: for each fact, the position of the subject's last token in each
                prompt.
            targets: for each fact, the ids of the target.
            weights: weight of each context in the average of keys; equal by default.

        Returns:
            The requests.

        Raises:
            ShapeError: numbers of prompts, positions or weights that do not match.
            PositionError: a subject outside its prompt.
            TokenError: a target without tokens.

        Examples:
            >>> found = Requests.from_ids([[[5, 6, 7], [5, 8]]], [[1, 0]], [[9, 3]])
            >>> found.tokens[0, :, :4].tolist(), found.ends.tolist()
            ([[5, 6, 7, 9], [5, 8, 0, 0]], [[3]])
        """
        counts = {len(each) for each in prompts} | {len(each) for each in lookup}
        if len(counts) != 1 or counts.pop() < 2 or len(prompts) != len(targets):
            raise ShapeError(
                "Each fact needs a target, one prompt per context plus one more, and "
                "the position of the subject in each prompt."
            )
        if not all(len(target) for target in targets):
            raise TokenError("A target has no tokens: give a word.")
        whole = [
            [[*ids, *target[:-1]] for ids in each[:-1]] + [list(each[-1])]
            for each, target in zip(prompts, targets, strict=True)
        ]
        for each, at in zip(prompts, lookup, strict=True):
            for ids, position in zip(each, at, strict=True):
                if not 0 <= position < len(ids):
                    raise PositionError(
                        f"The subject is at position {position} in a prompt with "
                        f"{len(ids)} tokens."
                    )
        contexts = len(whole[0]) - 1
        mean = np.full(contexts, 1 / contexts) if weights is None else weights
        if np.shape(mean) != (contexts,):
            raise ShapeError(f"{np.shape(mean)} weights for {contexts} contexts.")
        longest = bucket(max(len(ids) for each in whole for ids in each), least=4)
        return cls(
            tokens=_padded([_padded(each, longest) for each in whole]),
            lookup=_ids(lookup),
            ends=_ids([[len(ids) for ids in each[:-1]] for each in prompts]),
            target=_padded(targets, max(map(len, targets))),
            lengths=_ids([len(target) for target in targets]),
            weights=jnp.asarray(mean, jnp.float32),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: slice) -> "Requests":
        """Select facts with a slice."""
        parts = (self.tokens, self.lookup, self.ends, self.target, self.lengths)
        return Requests(*(part[index] for part in parts), weights=self.weights)


def _located(
    tokenizer: Tokenizer, before: str, subject: str, after: str
) -> tuple[list[int], int]:
    """Return the ids of a text and the position of the subject's last token."""
    text = before + subject + after
    ids, offsets = tokenizer.offsets(text)
    whole = tokenizer.encode(text, add_special=True)
    shift = len(whole) - len(ids)
    if whole[shift:] != ids:
        raise TokenError(
            "This tokenizer adds special tokens after a text, which editing does not "
            "support: use Requests.from_ids."
        )
    start, stop = len(before), len(before) + len(subject)
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
    if not inside:
        raise PositionError(
            f"The subject {subject!r:.40} has no token in {text!r:.80}."
        )
    return whole, shift + inside[-1]


def _padded(rows: Sequence[Sequence[int]] | list[Array], width: int = 0) -> Array:
    """Stack rows of ids, padded with 0."""
    if width == 0:
        return jnp.stack([jnp.asarray(row) for row in rows])
    filled = [[*row, *[0] * (width - len(row))] for row in rows]
    return _ids(filled)


def _ids(values: object) -> Array:
    return jnp.asarray(integers(values, "A token id", TokenError), jnp.int32)
