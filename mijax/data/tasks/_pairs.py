"""Prompts, their counterparts and the answers between which they decide."""

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Int

from mijax._errors import PositionError
from mijax.core import AbstractMetric, logit_difference, probability_difference
from mijax.data.text._prompts import Index, Prompts, aligned, chosen


class Pairs(eqx.Module):
    """Prompts, and for each a counterpart whose answer is another one.

    Every task of this package is such a record. `pairs[index]` chooses pairs.

    Attributes:
        clean: the prompts.
        corrupt: the counterpart of each prompt, aligned with it token by token.
        answer: id of the token that completes each clean prompt; where there are
            several right ones `[batch, k]`, filled up with -1.
        wrong: id of the wrong answer, or of several, likewise.
        group: index of the template of each prompt. Prompts of a group have equal
            lengths and places, so activations can be averaged per position.

    Raises:
        PositionError: clean and corrupt prompts are not aligned, or there is not one
            answer, wrong answer and group for each of them.

    Examples:
        >>> pairs = Pairs(
        ...     clean=Prompts.from_ids([[7, 1], [7, 2]]),
        ...     corrupt=Prompts.from_ids([[7, 2], [7, 1]]),
        ...     answer=jnp.array([3, 4]),
        ...     wrong=jnp.array([4, 3]),
        ...     group=jnp.array([0, 0]),
        ... )
        >>> len(pairs), pairs[1].answer.tolist()
        (2, [4])
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> logits, _ = jax.vmap(model)(pairs.clean.tokens)
        >>> pairs.logit_difference()(logits).shape
        (2,)
    """

    clean: Prompts
    corrupt: Prompts
    answer: Int[Array, "batch *k"]
    wrong: Int[Array, "batch *m"]
    group: Int[Array, " batch"]

    def __check_init__(self) -> None:
        aligned(self.clean, self.corrupt)
        for name in ("answer", "wrong", "group"):
            given = len(getattr(self, name))
            if given != len(self.clean):
                raise PositionError(
                    f"{len(self.clean)} prompts and {given} entries of {name!r}; "
                    "give one per prompt."
                )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: Index) -> "Pairs":
        """Chooses pairs; one index gives a batch of one."""
        rows = chosen(len(self), index)
        arrays = (self.answer, self.wrong, self.group)
        answer, wrong, group = jax.tree.map(lambda x: x[rows], arrays)
        return Pairs(self.clean[rows], self.corrupt[rows], answer, wrong, group)

    def of_length(self, length: int | None = None) -> "Pairs":
        """Keeps the pairs whose prompts have a number of tokens, without padding.

        Args:
            length: the number of tokens; by default the most common one, the shorter
                one of equally common ones.

        Returns:
            The pairs.

        Raises:
            PositionError: no prompt has so many tokens.

        Examples:
            >>> prompts = Prompts.from_ids([[1, 2], [3, 4, 5], [6, 7]])
            >>> ids = jnp.array([0, 1, 2])
            >>> pairs = Pairs(prompts, prompts, ids, ids, ids).of_length()
            >>> pairs.clean.tokens.tolist()
            [[1, 2], [6, 7]]
        """
        lengths = np.asarray(self.clean.lengths)
        found, counts = np.unique(lengths, return_counts=True)
        wanted = int(found[counts.argmax()]) if length is None else length
        if wanted not in found:
            raise PositionError(
                f"No prompt has {wanted} tokens; there are prompts of "
                f"{', '.join(map(str, found))}."
            )
        kept = self[np.flatnonzero(lengths == wanted)]
        return eqx.tree_at(
            lambda pairs: (pairs.clean.tokens, pairs.corrupt.tokens),
            kept,
            replace_fn=lambda tokens: tokens[:, :wanted],
        )

    def logit_difference(self) -> AbstractMetric:
        """Returns the metric: best answer minus best wrong one, at the last token."""
        return logit_difference(self.answer, self.wrong, position=self.clean.last)

    def probability_difference(self) -> AbstractMetric:
        """Returns the metric: all answers minus all wrong ones, at the last token."""
        where = self.clean.last
        return probability_difference(self.answer, self.wrong, position=where)
