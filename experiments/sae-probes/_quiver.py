"""Probes of one data set: on activations, on latents, on all tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mijax.probes import (
    LDA,
    AbstractProbe,
    AttentionPooled,
    Hidden,
    Logistic,
    Means,
    Sequences,
    auroc,
    fit,
)

from ._reading import Acts, Latents


class Area(NamedTuple):
    """How well a probe tells the classes apart, as the area under its ROC curve.

    Attributes:
        chosen_by: on texts that were set aside to choose a probe by.
        test: on others.
    """

    chosen_by: float
    test: float


class Split(NamedTuple):
    """Which texts are for what.

    Attributes:
        train: to fit.
        choose: to choose a probe by.
        test: to measure.
    """

    train: slice
    choose: slice
    test: slice


def split(train: int, choose: int) -> Split:
    """Cuts the texts of a data set in three."""
    cut = train + choose
    return Split(slice(0, train), slice(train, cut), slice(cut, None))


def baselines(
    acts: Acts, labels: Int[np.ndarray, " text"], parts: Split, *, hidden: int
) -> dict[str, Area]:
    """Fits probes on activations of the last token.

    Args:
        acts: activations.
        labels: of the texts.
        parts: which texts are for what.
        hidden: units of the probe that is not linear.

    Returns:
        Areas by name.
    """
    x = acts.last.astype(np.float32)
    kinds: dict[str, AbstractProbe] = {
        "logistic": Logistic((1e-2, 1e-1, 1.0, 10.0), tolerance=1e-4),
        "difference of means": Means(),
        "LDA": LDA(),
        "one hidden layer": Hidden(hidden, l2=(1e-2, 1e-1), steps=100, tolerance=1e-3),
    }
    return {name: area(kind, x, labels, parts) for name, kind in kinds.items()}


def attended(
    acts: Acts, labels: Int[np.ndarray, " text"], parts: Split
) -> dict[str, Area]:
    """Fits a probe that attends to tokens.

    Args:
        acts: activations.
        labels: of the texts.
        parts: which texts are for what.

    Returns:
        Its area.
    """
    probe = AttentionPooled((1e-1, 1.0), steps=60, tolerance=1e-3)
    x = Sequences(jnp.asarray(acts.x, jnp.float32), jnp.asarray(acts.mask))
    return {"attention": area(probe, x, labels, parts)}


def sparse(
    latents: Float[np.ndarray, "text latent"],
    labels: Int[np.ndarray, " text"],
    parts: Split,
    sizes: tuple[int, ...],
) -> dict[str, Area]:
    """Fits probes on the latents in which the classes differ most.

    Args:
        latents: of the texts.
        labels: of the texts.
        parts: which texts are for what; latents are chosen where probes are fitted.
        sizes: numbers of latents.

    Returns:
        Areas by number of latents.
    """
    here, y = latents[parts.train], labels[parts.train]
    apart = here[y == 1].mean(0) - here[y == 0].mean(0)
    order = np.argsort(-np.abs(apart), kind="stable")
    probe = Logistic((1e-2, 1e-1, 1.0, 10.0), tolerance=1e-4)
    return {
        f"{k} latents": area(probe, latents[:, order[:k]], labels, parts) for k in sizes
    }


def area(
    probe: AbstractProbe, x: Any, labels: Int[np.ndarray, " text"], parts: Split
) -> Area:
    """Fits one probe and measures its areas.

    Args:
        probe: its kind; its strength is chosen among the texts that are fitted.
        x: inputs of all texts, an array or `Sequences`.
        labels: of all texts.
        parts: which texts are for what.

    Returns:
        The areas.
    """
    train, choose, test = (
        jax.tree.map(lambda leaf, part=part: leaf[part], x) for part in parts
    )
    y = [labels[part] for part in parts]
    found = fit(probe, train, y[0], choose, y[1])
    areas = []
    for inputs, truth in ((choose, y[1]), (test, y[2])):
        logits = np.asarray(found.logits(inputs))
        areas.append(float(auroc(logits[:, 1] - logits[:, 0], truth)))
    return Area(*areas)


def best(areas: dict[str, Area]) -> tuple[str, Area]:
    """Returns the probe that one would choose, and its areas; one with NaN if any."""
    name = list(areas)[int(np.argmax([one.chosen_by for one in areas.values()]))]
    return name, areas[name]


class Found(NamedTuple):
    """All probes of a data set.

    Attributes:
        raw: on activations of the last token.
        attended: on activations of all tokens.
        last: on latents of the last token.
        largest: on the largest latents of all tokens.
    """

    raw: dict[str, Area]
    attended: dict[str, Area]
    last: dict[str, Area]
    largest: dict[str, Area]


def probed(
    acts: Acts,
    latents: Latents,
    labels: Int[np.ndarray, " text"],
    parts: Split,
    config: Any,
) -> Found:
    """Fits every probe.

    Args:
        acts: activations.
        latents: of the same texts.
        labels: of the texts.
        parts: which texts are for what.
        config: of the experiment.

    Returns:
        Their areas.
    """
    return Found(
        baselines(acts, labels, parts, hidden=config.hidden),
        attended(acts, labels, parts),
        sparse(latents.last, labels, parts, config.k),
        sparse(latents.largest, labels, parts, config.k),
    )
