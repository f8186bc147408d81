"""The most likely next tokens."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.core._capture import capture
from mijax.core._metric import wide
from mijax.core._sites import Site
from mijax.core._text import ModelLike, TextLike, opened
from mijax.core._tokens import PromptsLike, as_tokens


class TopTokens(eqx.Module):
    """The most likely next tokens of each prompt, best first.

    The axis `batch` is absent for a single prompt.

    Attributes:
        ids: token ids.
        logits: their logits, in nats.
        probabilities: their probabilities among all tokens.
        total: log of the summed exponentials of all logits.
        tokens: their texts, nested like `ids`; `None` without a tokenizer.
    """

    ids: Int[Array, "*batch k"]
    logits: Float[Array, "*batch k"]
    probabilities: Float[Array, "*batch k"]
    total: Float[Array, "*batch"]
    tokens: tuple[Any, ...] | None = eqx.field(static=True, default=None)

    def __repr__(self) -> str:
        p = np.atleast_2d(self.probabilities)
        names: Any = (
            np.asarray(self.ids).tolist() if self.tokens is None else self.tokens
        )
        names = names if self.ids.ndim == 2 else [names]

        def row(names: Any, p: Any) -> str:
            pairs = zip(names[:5], p, strict=False)
            more = ", ..." if len(names) > 5 else ""
            return ", ".join(f"{name!r} {each:.3f}" for name, each in pairs) + more

        shown = row(names[0], p[0])
        more = f"; and {len(p) - 1} more prompts" if len(p) > 1 else ""
        return f"TopTokens({shown}{more})"


def top_tokens(
    model: ModelLike,
    tokens: TextLike,
    *,
    k: int = 5,
    position: Any = None,
    edits: Any = None,
) -> TopTokens:
    """Return the most likely next tokens.

    Args:
        model: a language model (`mijax.models.load(...)`), or any `AbstractModel`.
        tokens: a text or a list of texts, token ids of one prompt or of a batch, or
            `mijax.data.Prompts`.
        k: number of tokens.
        position: position whose next token is predicted, one for all prompts or one
            per prompt; the last token of each prompt by default.
        edits: placed edits, a list of them, or `None`.

    Returns:
        Ids, logits and probabilities, and texts where the model has a tokenizer.

    Raises:
        ShapeError: `k` is not between 1 and the size of the vocabulary.
        TokenError: a text for a model without a tokenizer.
        PositionError: a position beyond the prompt.

    Examples:
        >>> import mijax
        >>> lm = mijax.models.load("induction-2l")
        >>> found = mijax.top_tokens(lm, "abcdeabcd", k=1)
        >>> found.tokens
        ('e',)
    """
    tokenizer = None
    if getattr(model, "text", model) is not None:
        tokenizer = getattr(model, "tokenizer", None)
    model, tokens = opened(model, tokens)
    if position is None and isinstance(tokens, PromptsLike):
        position = tokens.lengths - 1
    elif position is None:
        position = as_tokens(tokens).shape[-1] - 1
    logits = capture(model, tokens, Site("logits", position=position), edits)
    whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if not whole or not 1 <= k <= logits.shape[-1]:
        raise ShapeError(f"k is from 1 to {logits.shape[-1]} tokens, got {k!r:.60}.")
    found = _top(logits, int(k))
    if tokenizer is None:
        return found
    ids = np.asarray(found.ids)
    names = tuple(tuple(tokenizer.pieces(row)) for row in np.atleast_2d(ids))
    named = names if ids.ndim == 2 else names[0]
    return TopTokens(found.ids, found.logits, found.probabilities, found.total, named)


@eqx.filter_jit
def _top(logits: Float[Array, "*batch vocab"], k: int) -> TopTokens:
    total = jax.nn.logsumexp(wide(logits), axis=-1)
    best, ids = jax.lax.top_k(wide(logits), k)
    return TopTokens(ids, best, jax.numpy.exp(best - total[..., None]), total)
