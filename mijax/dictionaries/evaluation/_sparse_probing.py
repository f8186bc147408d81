"""Sparse probing: how much of a concept is in a few latents."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, ShapeError
from mijax.core import Interval, interval
from mijax.dictionaries.evaluation._logistic import balanced, logistic


class SparseProbes(eqx.Module):
    """Probes of each class on a few latents, on examples held out.

    Attributes:
        k: numbers of latents.
        accuracy: mean over classes of balanced accuracy, one interval per `k`, over the
            held-out examples: chance is 0.5.
        classes: balanced accuracy of each class against the others, `[k, class]`.
        chosen: latents of each class, the most different first, `[class, most]`.
    """

    k: tuple[int, ...] = eqx.field(static=True)
    accuracy: tuple[Interval, ...]
    classes: Float[Array, "k class"]
    chosen: Int[Array, "class most"]

    def __str__(self) -> str:
        """Returns a line per number of latents."""
        lines = ["  k  accuracy"]
        for k, one in zip(self.k, self.accuracy, strict=True):
            low, high = float(one.low), float(one.high)
            lines.append(f"{k:3}  {float(one.mean):.3f} [{low:.3f}, {high:.3f}]")
        return "\n".join(lines)


def sparse_probe(
    latents: Float[Array, "example latent"],
    labels: Int[Array, " example"],
    held_out: tuple[Float[Array, "test latent"], Int[Array, " test"]],
    *,
    k: Sequence[int] = (1, 2, 5, 20),
    l2: float = 1.0,
) -> SparseProbes:
    r"""Fits probes on the few latents in which a class differs most from the others.

    For each class, latents are ranked by the difference of its mean from that of the
    other classes (Gurnee et al. 2023, arXiv:2305.01610), and logistic regressions on
    the first k of them tell it from the others, each side with the same weight
    (sparse probing in SAEBench, Karvonen et al. 2025, arXiv:2503.09532). Latents are
    standardised; the loss is $\sum_n a_n \ell_n + \tfrac{l_2}{2} \lVert w \rVert^2$
    with weights $a$ of mean 1. Activations in the place of latents give the baseline:
    probes on as many neurons.

    Args:
        latents: one row per example, for instance `pooled(...).latents`.
        labels: classes, from 0.
        held_out: the same of examples that are not fitted on.
        k: numbers of latents.
        l2: penalty of weights, the inverse of scikit-learn's `C`.

    Returns:
        The probes' accuracy. With two classes there is one probe, that of class 1.

    Raises:
        ShapeError: not as many labels as examples, or other latents held out.
        ConfigError: fewer than two classes, one that is missing, or a `k` that there
            are not latents for.

    Examples:
        >>> x = jax.random.uniform(jax.random.key(0), (80, 16))
        >>> labels = (x[:, 3] > 0.5).astype(int)
        >>> x = x.at[:, 3].mul(4)
        >>> found = sparse_probe(x[:60], labels[:60], (x[60:], labels[60:]), k=(1, 2))
        >>> int(found.chosen[0, 0]), bool(found.accuracy[0].mean > 0.9)
        (3, True)
    """
    test, truth = held_out
    classes = checked((latents, labels), (test, truth), k)
    sides = np.arange(1, 2) if classes == 2 else np.arange(classes)
    positive = jnp.asarray(labels)[None] == sides[:, None]
    chosen, right = _probes(
        *(jnp.float32(latents), positive, jnp.float32(test)),
        (jnp.asarray(truth)[None] == sides[:, None]),
        *(jnp.asarray(k), max(k), jnp.float32(l2)),
    )
    # The mean of both sides' accuracy, as a mean over examples.
    weight = jax.vmap(balanced)(jnp.asarray(truth)[None] == sides[:, None])
    each = np.asarray(right) * np.asarray(weight)
    accuracy = tuple(interval(jnp.float32(row.mean(0))) for row in each)
    return SparseProbes(
        tuple(int(n) for n in k), accuracy, jnp.float32(each.mean(2)), chosen
    )


def checked(fitted: tuple, held_out: tuple, k: Sequence[int]) -> int:
    """Returns the number of classes, or refuses what cannot be probed."""
    sizes = {x.shape[1:] for x, _ in (fitted, held_out)}
    if len(sizes) > 1 or any(x.shape[0] != len(y) for x, y in (fitted, held_out)):
        raise ShapeError(
            "Give a label per example, and the same latents to fit and to hold out: "
            f"got {[(x.shape, np.shape(y)) for x, y in (fitted, held_out)]}."
        )
    seen = [np.unique(np.asarray(y)) for _, y in (fitted, held_out)]
    classes = int(seen[0].max()) + 1
    if classes < 2 or any(len(s) != classes or s[0] != 0 for s in seen):
        raise ConfigError(
            "Classes are 0, 1, ... and each is among the examples that are fitted and "
            f"held out, got {seen[0].tolist()} and {seen[1].tolist()}."
        )
    latents = fitted[0].shape[1]
    if not k or min(k) < 1 or max(k) > latents:
        raise ConfigError(f"Probes read 1 to {latents} latents, got k={tuple(k)}.")
    return classes


@eqx.filter_jit
def _probes(
    x: Float[Array, "example latent"],
    positive: Array,
    test: Float[Array, "test latent"],
    truth: Array,
    k: Int[Array, " k"],
    most: int,
    l2: Array,
) -> tuple[Int[Array, "class most"], Array]:
    """Chooses and fits, for every class and number of latents at once."""

    def of_class(positive: Array, truth: Array) -> tuple[Array, Array]:
        weight = balanced(positive)
        signed = jnp.where(positive, weight, -weight) * 2 / len(x)
        _, index = jax.lax.top_k(jnp.abs(signed @ x), most)
        here, there = x[:, index], test[:, index]

        def of_size(k: Array) -> Array:
            # A latent that never varies has a weight of 0.
            w, b = logistic(here * (jnp.arange(most) < k), positive, weight, l2)
            return (there @ w + b > 0) == truth

        return index, jax.vmap(of_size)(k)

    chosen, right = jax.vmap(of_class, out_axes=(0, 1))(positive, truth)
    return chosen, right
