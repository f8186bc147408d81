"""Absorption: a general latent that is silent where a special one speaks for it."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, ShapeError
from mijax.core import Interval, interval
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._latents import rows
from mijax.dictionaries._wiring import SAE

# Of the one latent that absorbs all, as published.
LEAST_COSINE = 0.025


class Absorption(eqx.Module):
    """How much of a concept other latents than its own speak for.

    Attributes:
        fraction: mean over examples of the share that is absorbed.
        full: share of examples in which the concept's latents are silent and a single
            other one speaks for them.
        fractions: the first, of each example.
    """

    fraction: Interval
    full: Interval
    fractions: Float[Array, " example"]


def absorption(
    dictionary: Dictionary,
    x: Float[Array, "example embed"],
    probe: Float[Array, " embed"],
    main: Sequence[int] | Int[Array, " main"],
    *,
    cosine: float = 0.1,
    share: float = 0.4,
    most: int = 3,
) -> Absorption:
    r"""Measures the absorption of a concept (Chanin et al. 2024, arXiv:2409.14507).

    The latents of a concept should be active wherever it is there. With $p$ the unit
    direction of a probe, latent $i$ contributes $f_i \, d_i \cdot p$ to $x \cdot p$. Of
    an example, $a$ is the sum of the `most` largest contributions of other latents
    whose cosine with the probe is at least `cosine`, and $m$ that of the concept's own.
    The fraction is 0 if $m \ge x \cdot p$ or $a$ is less than `share` of $x \cdot p$,
    else $a' / (a' + m)$ with $a' = \min(a, x \cdot p - m)$, and 1 where $m \le 0$, as
    in SAEBench (Karvonen et al. 2025, arXiv:2503.09532).

    Args:
        dictionary: an SAE.
        x: activations in which the concept is there.
        probe: direction of the concept, for instance of a logistic regression.
        main: latents of the concept, for instance `sparse_probe(...).chosen[0, :1]`.
        cosine: least cosine of a latent that absorbs.
        share: least share of $x \cdot p$ that is absorbed.
        most: latents that absorb together.

    Returns:
        Means over the examples.

    Raises:
        ShapeError: activations or a probe of another size, or no SAE.
        ConfigError: latents that there are not.

    Examples:
        >>> from mijax import dictionaries as d
        >>> sae = d.untrained(d.ReLU(), d.SAE(8), latents=16, key=jax.random.key(0))
        >>> x, probe = jnp.ones((5, 8)), jnp.ones(8)
        >>> absorption(sae, x, probe, [3]).fractions.shape
        (5,)
    """
    wiring, index = dictionary.wiring, jnp.asarray(main, jnp.int32)
    if not isinstance(wiring, SAE) or (x.shape[1:], probe.shape) != (wiring.reads,) * 2:
        raise ShapeError(
            f"Absorption is of an SAE, activations and a probe of one size, got "
            f"{wiring!r}, {x.shape} and {probe.shape}."
        )
    latents = dictionary.latents
    if not index.size or (index < 0).any() or (index >= latents).any():
        raise ConfigError(f"Latents are 0 to {latents - 1}, got main={index.tolist()}.")
    if not 1 <= most <= latents:
        raise ConfigError(f"At most {latents} latents can absorb, got most={most}.")
    parts, full = _absorbed(dictionary, x, probe, index, (cosine, share), most)
    return Absorption(interval(parts), interval(full), parts)


@eqx.filter_jit
def _absorbed(
    dictionary: Dictionary,
    x: Array,
    probe: Array,
    main: Array,
    least: tuple[float, float],
    most: int,
) -> tuple[Float[Array, " example"], Float[Array, " example"]]:
    x = x.astype(jnp.float32)
    unit = probe / jnp.linalg.norm(probe)
    along = rows(dictionary) @ unit
    norms = jnp.linalg.norm(rows(dictionary), axis=1)
    cosines = along / jnp.where(norms > 0, norms, 1)
    own = jnp.zeros(len(along), bool).at[main].set(True)
    latents = dictionary.encode(x)
    given = latents * along
    whole = x @ unit
    ours = jnp.where(own, given, 0).sum(1)
    others = jnp.where(~own & (cosines >= least[0]), given, 0)
    theirs = jnp.maximum(jax.lax.top_k(others, most)[0], 0).sum(1)
    absorbed = jnp.minimum(theirs, whole - ours)
    part = absorbed / jnp.where(ours > 0, absorbed + ours, 1)
    part = jnp.where(ours > 0, jnp.clip(part, 0, 1), 1.0)
    none = (ours >= whole) | (theirs < least[1] * whole)
    best = given.argmax(1)
    largest = jnp.take_along_axis(given, best[:, None], axis=1)[:, 0]
    full = (
        (jnp.where(own, latents, 0) == 0).all(1)
        & (cosines[best] >= LEAST_COSINE)
        & (whole > 0)
        & (largest >= least[1] * whole)
    )
    return jnp.where(none, 0.0, part), full.astype(jnp.float32)
