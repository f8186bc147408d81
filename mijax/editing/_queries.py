"""Likelihoods of completions, as CounterFact's evaluation measures them."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import PositionError
from mijax.core import AbstractModel
from mijax.core.internal import Sequence as Rows
from mijax.core.internal import bucket, empty, scan_blocks
from mijax.data import Tokenizer


class Queries(eqx.Module):
    """Prompts with their completions, padded on the right.

    Attributes:
        tokens: prompt and completion, without the completion's last token.
        ends: number of tokens in each prompt.
        target: token ids of the completion, padded after `lengths`.
        lengths: number of tokens in each completion.

    Examples:
        >>> import mijax
        >>> tokenizer = Tokenizer.from_pieces(["a", " b"])
        >>> found = Queries.of(tokenizer, [("a", " b"), ("aa", " b b")])
        >>> found.ends.tolist(), found.lengths.tolist()
        ([1, 2], [1, 2])
    """

    tokens: Int[np.ndarray, "query seq"]
    ends: Int[np.ndarray, " query"]
    target: Int[np.ndarray, "query target"]
    lengths: Int[np.ndarray, " query"]

    @classmethod
    def of(cls, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> "Queries":
        """Tokenize prompts and completions, with special tokens before a prompt."""
        prompts = [tokenizer.encode(text, add_special=True) for text, _ in pairs]
        targets = [tokenizer.continuation(target) for _, target in pairs]
        rows = [p + t[:-1] for p, t in zip(prompts, targets, strict=True)]
        return cls(
            _padded(rows, bucket(max(map(len, rows)), least=4)),
            np.array([len(p) for p in prompts], np.int32),
            _padded(targets, max(map(len, targets))),
            np.array([len(t) for t in targets], np.int32),
        )

    def score(
        self, model: AbstractModel, batch: int
    ) -> tuple[Float[np.ndarray, " query"], Bool[np.ndarray, " query"]]:
        """Return the mean negative log-likelihood and greedy correctness.

        Args:
            model: the model.
            batch: number of queries to run at a time.

        Returns:
            Nats per token of the completion, and True where each of its tokens is the
            most likely one.

        Raises:
            PositionError: a prompt longer than the model's context.
        """
        context = getattr(model, "context", None)
        longest = int((self.ends + self.lengths - 1).max())
        tokens = self.tokens
        if context is not None and longest > context:
            raise PositionError(
                f"A prompt with its completion has {longest} tokens and the model's "
                f"context is {context}."
            )
        tokens = tokens[:, : context or None]
        count, fill = len(tokens), -len(tokens) % batch
        parts = (tokens, self.ends, self.target, self.lengths)
        parts = [
            np.pad(a, [(0, fill), *[(0, 0)] * (a.ndim - 1)], "edge") for a in parts
        ]
        found = []
        for at in range(0, count + fill, batch):
            few = [jnp.asarray(part[at : at + batch]) for part in parts]
            found.append(jax.device_get(_score(model, *few)))
        nll, right = (np.concatenate(part)[:count] for part in zip(*found, strict=True))
        return nll, right


@eqx.filter_jit
def _score(
    model: AbstractModel,
    tokens: Int[Array, "query seq"],
    ends: Int[Array, " query"],
    target: Int[Array, "query target"],
    lengths: Int[Array, " query"],
) -> tuple[Array, Array]:
    def one(tokens: Array, end: Array, target: Array, length: Array) -> Any:
        position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        keep: Any = {"want": (), "select": lambda kept, acts, layer: (kept, None)}
        rows, x = Rows(position), model.embed(tokens, position)
        x = scan_blocks(model, x, empty().blocks, rows, **keep)[0]
        reads = jnp.minimum(end - 1 + jnp.arange(len(target)), len(tokens) - 1)
        logits = model.unembed(model.normalise(x[reads])).astype(jnp.float32)
        each = jax.nn.log_softmax(logits)[jnp.arange(len(target)), target]
        counted = jnp.arange(len(target)) < length
        first = (logits.argmax(-1) == target) | ~counted
        return -jnp.where(counted, each, 0).sum() / length, first.all()

    return jax.vmap(one)(tokens, ends, target, lengths)


@eqx.filter_jit
def divergences(
    model: AbstractModel,
    edited: AbstractModel,
    tokens: Int[Array, "text seq"],
    mask: Bool[Array, "text seq"],
) -> Float[Array, " text"]:
    """Return the mean KL divergence per token of the edited model, in nats."""

    def one(tokens: Array, mask: Array) -> Array:
        before, after = (
            jax.nn.log_softmax(m(tokens)[0].astype(jnp.float32))
            for m in (model, edited)
        )
        each = (jnp.exp(before) * (before - after)).sum(-1)
        return jnp.where(mask, each, 0).sum() / mask.sum()

    return jax.lax.map(lambda pair: one(*pair), (tokens, mask))


def ngram_entropy(ids: Int[np.ndarray, " seq"]) -> float:
    """Return the weighted mean of bigram and trigram entropies.

    (2/3 bigrams + 4/3 trigrams) / 2 in bits, with the weights of CounterFact's
    evaluation, which counts words; this function counts tokens. Repetitive text has low
    entropy.
    """
    found = []
    for n in (2, 3):
        grams = np.stack([ids[i : len(ids) - n + 1 + i] for i in range(n)], axis=1)
        counts = np.unique(grams, axis=0, return_counts=True)[1]
        share = counts / counts.sum()
        found.append(-(share * np.log2(share)).sum())
    return float((2 / 3 * found[0] + 4 / 3 * found[1]) / 2)


def _padded(rows: Sequence[Sequence[int]], width: int) -> Int[np.ndarray, "row width"]:
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)
