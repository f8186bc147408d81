"""Metrics: values that turn logits into one number per prompt.

A metric knows which positions and which tokens it reads, so a sweep evaluates the
unembedding for these alone.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from mijax._errors import NotFiniteError, PositionError, ShapeError
from mijax.core._integers import integers, reals
from mijax.core._shown import line
from mijax.core._sites import PerPrompt, known
from mijax.core._traced import bounds_of_metric, guarded


class AbstractMetric(eqx.Module):
    """A number per prompt, read from logits.

    Operands hold one value for all prompts, or one per prompt (first axis).

    Attributes:
        position: positions that are read: one for all prompts, `[prompt]`, or
            `[prompt, reads]`; `None` is the last position.
        per_prompt: names of the other operands that may hold one value per prompt;
            those are checked against the prompts that are run.
        token_ids: names of the operands that are token ids; those are checked against
            the logits.
    """

    position: eqx.AbstractVar[Array | None]
    per_prompt: ClassVar[tuple[str, ...]] = ()
    token_ids: ClassVar[tuple[str, ...]] = ()

    __repr__ = line

    @abc.abstractmethod
    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Returns the metric of one prompt from the logits that it reads."""

    def ids(self, prompt: Int[Array, ""] | None) -> Int[Array, " k"] | None:
        """Returns the tokens whose logits are read; `None` is the whole vocabulary."""
        return None

    def reads(self, prompt: Int[Array, ""] | None, seq: int) -> Int[Array, " reads"]:
        """Returns the positions that are read in one prompt of `seq` tokens."""
        if self.position is None:
            return jnp.array([seq - 1], jnp.int32)
        return jnp.atleast_1d(own(self.position, prompt)).astype(jnp.int32)

    def counted(self) -> np.ndarray | None:
        """Return which reads of each prompt count, `[prompt, reads]`; `None` is all."""
        return None

    def of(
        self, logits: Float[Array, "seq vocab"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Returns the metric of one prompt from all its logits."""
        read = wide(logits[self.reads(prompt, logits.shape[0])])
        ids = self.ids(prompt)
        return self.score(read if ids is None else read[:, ids], prompt)

    def __call__(self, logits: Float[Array, "*batch seq vocab"]) -> Array:
        """Return the metric of every prompt, `[*batch]`.

        Raises:
            ShapeError: logits of another rank, or operands for other prompts.
            PositionError: a position beyond the prompts.
            NotFiniteError: NaN among the logits read, as `run` gives at padding.
        """
        logits = reals(logits, "Logits")
        if logits.ndim not in (2, 3):
            raise ShapeError(
                "A metric reads logits [seq, vocab] or [prompt, seq, vocab], got shape "
                f"{logits.shape}."
            )
        seq, vocab = logits.shape[-2:]
        self.check(*logits.shape[:-2], seq=seq)
        self.check_tokens(vocab)
        logits = guarded(logits, bounds_of_metric(self, seq, vocab))
        found = _measure(self, logits)
        if not isinstance(found, Tracer) and np.isnan(found).any():
            i = int(np.isnan(np.atleast_1d(found)).argmax())
            raise NotFiniteError(
                f"The metric of prompt {i} is NaN: it reads padding (give it "
                "position=prompts.last), or the logits are NaN."
            )
        return found

    def operands(self) -> dict[str, Array]:
        """Returns what may hold one value per prompt in this metric, by name."""
        named = {name: getattr(self, name) for name in (*self.per_prompt, "position")}
        return {name: array for name, array in named.items() if array is not None}

    def check(self, batch: int = 1, *, seq: int) -> None:
        """Refuses operands of other prompts and positions beyond these.

        Args:
            batch: number of prompts.
            seq: number of tokens.

        Raises:
            ShapeError: an operand for another number of prompts.
            PositionError: a position beyond the prompts.
        """
        for name, operand in self.operands().items():
            if operand.ndim and operand.shape[0] not in (1, batch):
                raise ShapeError(
                    f"The metric has {name} for {operand.shape[0]} prompts, but the "
                    f"run has {batch}: give one for all, or one per prompt."
                )
        index = known(self.position)
        if index is not None and np.any(index >= seq):
            raise PositionError(
                f"The metric reads position {index.max()}, but prompts have {seq} "
                f"tokens (0 to {seq - 1})."
            )

    def check_tokens(self, vocab: int) -> None:
        """Refuses tokens that the model does not have.

        Args:
            vocab: number of logits.

        Raises:
            ShapeError: a token beyond them.
        """
        for name in self.token_ids:
            ids = known(getattr(self, name))
            if ids is not None and ids.max(initial=0) >= vocab:
                raise ShapeError(
                    f"The metric's {name} {ids.max()} is not in the model's "
                    f"vocabulary of {vocab} (0 to {vocab - 1})."
                )


@eqx.filter_jit
def _measure(metric: AbstractMetric, logits: Array) -> Array:
    if logits.ndim == 2:
        return metric.of(logits, None)
    return jax.vmap(metric.of)(logits, jnp.arange(logits.shape[0]))


def wide(logits: Array) -> Array:
    """Returns logits in float32 at least: sums over a vocabulary need the digits."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def own(operand: Array, prompt: Array | None) -> Array:
    """Returns a prompt's own entry of an operand that has a prompt axis."""
    if operand.ndim == 0:
        return operand
    if prompt is None:
        if operand.shape[0] != 1:
            raise ShapeError(
                f"The metric holds {operand.shape[0]} prompts, but a single one is run."
            )
        return operand[0]
    return operand[0] if operand.shape[0] == 1 else operand[prompt]


def as_ids(tokens: Any) -> Int[Array, "..."]:
    """Returns token ids as an array of rank 0 (shared) or 1 (one per prompt)."""
    ids = integers(tokens, "A token id (of a text: tokenizer.token(text))")
    index = known(ids)
    if ids.ndim > 1 or (index is not None and np.any(index < 0)):
        raise ShapeError(
            "A metric takes a token id, or one per prompt (use "
            f"tokenizer.token(text)), starting at 0, got {tokens!r:.60}."
        )
    return jnp.asarray(ids, jnp.int32)


def as_sets(tokens: Any) -> Int[Array, "..."]:
    """Returns token ids like `as_ids`, or `[prompt, k]` with -1 where there is none."""
    ids = integers(tokens, "A token id (of a text: tokenizer.token(text))")
    index = known(ids)
    if ids.ndim != 2:
        return as_ids(ids)
    if index is not None and not (index >= 0).any(axis=1).all():
        empty = int((index < 0).all(axis=1).argmax())
        raise ShapeError(f"Prompt {empty} has no token ids: give it at least one.")
    return jnp.asarray(ids, jnp.int32)


def own_set(operand: Array, prompt: Array | None) -> Int[Array, " k"]:
    """Returns a prompt's own token ids, -1 where there is none."""
    return jnp.atleast_1d(own(operand, prompt))


def as_position(position: Any) -> Array | None:
    """Returns positions as an array, or `None`."""
    if position is None:
        return None
    given = position.values if isinstance(position, PerPrompt) else position
    position = integers(given, "A position of a metric", PositionError)
    if position.ndim > 2:
        raise PositionError(
            "Positions of a metric are one, [prompt] or [prompt, reads], got shape "
            f"{position.shape}."
        )
    index = known(position)
    if index is not None and np.any(index < 0):
        raise PositionError(
            f"Positions count from 0, got {index.min()}; for the last token of each "
            "prompt give `prompts.last`, or nothing where there is no padding."
        )
    return jnp.asarray(position, jnp.int32)


class LogitDifference(AbstractMetric):
    """See `logit_difference`."""

    answer: Int[Array, "..."]
    wrong: Int[Array, "..."]
    position: Int[Array, "..."] | None
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


def logit_difference(
    answer: Any, wrong: Any, *, position: Any = None
) -> LogitDifference:
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

    Returns:
        A metric.

    Raises:
        ShapeError: something else than token ids, or a prompt without any.
        PositionError: a negative position.

    Examples:
        >>> float(logit_difference(0, 2)(jnp.array([[3.0, 1.0, -1.0]])))
        4.0
        >>> float(logit_difference(0, [[1, 2]])(jnp.array([[3.0, 1.0, -1.0]])))
        2.0
    """
    where = as_position(position)
    return LogitDifference(answer=as_sets(answer), wrong=as_sets(wrong), position=where)


class Probability(AbstractMetric):
    """See `probability`."""

    answer: Int[Array, "*prompt"]
    position: Int[Array, "..."] | None
    per_prompt = token_ids = ("answer",)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Normalises over the vocabulary."""
        return jax.nn.softmax(logits, axis=-1)[:, own(self.answer, prompt)].mean()


def probability(answer: Any, *, position: Any = None) -> Probability:
    """Probability of the answer.

    Args:
        answer: token id, or one per prompt.
        position: where to read; see `logit_difference`.

    Returns:
        A metric.

    Examples:
        >>> float(probability(0)(jnp.zeros((1, 4))))
        0.25
    """
    return Probability(answer=as_ids(answer), position=as_position(position))


class ProbabilityDifference(AbstractMetric):
    """See `probability_difference`."""

    answers: Int[Array, "..."]
    wrong: Int[Array, "..."]
    position: Int[Array, "..."] | None
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


def probability_difference(
    answers: Any, wrong: Any, *, position: Any = None
) -> ProbabilityDifference:
    r"""Probability of all answers minus that of all wrong ones.

    $\sum_{a} p_a - \sum_{w} p_w$, from -1 to 1 (Hanna et al. 2023, arXiv:2305.00586).

    Args:
        answers: token id, one per prompt, or `[prompt, k]` with -1 where a prompt has
            fewer than `k`.
        wrong: the same for the wrong answers.
        position: where to read; see `logit_difference`.

    Returns:
        A metric.

    Raises:
        ShapeError: something else than token ids, or a prompt without any.

    Examples:
        >>> float(probability_difference([[0, 1, 2]], [[3, -1]])(jnp.zeros((1, 4))))
        0.5
    """
    answers, wrong, where = as_sets(answers), as_sets(wrong), as_position(position)
    return ProbabilityDifference(answers=answers, wrong=wrong, position=where)


class CrossEntropy(AbstractMetric):
    """See `cross_entropy`."""

    labels: Int[Array, "..."]
    position: Int[Array, "..."] | None
    per_prompt = token_ids = ("labels",)

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


def cross_entropy(labels: Any, *, position: Any = None) -> CrossEntropy:
    """Mean negative log probability of the labels, in nats.

    Args:
        labels: token id, one per prompt, or `[prompt, reads]` with -1 (or -100) at
            reads that do not count, for instance in padding.
        position: where to read; see `logit_difference`. By default the last position,
            or for labels `[prompt, reads]` the first ones: label `i` at position `i`.

    Returns:
        A metric.

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
    labels = integers(labels, "A label")
    if labels.ndim > 2:
        raise ShapeError(f"Labels have at most 2 axes, got shape {labels.shape}.")
    index = known(labels)
    if index is not None and np.any(index < 0):
        out = (index == -1) | (index == -100)
        if labels.ndim < 2 or not out[index < 0].all() or out.all(-1).any():
            raise ShapeError(
                f"Labels are token ids starting at 0, got {index.min()}; of several "
                "per prompt, -1 leaves one out, but not all."
            )
    if labels.ndim == 2 and position is None:
        if labels.shape[1] == 1:
            raise PositionError(
                "Labels [prompt, 1] need a position, such as prompts.last; for the "
                "last position give labels [prompt]."
            )
        position = np.arange(labels.shape[1])[None]
    labels = jnp.asarray(labels, jnp.int32)
    return CrossEntropy(labels=labels, position=as_position(position))


class Accuracy(AbstractMetric):
    """See `accuracy`."""

    answer: Int[Array, "*prompt"]
    position: Int[Array, "..."] | None
    per_prompt = token_ids = ("answer",)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Compare the token of the largest logit; NaN where a logit is NaN."""
        right = (logits.argmax(-1) == own(self.answer, prompt)).mean()
        return jnp.where(jnp.isnan(logits).any(), jnp.nan, right)


def accuracy(answer: Any, *, position: Any = None) -> Accuracy:
    """1 where the answer has the largest logit of all tokens, else 0.

    Args:
        answer: token id, or one per prompt.
        position: where to read; see `logit_difference`.

    Returns:
        A metric.

    Examples:
        >>> float(accuracy(1)(jnp.array([[0.0, 2.0, 1.0]])))
        1.0
    """
    return Accuracy(answer=as_ids(answer), position=as_position(position))


def recovered(value: Any, clean: Any, corrupt: Any) -> Array:
    r"""Share of the effect that a patch restores, $(m - m_*) / (m_{cl} - m_*)$.

    0 is the corrupt run and 1 the clean one (Wang et al. 2022, arXiv:2211.00593;
    Zhang and Nanda 2023, arXiv:2309.16042). With many prompts average the metrics
    first: the mean of ratios is dominated by prompts where clean and corrupt agree.

    Args:
        value: metric of the patched run.
        clean: metric of the clean run.
        corrupt: metric of the corrupt run.

    Returns:
        The normalised metric, in the broadcast shape; ends `[prompt]` belong to values
        `[prompt, *cells]`.

    Raises:
        ShapeError: ends that fit the values in no way, or in two.
        NotFiniteError: clean and corrupt are equal somewhere, or NaN.

    Examples:
        >>> float(recovered(1.0, clean=3.0, corrupt=-1.0))
        0.5
    """
    value, clean, corrupt = (
        reals(given, "Metrics") for given in (value, clean, corrupt)
    )
    refuse_equal_ends(clean, corrupt)
    return _fraction(value, clean, corrupt)


@jax.jit
def _fraction(value: Array, clean: Array, corrupt: Array) -> Array:
    clean, corrupt = (_beside(value, end) for end in (clean, corrupt))
    try:
        jnp.broadcast_shapes(value.shape, clean.shape, corrupt.shape)
    except ValueError:
        raise ShapeError(
            f"Values of {value.shape} do not fit ends of {clean.shape} and "
            f"{corrupt.shape}."
        ) from None
    return (value - corrupt) / (clean - corrupt)


def refuse_equal_ends(clean: Array, corrupt: Array) -> None:
    """Refuse a scale whose ends are equal, or NaN, where they are known."""
    if isinstance(clean, Tracer) or isinstance(corrupt, Tracer):
        return
    try:
        distance = np.asarray(clean, np.float32) - np.asarray(corrupt, np.float32)
    except ValueError:  # ends of other shapes are judged with the values
        return
    wrong = (distance == 0) | ~np.isfinite(distance)
    if wrong.any():
        raise NotFiniteError(
            f"Clean and corrupt metrics are equal, or not finite, in {wrong.sum()} of "
            f"{wrong.size} cases, so no fraction is recovered: leave those prompts "
            "out, or average over prompts first."
        )


def _beside(value: Array, end: Array) -> Array:
    """Returns what one end of the scale is to each value, by prompt if it has some."""
    if not 0 < end.ndim < value.ndim:
        return end
    first = end.shape == value.shape[: end.ndim]
    last = all(a in (1, b) for a, b in zip(end.shape[::-1], value.shape[::-1]))  # noqa: B905
    if first == last:
        fit = "both ways along" if first else "not along"
        raise ShapeError(
            f"An end of shape {end.shape} fits {fit} values of {value.shape}: index it "
            "with None where it has no axis, or use the sweep's own recovered(clean)."
        )
    return end.reshape(end.shape + (1,) * (value.ndim - end.ndim)) if first else end
