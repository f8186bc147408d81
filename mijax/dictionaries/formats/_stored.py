"""A dictionary as a file has it: what belongs to it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ConfigError, nearest
from mijax.core import Site
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries.formats._plain import Plain

NORMALISATIONS = ("none", "layer_norm", "constant_norm")
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Stored:
    """A dictionary and what its file says of it.

    Attributes:
        dictionary: the dictionary.
        format: of the file.
        site: what it reads, where the file says so and there is such a site.
        target: what it writes, likewise; that of an autoencoder is its site.
        normalisation: how each activation is normalised before it is given to the
            dictionary: `"none"`, or see `normalise`.
        stated: what the file says of its quality: `"l0"`, `"fvu"`.
        measured: the same on the activations that `load` was given to check.
        metadata: everything else that the file says.
        processing: weight processing of the model in training, as `model.frame`; `None`
            where the file does not say.
        source: where it came from.
        digest: `"sha256:..."` of its files.
    """

    dictionary: Dictionary
    format: str
    site: Site | None
    target: Site | None
    normalisation: str
    stated: Mapping[str, float]
    measured: Mapping[str, float]
    metadata: Mapping[str, Any]
    source: str
    digest: str
    processing: tuple[str, ...] | None = None


class Found(NamedTuple):
    """What a reader of one format finds.

    Attributes:
        content: arrays, or a dictionary.
        files: that hold weights.
        site: what is read.
        target: what is written.
        normalisation: of each activation.
        stated: L0 and FVU.
        metadata: everything else.
        processing: of the model's weights, `None` where it is not known.
    """

    content: Plain | Dictionary
    files: tuple[Path, ...]
    site: Site | None = None
    target: Site | None = None
    normalisation: str = "none"
    stated: Mapping[str, float] = {}
    metadata: Mapping[str, Any] = {}
    processing: tuple[str, ...] | None = None


def normalise(
    x: Float[Array, "*batch embed"], how: str
) -> tuple[
    Float[Array, "*batch embed"],
    Float[Array, "*batch 1"],
    Float[Array, "*batch 1"],
]:
    r"""Normalises activations one by one, as some dictionaries were trained on.

    `"layer_norm"` is $(x - \mu) / (\sigma + 10^{-5})$ with the mean and the standard
    deviation (of $n - 1$) over the activation; `"constant_norm"` gives it the length
    $\sqrt n$.

    Args:
        x: activations, `[*batch, embed]`.
        how: `"none"`, `"layer_norm"` or `"constant_norm"`.

    Returns:
        The normalised activations, and mean and size, `[*batch, 1]`: what a dictionary
        writes is to be multiplied by the size and added to the mean.

    Raises:
        ConfigError: another way.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0, 3.0]])
        >>> normalised, mean, size = normalise(x, "layer_norm")
        >>> [round(float(a), 3) for a in normalised[0]], float(mean[0, 0])
        ([-1.0, 0.0, 1.0], 2.0)
    """
    x = jnp.asarray(x)
    if how == "none":
        return x, jnp.zeros_like(x[..., :1]), jnp.ones_like(x[..., :1])
    if how == "layer_norm":
        mean = x.mean(-1, keepdims=True)
        size = jnp.std(x, axis=-1, keepdims=True, ddof=1)
        return (x - mean) / (size + EPSILON), mean, size
    if how == "constant_norm":
        size = jnp.linalg.norm(x, axis=-1, keepdims=True) / jnp.sqrt(x.shape[-1])
        return x / size, jnp.zeros_like(size), size
    raise ConfigError(
        f"There is no normalisation {how!r}.{nearest(how, NORMALISATIONS)}"
    )
