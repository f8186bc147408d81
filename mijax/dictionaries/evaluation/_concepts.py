"""True if ablated latents change what probes say, and only that."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError, ShapeError
from mijax.core import Interval, interval
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._latents import Pooled, rows
from mijax.dictionaries._wiring import SAE
from mijax.dictionaries.evaluation._logistic import balanced, logistic
from mijax.dictionaries.evaluation._recovered import drawn, ratio
from mijax.dictionaries.evaluation._sparse_probing import checked

COUNTS = (2, 5, 10, 20, 50)


class Perturbation(eqx.Module):
    """What probes of each class lose by the ablation of some class's latents.

    Attributes:
        n: numbers of latents ablated.
        score: fall of the accuracy of the probe that is meant, less that of the others,
            averaged over classes: one interval per `n`, over held-out texts.
        meant: the first part of it, `[n]`.
        others: the second, `[n]`.
        accuracy: of each probe before, `[class]`; balanced, chance is 0.5.
    """

    n: tuple[int, ...] = eqx.field(static=True)
    score: tuple[Interval, ...]
    meant: Float[Array, " n"]
    others: Float[Array, " n"]
    accuracy: Float[Array, " class"]


class Unbiased(eqx.Module):
    """How far a biased probe is set right by the ablation of latents.

    Attributes:
        n: numbers of latents ablated.
        score: share of the way from the biased probe's accuracy to that of a probe
            without bias: one interval per `n`, over held-out texts.
        accuracy: of the biased probe after ablation, `[n]`; its four groups of texts
            count the same.
        biased: before.
        clean: of the probe that was fitted without bias.
    """

    n: tuple[int, ...] = eqx.field(static=True)
    score: tuple[Interval, ...]
    accuracy: Float[Array, " n"]
    biased: float
    clean: float


def perturb(
    dictionary: Dictionary,
    fitted: tuple[Pooled, Int[Array, " example"]],
    held_out: tuple[Pooled, Int[Array, " test"]],
    *,
    n: Sequence[int] = COUNTS,
    l2: float = 1.0,
) -> Perturbation:
    r"""Ablates the latents of one class and asks the probes of all: TPP.

    Targeted probe perturbation (Karvonen et al. 2024, arXiv:2411.18895; SAEBench,
    arXiv:2503.09532). A logistic probe of the pooled activation tells each class $c$
    from the others. Latents are ranked by $\max(0, \bar f_c - \bar f_{\neg c}) \,
    d_i \cdot w_c$, the first n of them are set to 0, with what the dictionary misses
    kept, and the score is $\operatorname{mean}_c (\Delta_{cc} -
    \operatorname{mean}_{c' \ne c} \Delta_{cc'})$, where $\Delta_{cc'}$ is what the
    probe of $c'$ loses in accuracy.

    Args:
        dictionary: an SAE.
        fitted: texts and their classes, from 0 (three or more).
        held_out: the same of texts that are not fitted on.
        n: numbers of latents.
        l2: penalty of the probes' weights, for activations of variance 1.

    Returns:
        The scores.

    Raises:
        ShapeError: not as many labels as texts, or a dictionary that is no SAE.
        ConfigError: a class that is missing, or more latents than there are.

    Examples:
        >>> from mijax import dictionaries as d
        >>> sae = d.untrained(d.ReLU(), d.SAE(8), latents=16, key=jax.random.key(0))
        >>> labels = jnp.arange(60) % 3
        >>> x = jax.nn.one_hot(labels, 8) + 0.1
        >>> texts = Pooled(x, sae.encode(x))
        >>> found = perturb(sae, (texts, labels), (texts, labels), n=(1, 2))
        >>> found.accuracy.tolist(), len(found.score)
        ([1.0, 1.0, 1.0], 2)
    """
    of_sae(dictionary, fitted[0], held_out[0])
    pairs = [(texts.latents, labels) for texts, labels in (fitted, held_out)]
    classes = checked(pairs[0], pairs[1], n)
    sides = [jnp.arange(classes)[:, None] == y for _, y in (fitted, held_out)]
    probes = fit(fitted[0].x, sides[0], jax.vmap(balanced)(sides[0]), l2)
    effects = jax.vmap(_differences, (None, 0))(fitted[0].latents, sides[0])
    decoder = rows(dictionary)
    effects = jnp.maximum(effects, 0) * (probes[0] @ decoder.T)
    before, after = _right(
        *(held_out[0], decoder, probes, effects, jnp.asarray(n)), sides[1]
    )
    weight = np.asarray(jax.vmap(balanced)(sides[1]))
    # [n, ablated, probe, text]: what each text adds to the fall of accuracy.
    fall = (np.asarray(before, float) - np.asarray(after, float)) * weight
    own = np.eye(classes, dtype=bool)
    meant = fall[:, own].mean(1)
    others = fall[:, ~own].mean(1)
    return Perturbation(
        tuple(int(i) for i in n),
        tuple(interval(jnp.float32(row)) for row in meant - others),
        jnp.float32(meant.mean(1)),
        jnp.float32(others.mean(1)),
        jnp.float32((np.asarray(before) * weight).mean(1)),
    )


def unbias(
    dictionary: Dictionary,
    fitted: tuple[Pooled, Bool[Array, " example"], Bool[Array, " example"]],
    held_out: tuple[Pooled, Bool[Array, " test"], Bool[Array, " test"]],
    *,
    n: Sequence[int] = COUNTS,
    l2: float = 1.0,
) -> Unbiased:
    r"""Ablates latents of a spurious attribute and asks a biased probe: SCR.

    Spurious correlation removal (Marks et al. 2024, arXiv:2403.19647; Karvonen et al.
    2024, arXiv:2411.18895). A probe of the wanted attribute is fitted on the texts
    where the spurious one agrees with it, and cannot tell them apart. Latents are
    ranked by $|(\bar f_s - \bar f_{\neg s}) \, d_i \cdot w_s|$ with $w_s$ the probe of
    the spurious attribute, the first n are set to 0, and the score is $(A - A_b) /
    (A_c - A_b)$ of the accuracies on the wanted attribute after ablation, before, and
    of a probe fitted on all texts.

    Args:
        dictionary: an SAE.
        fitted: texts, the wanted and the spurious attribute of each, all four groups
            among them.
        held_out: the same of texts that are not fitted on.
        n: numbers of latents.
        l2: penalty of the probes' weights, for activations of variance 1.

    Returns:
        The scores.

    Raises:
        ShapeError: not as many attributes as texts, or a dictionary that is no SAE.
        ConfigError: a group of texts that is missing, or more latents than there are.

    Examples:
        >>> from mijax import dictionaries as d
        >>> sae = d.untrained(d.ReLU(), d.SAE(8), latents=16, key=jax.random.key(0))
        >>> wanted, spurious = jnp.arange(64) % 2 == 0, jnp.arange(64) % 4 < 2
        >>> x = jnp.zeros((64, 8)).at[:, 0].set(wanted).at[:, 1].set(3.0 * spurious)
        >>> texts = Pooled(x, sae.encode(x))
        >>> given = (texts, wanted, spurious)
        >>> found = unbias(sae, given, given, n=(2,))
        >>> found.clean, found.biased < 1
        (1.0, True)
    """
    of_sae(dictionary, fitted[0], held_out[0])
    groups = [
        (texts.latents, 2 * jnp.asarray(a, int) + jnp.asarray(b, int))
        for texts, a, b in (fitted, held_out)
    ]
    if checked(groups[0], groups[1], n) != 4:
        raise ConfigError("All four groups of wanted and spurious are needed.")
    texts, wanted, spurious = fitted
    agree = wanted == spurious
    # The biased probe sees the texts in which both agree; the others weigh nothing.
    weights = [balanced(wanted[agree]), balanced(wanted), balanced(spurious)]
    weights[0] = jnp.zeros(len(wanted)).at[jnp.flatnonzero(agree)].set(weights[0])
    targets = jnp.stack([wanted, wanted, spurious])
    w, b = fit(texts.x, targets, jnp.stack(weights), l2)
    decoder = rows(dictionary)
    effects = jnp.abs(_differences(texts.latents, spurious) * (decoder @ w[2]))[None]
    truth = jnp.stack([held_out[1]] * 2)
    before, after = _right(
        *(held_out[0], decoder, (w[:2], b[:2]), effects, jnp.asarray(n)), truth
    )
    group = np.asarray(groups[1][1])
    weight = 0.25 / (np.bincount(group, minlength=4) / len(group))[group]
    biased, clean = np.asarray(before, float) * weight
    ablated = np.asarray(after, float)[:, 0, 0] * weight
    draws = drawn(jax.random.key(0), len(group))
    return Unbiased(
        tuple(int(i) for i in n),
        tuple(ratio(row - biased, clean - biased, draws) for row in ablated),
        jnp.float32(ablated.mean(1)),
        float(biased.mean()),
        float(clean.mean()),
    )


def of_sae(dictionary: Dictionary, *texts: Pooled) -> None:
    """Refuses dictionaries that do not write what is probed."""
    wiring = dictionary.wiring
    if not isinstance(wiring, SAE):
        raise ShapeError(
            "Probes read what the latents write, so this takes an SAE, got a "
            f"{type(wiring).__name__}."
        )
    shapes = (wiring.embed,), (dictionary.latents,)
    for one in texts:
        if (one.x.shape[1:], one.latents.shape[1:]) != shapes:
            raise ShapeError(
                f"Texts are pooled activations {shapes[0]} and latents {shapes[1]}, "
                f"got {one.x.shape[1:]} and {one.latents.shape[1:]}."
            )


@eqx.filter_jit
def fit(
    x: Float[Array, "example embed"],
    positive: Bool[Array, "probe example"],
    weight: Float[Array, "probe example"],
    l2: Any,
) -> tuple[Float[Array, "probe embed"], Float[Array, " probe"]]:
    """Fits probes, one after the other: their Hessians are large."""
    x, l2 = x.astype(jnp.float32), jnp.float32(l2)

    def one(given: tuple[Array, Array]) -> tuple[Array, Array]:
        return logistic(x, *given, l2)

    return jax.lax.map(one, (positive, weight))


def _differences(
    latents: Float[Array, "example latent"], positive: Bool[Array, " example"]
) -> Float[Array, " latent"]:
    """Returns by how much the means of two classes differ."""
    weight = balanced(positive)
    return 2 / len(latents) * (jnp.where(positive, weight, -weight) @ latents)


@eqx.filter_jit
def _right(
    texts: Pooled,
    decoder: Float[Array, "latent embed"],
    probes: tuple[Array, Array],
    effects: Float[Array, "ablated latent"],
    n: Int[Array, " n"],
    truth: Bool[Array, "probe test"],
) -> tuple[Bool[Array, "probe test"], Bool[Array, "n ablated probe test"]]:
    """Tells which probes are right of which texts, before and after ablation."""
    w, b = probes
    before = w @ texts.x.T + b[:, None]
    # Pooling is linear, so latents are taken from the mean as from every token.
    written = decoder @ w.T
    rank = jnp.argsort(jnp.argsort(-effects, axis=1), axis=1)

    def without(given: tuple[Array, Array]) -> Array:
        count, of = given
        gone = (rank[of] < count) & (effects[of] != 0)
        less = (texts.latents * gone) @ written
        return (before - less.T > 0) == truth

    which = jnp.arange(len(effects))
    pairs = jnp.repeat(n, len(which)), jnp.tile(which, len(n))
    after = jax.lax.map(without, pairs)
    return (before > 0) == truth, after.reshape(len(n), len(which), *truth.shape)
