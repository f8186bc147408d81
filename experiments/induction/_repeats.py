"""Random tokens in which a random segment comes twice: the data of this experiment."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

# One letter per token, so that any text can be read by the model.
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 "
BOS = 0
VOCAB = 1 + len(CHARACTERS)
EARLY = 8


class Repeats(NamedTuple):
    """Prompts `BOS ... A B C ... A B C ...` and where the two copies begin.

    Where the copies begin and how long they are is random: nothing can be read off an
    absolute position.

    Attributes:
        tokens: token ids, `[*batch, seq]`.
        first: position of the first copy, `[*batch]`.
        second: position of the second copy, `[*batch]`.
        length: tokens in each copy, `[*batch]`.
    """

    tokens: Int[Array, "*batch seq"]
    first: Int[Array, "*batch"]
    second: Int[Array, "*batch"]
    length: Int[Array, "*batch"]

    @property
    def inside(self) -> Bool[Array, "*batch seq"]:
        """Queries whose next token can be copied: the second copy but for its end."""
        position = jnp.arange(self.tokens.shape[-1])
        second, length = self.second[..., None], self.length[..., None]
        return (position >= second) & (position < second + length - 1)

    @property
    def target(self) -> Int[Array, "*batch seq"]:
        """For every query, the key that follows the first copy of its token."""
        position = jnp.arange(self.tokens.shape[-1])
        shift = (self.second - self.first)[..., None]
        return jnp.maximum(position - shift + 1, 0)

    @property
    def queries(self) -> Int[Array, "batch copied"]:
        """Positions of `inside`, for copies of one length."""
        steps = np.arange(int(self.length[0]) - 1)
        return jnp.asarray(np.asarray(self.second)[:, None] + steps)

    @property
    def labels(self) -> Int[Array, "batch copied"]:
        """The tokens that follow `queries`."""
        queries = np.asarray(self.queries)
        return jnp.asarray(np.take_along_axis(np.asarray(self.tokens), queries + 1, 1))


@partial(
    jax.jit,
    static_argnums=1,
    static_argnames=("seq", "shortest", "longest", "distinct"),
)
def draw(
    key: PRNGKeyArray,
    prompts: int,
    *,
    seq: int,
    shortest: int,
    longest: int,
    distinct: bool = False,
) -> Repeats:
    """Draws prompts.

    Args:
        key: of the draw.
        prompts: how many.
        seq: tokens of each prompt, `BOS` included; at most 64.
        shortest: least tokens of a copy.
        longest: most tokens of a copy; two copies and `BOS` must fit.
        distinct: whether all tokens outside the second copy differ from each other,
            so that a token of the second copy was seen once before; otherwise they
            are drawn independently.

    Returns:
        The prompts.

    Examples:
        >>> found = draw(jax.random.key(0), 2, seq=16, shortest=4, longest=4)
        >>> found.tokens.shape, found.length.tolist()
        ((2, 16), [4, 4])
    """

    def one(key: PRNGKeyArray) -> Repeats:
        fresh, size, start, again = jax.random.split(key, 4)
        if distinct:
            random = 1 + jax.random.permutation(fresh, VOCAB - 1)[: seq - 1]
        else:
            random = jax.random.randint(fresh, (seq - 1,), 1, VOCAB)
        tokens = jnp.concatenate([jnp.array([BOS]), random]).astype(jnp.int32)
        length = jax.random.randint(size, (), shortest, longest + 1)
        # Text often repeats its beginning, so that place is drawn more often.
        first = jax.random.randint(start, (), 1 - EARLY, seq - 2 * length + 1)
        first = jnp.maximum(first, 1)
        second = jax.random.randint(again, (), first + length, seq - length + 1)
        position = jnp.arange(seq)
        copied = (position >= second) & (position < second + length)
        source = jnp.clip(position - second + first, 0, seq - 1)
        tokens = jnp.where(copied, tokens[source], tokens)
        return Repeats(tokens, first, second, length)

    return jax.vmap(one)(jax.random.split(key, prompts))


def short_repeat(prompts: Repeats, *, length: int = 8) -> Int[Array, " seq"]:
    """`BOS` and twice the first tokens of the first prompt's segment, for a picture."""
    first = int(prompts.first[0])
    segment = np.asarray(prompts.tokens)[0, first : first + length]
    return jnp.asarray(np.concatenate([[BOS], segment, segment]))
