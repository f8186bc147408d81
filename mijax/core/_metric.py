"""A metric: a number per prompt, read from the logits of a few positions and tokens."""

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

    def looks(self) -> tuple[Any, ...]:
        """Return the metrics of activations in this one."""
        return ()

    def picked(self, seen: tuple[Array, ...], prompt: Any) -> tuple[Array, ...]:
        """Select what is looked at from the rows at all positions that are read."""
        return ()

    def score_seen(
        self, logits: Any, seen: tuple[Array, ...], prompt: Any
    ) -> Float[Array, "..."]:
        """Return the metric of one prompt from logits and activations."""
        return self.score(logits, prompt)

    def counted(self) -> np.ndarray | None:
        """Return which reads of each prompt count, `[prompt, reads]`; `None` is all."""
        return None

    def of(
        self, logits: Float[Array, "*seq vocab"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Return the metric of one prompt from all its logits, or from `[class]`."""
        logits = logits[None] if logits.ndim == 1 else logits
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
        """Return the operands that may hold one value per prompt, by name."""
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
