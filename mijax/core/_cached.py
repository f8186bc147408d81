"""Kinds of values that a block caches, so that earlier tokens are not run again."""

import abc
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


class AbstractCached(eqx.Module):
    """One kind of value that a block caches.

    A block states its cache by name, `cache = {"k": PerToken(), "v": PerToken()}`, and
    marks each of these values with `site`.
    """

    @abc.abstractmethod
    def of_prompt(
        self, value: Shaped[Array, "..."], last: Int[Array, ""]
    ) -> Shaped[Array, "..."]:
        """Return the part of a prompt's value that generation goes on from.

        Args:
            value: as the block marks it, one prompt and layer.
            last: position of the prompt's last token; rows after it are padding.
        """

    @abc.abstractmethod
    def extend(
        self, past: Shaped[Array, "layer prompt ..."], total: int
    ) -> Shaped[Array, "layer prompt ..."]:
        """Make room for new tokens, `total` together with those of the prompt."""

    @abc.abstractmethod
    def append(
        self,
        past: Shaped[Array, "layer prompt ..."],
        new: Shaped[Array, "layer prompt ..."] | None,
        position: Int[Array, " prompt"],
    ) -> Shaped[Array, "layer prompt ..."]:
        """Return the cache after one more token of each prompt.

        Args:
            past: the cache before it.
            new: the value as the block marks it, one row per prompt; `None` if a block
                does not mark it again.
            position: position of the token in each prompt.
        """

    def at_lanes(
        self,
        past: Shaped[Array, "prompt ..."],
        prompt: Int[Array, " lane"],
        start: Int[Array, " lane"],
    ) -> Shaped[Array, "..."]:
        """Return the past that a block is given for the lanes of a sweep.

        Args:
            past: the value in the unedited run, one layer.
            prompt: prompt of each lane.
            start: first position that each lane runs.
        """
        return past


@final
class PerToken(AbstractCached):
    """A value of every token, such as its keys and values: `[rows, ...]`.

    Later tokens may read all of them. A block receives them as
    `[prompt, key_seq, ...]`, and joins them to its own rows with `rows.keys`.

    Examples:
        >>> import mijax
        >>> sorted(mijax.nn.Attention.cache)
        ['k', 'v']
    """

    def of_prompt(
        self, value: Shaped[Array, "rows ..."], last: Int[Array, ""]
    ) -> Shaped[Array, "rows ..."]:
        """Return the rows of all tokens."""
        return value

    def extend(
        self, past: Shaped[Array, "layer prompt seq ..."], total: int
    ) -> Shaped[Array, "layer prompt total ..."]:
        """Add rows of zeros."""
        ahead = [(0, 0)] * past.ndim
        ahead[2] = (0, total - past.shape[2])
        return jnp.pad(past, ahead)

    def append(
        self,
        past: Shaped[Array, "layer prompt total ..."],
        new: Shaped[Array, "layer prompt ..."] | None,
        position: Int[Array, " prompt"],
    ) -> Shaped[Array, "layer prompt total ..."]:
        """Put each prompt's new row at its position."""
        prompt = jnp.arange(past.shape[1], dtype=jnp.int32)
        return past.at[:, prompt, position].set(new)


@final
class Recurrent(AbstractCached):
    """The state after every token, of which the next token reads only the latest.

    The state of a recurrence, or the window of a causal convolution: `[rows, ...]`,
    where row `i` is the state after row `i`; `rows.recur` computes and marks it. A
    block receives the state before the first row of each lane, `[lane, ...]`.

    Examples:
        >>> import mijax
        >>> cache = {**mijax.nn.Attention.cache, "state": Recurrent()}  # a hybrid block
        >>> sorted(cache)
        ['k', 'state', 'v']
    """

    def of_prompt(
        self, value: Shaped[Array, "rows ..."], last: Int[Array, ""]
    ) -> Shaped[Array, "..."]:
        """Return the state after the last token; padding has not entered it."""
        return value[last]

    def at_lanes(
        self,
        past: Shaped[Array, "prompt seq ..."],
        prompt: Int[Array, " lane"],
        start: Int[Array, " lane"],
    ) -> Shaped[Array, "lane ..."]:
        """Return the state before each lane's first row."""
        return past[prompt, jnp.maximum(start - 1, 0)]

    def extend(
        self, past: Shaped[Array, "layer prompt ..."], total: int
    ) -> Shaped[Array, "layer prompt ..."]:
        """Return the state: it has one size for all lengths."""
        return past

    def append(
        self,
        past: Shaped[Array, "layer prompt ..."],
        new: Shaped[Array, "layer prompt ..."] | None,
        position: Int[Array, " prompt"],
    ) -> Shaped[Array, "layer prompt ..."]:
        """Return the new state."""
        assert new is not None, "a recurrent state is marked at every token"
        return new


@final
class Fixed(AbstractCached):
    """A value that does not depend on the tokens, computed once for each prompt.

    The keys and values of a cross-attention to a fixed memory, for instance.
    `rows.fixed` computes and marks it, or takes it from the past, `[prompt, ...]`.

    Examples:
        >>> import mijax
        >>> cache = {**mijax.nn.Attention.cache, "memory_k": Fixed()}
        >>> sorted(cache)
        ['k', 'memory_k', 'v']
    """

    def of_prompt(
        self, value: Shaped[Array, "..."], last: Int[Array, ""]
    ) -> Shaped[Array, "..."]:
        """Return the value."""
        return value

    def extend(
        self, past: Shaped[Array, "layer prompt ..."], total: int
    ) -> Shaped[Array, "layer prompt ..."]:
        """Return the value."""
        return past

    def append(
        self,
        past: Shaped[Array, "layer prompt ..."],
        new: Shaped[Array, "layer prompt ..."] | None,
        position: Int[Array, " prompt"],
    ) -> Shaped[Array, "layer prompt ..."]:
        """Return the value as it was."""
        return past
