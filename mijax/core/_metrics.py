"""Metrics: values that turn logits into one number per prompt.

A metric knows which positions and which tokens it reads, so a sweep evaluates the
unembedding for these alone. Classes have lower-case names: they are written like
functions, `logit_difference(answer, wrong)`, and print like that.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import PositionError, ShapeError
from mijax.core._integers import integers
from mijax.core._metric import (
    AbstractMetric,
    as_ids,
    as_position,
    as_sets,
    own,
    own_set,
)
from mijax.core._sites import known


class logit_difference(AbstractMetric):
    """Logit of the answer minus logit of the wrong answer, in nats.

    Of several answers or wrong ones the largest logit counts, as in Heimersheim and
    Janiak 2023.

    Args:
        answer: token id, one per prompt, or `[prompt, k]` with -1 where a prompt has
            fewer than `k`.
        wrong: the same for the wrong answer.
        position: where to read: an integer, one per prompt, or `[prompt, reads]`
            (averaged). The last position by default; with padded prompts give
            `prompts.last`.

    Raises:
        ShapeError: something else than token ids, or a prompt without any.
        PositionError: a negative position.

    Examples:
        >>> float(logit_difference(0, 2)(jnp.array([[3.0, 1.0, -1.0]])))
        4.0
        >>> float(logit_difference(0, [[1, 2]])(jnp.array([[3.0, 1.0, -1.0]])))
        2.0
    """

    answer: Int[Array, "..."] = eqx.field(converter=as_sets)
    wrong: Int[Array, "..."] = eqx.field(converter=as_sets)
    position: Int[Array, "..."] | None = eqx.field(
        default=None, converter=as_position, kw_only=True
    )
    per_prompt = token_ids = ("answer", "wrong")

    def ids(self, prompt: Int[Array, ""] | None) -> Int[Array, " k"]:
        """Reads the answers, then the wrong ones."""
        both = (own_set(self.answer, prompt), own_set(self.wrong, prompt))
        return jnp.maximum(jnp.concatenate(both), 0)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Subtracts the best of both."""
        answer, wrong = own_set(self.answer, prompt), own_set(self.wrong, prompt)

        def best(of: Array, ids: Array) -> Array:
            return jnp.where(ids >= 0, of, -jnp.inf).max(-1)

        k = len(answer)
        return (best(logits[:, :k], answer) - best(logits[:, k:], wrong)).mean()


class probability(AbstractMetric):
    """Probability of the answer.

    Args:
        answer: token id, or one per prompt.
        position: where to read; see `logit_difference`.

    Examples:
        >>> float(probability(0)(jnp.zeros((1, 4))))
        0.25
    """

    answer: Int[Array, "*prompt"] = eqx.field(converter=as_ids)
    position: Int[Array, "..."] | None = eqx.field(
        default=None, converter=as_position, kw_only=True
    )
    per_prompt = token_ids = ("answer",)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Normalises over the vocabulary."""
        return jax.nn.softmax(logits, axis=-1)[:, own(self.answer, prompt)].mean()


class probability_difference(AbstractMetric):
    r"""Probability of all answers minus that of all wrong ones.

    $\sum_{a} p_a - \sum_{w} p_w$, from -1 to 1 (Hanna et al. 2023, arXiv:2305.00586).

    Args:
        answers: token id, one per prompt, or `[prompt, k]` with -1 where a prompt has
            fewer than `k`.
        wrong: the same for the wrong answers.
        position: where to read; see `logit_difference`.

    Raises:
        ShapeError: something else than token ids, or a prompt without any.

    Examples:
        >>> float(probability_difference([[0, 1, 2]], [[3, -1]])(jnp.zeros((1, 4))))
        0.5
    """

    answers: Int[Array, "..."] = eqx.field(converter=as_sets)
    wrong: Int[Array, "..."] = eqx.field(converter=as_sets)
    position: Int[Array, "..."] | None = eqx.field(
        default=None, converter=as_position, kw_only=True
    )
    per_prompt = token_ids = ("answers", "wrong")

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Normalises over the vocabulary, then sums."""
        p = jax.nn.softmax(logits, axis=-1)

        def total(ids: Array) -> Array:
            return jnp.where(ids >= 0, p[:, jnp.maximum(ids, 0)], 0.0).sum(-1)

        answers, wrong = own_set(self.answers, prompt), own_set(self.wrong, prompt)
        return (total(answers) - total(wrong)).mean()


class cross_entropy(AbstractMetric):
    """Mean negative log probability of the labels, in nats.

    Args:
        labels: token id, one per prompt, or `[prompt, reads]` with -1 (or -100) at
            reads that do not count, for instance in padding.
        position: where to read; see `logit_difference`. By default the last position,
            or for labels `[prompt, reads]` the first ones: label `i` at position `i`.

    Raises:
        ShapeError: labels that are not token ids, or a prompt without any.
        PositionError: labels `[prompt, 1]` without a position, which could be the
            first or the last.

    Examples:
        >>> float(cross_entropy(0)(jnp.zeros((1, 4))))  # log 4
        1.3862943649291992

        The mean loss of prompts of several lengths:

        >>> import jax, mijax
        >>> prompts = mijax.data.Prompts.from_ids([[5, 6, 7, 8], [5, 9]])
        >>> following = prompts.tokens[:, 1:]
        >>> loss = cross_entropy(jnp.where(prompts.mask[:, 1:], following, -1))
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> loss(mijax.run(model, prompts)).shape
        (2,)
    """

    labels: Int[Array, "..."]
    position: Int[Array, "..."] | None
    per_prompt = token_ids = ("labels",)

    def __init__(self, labels: Any, *, position: Any = None):
        labels = integers(labels, "A label")
        if labels.ndim > 2:
            raise ShapeError(f"Labels have at most 2 axes, got shape {labels.shape}.")
        index = known(labels)
        if index is not None and np.any(index < 0):
            out = (index == -1) | (index == -100)
            if labels.ndim < 2 or not out[index < 0].all() or out.all(-1).any():
                raise ShapeError(
                    f"Labels are token ids starting at 0, got {index.min()}; of "
                    "several per prompt, -1 leaves one out, but not all."
                )
        if labels.ndim == 2 and position is None:
            if labels.shape[1] == 1:
                raise PositionError(
                    "Labels [prompt, 1] need a position, such as prompts.last; for the "
                    "last position give labels [prompt]."
                )
            position = np.arange(labels.shape[1])[None]
        self.labels = jnp.asarray(labels, jnp.int32)
        self.position = as_position(position)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Average over the positions read that have a label."""
        labels = jnp.broadcast_to(own(self.labels, prompt), logits.shape[:1])
        counts = labels >= 0
        # Zeros first: NaN at padding must not reach the gradient.
        log_p = jax.nn.log_softmax(jnp.where(counts[:, None], logits, 0.0), axis=-1)
        at = jnp.maximum(labels, 0)[:, None]
        found = jnp.take_along_axis(log_p, at, axis=-1)[:, 0]
        return -jnp.where(counts, found, 0.0).sum() / counts.sum()

    def counted(self) -> np.ndarray | None:
        """Return which labels are token ids."""
        labels = known(self.labels)
        return None if labels is None or labels.ndim < 2 else labels >= 0


class accuracy(AbstractMetric):
    """1 where the answer has the largest logit of all tokens, else 0.

    Args:
        answer: token id, or one per prompt.
        position: where to read; see `logit_difference`.

    Examples:
        >>> float(accuracy(1)(jnp.array([[0.0, 2.0, 1.0]])))
        1.0
    """

    answer: Int[Array, "*prompt"] = eqx.field(converter=as_ids)
    position: Int[Array, "..."] | None = eqx.field(
        default=None, converter=as_position, kw_only=True
    )
    per_prompt = token_ids = ("answer",)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Compare the token of the largest logit; NaN where a logit is NaN."""
        right = (logits.argmax(-1) == own(self.answer, prompt)).mean()
        return jnp.where(jnp.isnan(logits).any(), jnp.nan, right)
