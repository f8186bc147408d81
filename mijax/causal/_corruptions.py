"""Corrupted runs for causal tracing: noise at a span, or other tokens in its place."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError, PositionError
from mijax.core import AbstractModel, Patch, capture
from mijax.core.internal import checked
from mijax.data import Prompts, aligned


class CorruptRuns(NamedTuple):
    """Corrupted runs.

    Attributes:
        prompts: prompts to run, `copies` of each in a row.
        edits: edits for every run, or `None`.
    """

    prompts: Prompts
    edits: Any


class AbstractCorruption(eqx.Module):
    """A method for corrupting prompts."""

    copies: eqx.AbstractVar[int]

    @abc.abstractmethod
    def runs(self, model: AbstractModel, prompts: Prompts) -> CorruptRuns:
        """Return the corrupted runs of prompts."""


class SubjectNoise(AbstractCorruption):
    r"""Gaussian noise on the embeddings of a span (Meng et al. 2022, arXiv:2202.05262).

    The noise in a copy depends only on the position in the span, so all runs of that
    copy share it, regardless of the restored part and of batching. Scores are averaged
    over copies.

    Attributes:
        key: seed of the noise.
        deviation: its standard deviation; the paper uses 3 times that of subjects'
            embeddings (`3 * subject_deviation(...)`).
        span: name of the span to corrupt.
        copies: number of noisy copies of each prompt.

    Examples:
        >>> import jax
        >>> SubjectNoise(jax.random.key(0), 0.1).copies
        10
    """

    key: PRNGKeyArray
    deviation: float
    span: str = eqx.field(static=True, default="subject")
    copies: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        """Raise if the noise changes nothing."""
        if not float(self.deviation) > 0 or self.copies < 1:
            raise ConfigError(
                "SubjectNoise needs a deviation above 0 and 1 copy or more, got "
                f"{self.deviation} and {self.copies}."
            )

    def runs(self, model: AbstractModel, prompts: Prompts) -> CorruptRuns:
        """Return noisy copies.

        Raises:
            PositionError: prompts without the span.
        """
        each = prompts[np.repeat(np.arange(len(prompts)), self.copies)]
        embed = capture(model, prompts, "embed")
        seq, width = embed.shape[1:]
        noise = self.deviation * _noise(self.key, (self.copies, seq), width)
        place = jnp.arange(seq) - prompts.find(self.span)[0][:, None]
        values = embed[:, None] + noise[:, jnp.maximum(place, 0)].swapaxes(0, 1)
        values = values.reshape(-1, seq, width).astype(embed.dtype)
        edit = Patch(values).at("embed", position=each.span(self.span))
        return CorruptRuns(each, edit)


def _noise(
    key: PRNGKeyArray, places: tuple[int, int], width: int
) -> Float[Array, "copy place embed"]:
    """Draw each copy's noise at each position from its own key, for any sizes."""

    def one(copy: Array, place: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, copy), place)
        return jax.random.normal(own, (width,))

    copies, seq = places
    over = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return over(jnp.arange(copies), jnp.arange(seq))


class Replacement(AbstractCorruption):
    """Other tokens: symmetric token replacement.

    Unlike noise, it keeps runs in the distribution of text (Zhang and Nanda 2023,
    arXiv:2309.16042).

    Attributes:
        counterparts: one prompt of the same length for each prompt, such as the same
            sentence about another subject.

    Examples:
        >>> import mijax
        >>> other = mijax.data.Prompts.from_ids([[1, 2, 4]])
        >>> Replacement(other).copies
        1
    """

    counterparts: Prompts
    copies: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        """Raise if copies are requested, since they would be identical."""
        if self.copies != 1:
            raise ConfigError(f"Replacement takes 1 copy, got {self.copies}.")

    def runs(self, model: AbstractModel, prompts: Prompts) -> CorruptRuns:
        """Return the counterparts.

        Raises:
            PositionError: counterparts of different lengths, or equal to the prompts.
        """
        aligned(prompts, self.counterparts)
        same = np.asarray(prompts.tokens) == np.asarray(self.counterparts.tokens)
        equal = np.flatnonzero((same | ~np.asarray(prompts.mask)).all(1))
        if equal.size:
            raise PositionError(
                f"Prompt {equal[0]} and its counterpart are equal: give other tokens."
            )
        return CorruptRuns(self.counterparts, None)


@checked
def subject_deviation(model: AbstractModel, subjects: Prompts) -> float:
    """Return the standard deviation of all entries in subjects' token embeddings.

    Args:
        model: the model.
        subjects: the subjects in a dataset, each tokenized separately without a leading
            space.

    Returns:
        The standard deviation; causal tracing uses noise with three times this value.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> subjects = mijax.data.Prompts.from_ids([[5, 6], [7]])
        >>> round(subject_deviation(model, subjects), 1)
        0.7
    """
    ids = np.asarray(subjects.tokens)[np.asarray(subjects.mask)]
    tokens = jnp.asarray(ids, jnp.int32)
    terms = eqx.filter_jit(model.embeddings)(tokens, jnp.zeros_like(tokens))
    table = terms["token" if "token" in terms else "input"]
    return float(jnp.std(jax.lax.convert_element_type(table, jnp.float32)))
