"""`codelength`: how many bits it takes to send the labels, given activations."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax._progress import Progress, reports
from mijax.core.internal import checked
from mijax.probes._check import examples, inputs, labels
from mijax.probes._layout import lay_out
from mijax.probes._probe import AbstractProbe, Data
from mijax.probes._program import example_losses, solve

# Where portions end, of Voita and Titov (2020).
PORTIONS = (
    *(0.001, 0.002, 0.004, 0.008, 0.016, 0.032),
    *(0.0625, 0.125, 0.25, 0.5, 1.0),
)


class Codelength(eqx.Module):
    """Length of the online code of every probe.

    Attributes:
        bits: length of the code of all labels, `[*probe]`.
        portions: its summands, `[*probe, portion]`; the first portion is coded without
            a probe.
        strength: of the regularisation for each portion after the first,
            `[*probe, portion - 1]`.
        ends: number of examples up to the end of each portion.
        uniform: bits of the code that knows nothing, `n log2 K`.
        labels_only: bits of the online code that counts classes and ignores inputs.
    """

    bits: Float[Array, "*probe"]
    portions: Float[Array, "*probe portion"]
    strength: Float[Array, "*probe coded"]
    ends: tuple[int, ...] = eqx.field(static=True)
    uniform: Float[Array, ""]
    labels_only: Float[Array, ""]

    @property
    def compression(self) -> Float[Array, "*probe"]:
        """How many times shorter than the uniform code."""
        return self.uniform / self.bits


@reports("Codelength")
@checked
def codelength(
    probe: AbstractProbe,
    x: Any,
    y: Any,
    *,
    key: PRNGKeyArray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = None,
) -> Codelength:
    r"""Computes the prequential (online) codelength of labels given activations.

    $L = t_1 \log_2 K - \sum_i \sum_{n=t_i+1}^{t_{i+1}} \log_2 p_{\theta_i}(y_n \mid
    x_n)$ where $\theta_i$ is fitted to the first $t_i$ examples (Voita and Titov 2020,
    arXiv:2003.12298). Accuracy does not tell a probe that needs all the data from one
    that needs little; the codelength does. Portions double; the first ends where there
    are two examples per class at least. Examples are shuffled first. The strength of
    regularisation for a portion is the one whose code has been shortest so far (at
    first, the strongest), so the code can be decoded. Activations are known to both
    sides: all of them decide on mean and scale.

    One compiled program, which takes as long as fitting all examples once per portion.

    Args:
        probe: a kind that has classes.
        x: `[*probe, example, feature]`, or `Sequences`.
        y: integers `[example]`.
        key: for the order and for random starts; `jax.random.key(0)` by default.
        mesh: devices: examples go over its axis `"data"`, probes over `"model"`.
        progress: called with groups of probes done and their number; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.

    Returns:
        Lengths in bits.

    Raises:
        ShapeError: inputs and labels that do not fit, or numbers that are not finite.
        ConfigError: a probe of values, or too few examples.

    Examples:
        >>> x = jax.random.normal(jax.random.key(1), (200, 4))
        >>> y = (x[:, 0] > 0).astype(int)
        >>> found = codelength(mijax.probes.Logistic(l2=0.1), x, y)
        >>> float(found.uniform), bool(found.compression > 1.5)
        (200.0, True)
    """
    if probe.targets != "classes":
        raise ConfigError(f"{type(probe).__name__} has no classes, so no codelength.")
    key = jax.random.key(0) if key is None else key
    flat, lead = inputs(probe, x, "x")
    n = examples(flat)
    index, classes = labels(probe, y, n, "y")
    ends = _ends(n, len(classes))
    shuffle, start = jax.random.split(key)
    order = jax.random.permutation(shuffle, n)
    at = np.arange(n)
    fitted = np.stack([at < end for end in ends[:-1]])
    coded = np.stack([(at >= a) & (at < b) for a, b in itertools.pairwise(ends)])
    layout = lay_out(flat, len(classes), mesh)
    nats = _portions(
        probe,
        layout.spread(jax.tree.map(lambda leaf: leaf[:, order], flat)),
        layout.shared(index[np.asarray(order)]),
        layout.shared(fitted.astype(np.float32), axis=1),
        layout.shared(coded.astype(np.float32), axis=1),
        start,
        classes=len(classes),
        progress=progress,
    )
    sizes = np.diff(ends)
    bits = np.asarray(layout.gather(nats)) * sizes[:, None] / np.log(2)
    chosen = _prequential(bits, np.asarray(probe.strengths))
    spent = np.take_along_axis(bits, chosen[..., None], axis=-1)[..., 0]
    first = np.full((len(bits), 1), ends[0] * np.log2(len(classes)))
    portions = np.concatenate([first, spent], axis=1)
    return Codelength(
        bits=jnp.asarray(portions.sum(1), jnp.float32).reshape(lead),
        portions=jnp.asarray(portions, jnp.float32).reshape(*lead, -1),
        strength=jnp.asarray(np.asarray(probe.strengths)[chosen], jnp.float32).reshape(
            *lead, -1
        ),
        ends=ends,
        uniform=jnp.float32(n * np.log2(len(classes))),
        labels_only=jnp.float32(_labels_only(np.bincount(index))),
    )


def _ends(n: int, classes: int) -> tuple[int, ...]:
    """Where portions end."""
    ends = sorted({int(np.ceil(n * share)) for share in PORTIONS})
    ends = [end for end in ends if end >= 2 * classes]
    if len(ends) < 2:
        raise ConfigError(
            f"{n} examples of {classes} classes are too few for a code: give at least "
            f"{4 * classes}."
        )
    return tuple(ends)


def _portions(
    probe: AbstractProbe,
    x: Any,
    y: Array,
    fitted: Float[Array, "portion example"],
    coded: Float[Array, "portion example"],
    key: PRNGKeyArray,
    *,
    classes: int,
    progress: Progress,
) -> Float[Array, "chunk lane portion strength"]:
    """Return nats of every portion under the probe fitted to those before it."""
    chunks = jax.tree.leaves(x)[0].shape[0]
    found = []
    for i in range(chunks):
        lanes = (x, jnp.int32(i))
        found.append(_of_chunk(probe, lanes, y, (fitted, coded), key, classes))
        if progress:
            found[-1].block_until_ready()
            progress(i + 1, chunks)
    return jnp.stack(found)


@eqx.filter_jit
def _of_chunk(
    probe: AbstractProbe,
    lanes: tuple[Any, Int[Array, ""]],
    y: Array,
    splits: tuple[Array, Array],
    key: PRNGKeyArray,
    classes: int,
) -> Float[Array, "lane portion strength"]:
    """Return the mean nats of the lanes of one chunk."""
    fitted, coded = splits
    strengths = jnp.array(probe.strengths, jnp.float32)

    def one(x: Any) -> Array:
        real = (fitted[-1] + coded[-1]) / (fitted[-1] + coded[-1]).sum()
        data = Data(probe.frame(x, real).enter(x), y, real, classes)

        def job(i: Array) -> Array:
            weight, test = fitted[i // len(strengths)], coded[i // len(strengths)]
            found = solve(probe, data, weight, strengths[i % len(strengths)], key)
            return test @ example_losses(probe, found.params, data) / test.sum()

        jobs = jax.lax.map(job, jnp.arange(len(fitted) * len(strengths)))
        return jobs.reshape(len(fitted), -1)

    with jax.default_matmul_precision("highest"):
        x, chunk = lanes
        return jax.vmap(one)(jax.tree.map(lambda leaf: leaf[chunk], x))


def _prequential(bits: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Picks the strength of each portion from the portions before it."""
    before = np.cumsum(bits, axis=1) - bits
    before = np.where(np.isfinite(before), before, np.inf)
    chosen = before.argmin(-1)
    chosen[:, 0] = strengths.argmax()
    return chosen


def _labels_only(counts: np.ndarray) -> float:
    """Bits of Laplace's rule of succession, `p(k) = (c_k + 1) / (t + K)`."""
    n, k = int(counts.sum()), len(counts)
    each = sum(math.lgamma(count + 1) for count in counts.tolist())
    return (math.lgamma(n + k) - math.lgamma(k) - each) / math.log(2)
