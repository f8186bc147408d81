"""`detect`: AxBench's protocol for concept detection."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mijax._errors import ConfigError, ShapeError
from mijax.core import Site, capture
from mijax.core.internal import ModelLike, checked, cut, shown
from mijax.data import Prompts
from mijax.probes import auroc
from mijax.steering._concepts import Concept
from mijax.steering._detectors import AbstractDetector
from mijax.steering._read import as_prompts, check_site

Table = Float[np.ndarray, "concept detector"]


class Detection(eqx.Module):
    """Results of the detection protocol, by concept and detector.

    Attributes:
        concepts: names of the concepts.
        detectors: names of the detectors.
        auroc: area under the ROC curve, positive against negative texts.
        strict: the same with hard negatives counted as negative texts; NaN where a
            concept has none.
        threshold: lowest score that counts as positive, chosen to maximize the Youden
            index; scores are scaled to [0, 1] over the concept's test texts.
        hard_accuracy: fraction of hard negatives below that threshold; NaN if a concept
            has none.
    """

    concepts: tuple[str, ...] = eqx.field(static=True)
    detectors: tuple[str, ...] = eqx.field(static=True)
    auroc: Table
    strict: Table
    threshold: Table
    hard_accuracy: Table

    def __repr__(self) -> str:
        mean = self.auroc.mean(0)
        each = zip(self.detectors, mean, strict=True)
        parts = ", ".join(f"{name} {shown(float(value))}" for name, value in each)
        return cut(f"Detection({len(self.concepts)} concepts: {parts})")

    def means(self) -> dict[str, dict[str, float]]:
        """Return the means over concepts for each detector."""
        tables = {
            "auroc": self.auroc,
            "strict": self.strict,
            "hard_accuracy": self.hard_accuracy,
        }
        return {
            name: {
                key: float(np.nanmean(table[:, i]))
                for key, table in tables.items()
                if np.isfinite(table[:, i]).any()
            }
            for i, name in enumerate(self.detectors)
        }


@checked
def detect(
    model: ModelLike,
    concepts: Sequence[Concept],
    detectors: Mapping[str, AbstractDetector],
    *,
    layer: int,
    site: str = "resid_post",
    skip: int = 1,
    seed: int = 0,
    batch: int | None = None,
) -> Detection:
    r"""Measure how well directions detect concepts, with AxBench's protocol.

    Each detector fits a direction to the tokens of a concept's training texts. A
    text's score is the largest projection among its tokens. As in AxBench, the area
    under the ROC curve compares positive with negative texts; hard negatives enter
    only the accuracy at the best threshold. `strict` counts them as negatives.

    Args:
        model: a decoder, or a language model.
        concepts: the concepts; texts, or lists of token ids for a bare model.
        detectors: detectors by name; include `RandomDirection` as a control.
        layer: index of the block to read.
        site: site of the block to read.
        skip: number of tokens to skip at the start of each text.
        seed: seed for random draws in the detectors.
        batch: number of texts to run at a time.

    Returns:
        Areas, thresholds and accuracies.

    Raises:
        ConfigError: no concepts or no detectors.
        ShapeError: a text has no tokens after the skipped ones.
        SiteError: a site or layer that the model does not have.

    Source: Wu et al. 2025, arXiv:2501.17148.
    """
    check_site(site)
    if not concepts or not detectors:
        raise ConfigError("Give at least one concept and one detector.")
    place = Site(site, layer=layer)
    found = []
    for number, concept in enumerate(concepts):
        sets = [
            _tokens(model, texts, place, skip, batch)
            for texts in (concept.positive, concept.negative, concept.test)
        ]
        positive, negative = (np.concatenate(rows) for rows in sets[:2])
        row = []
        for detector in detectors.values():
            vector = detector.vector(positive, negative, seed=seed + number)
            scores = np.array([(rows @ vector).max() for rows in sets[2]])
            row.append(measure(scores, concept.labels))
        found.append(row)
    tables = np.array(found)
    return Detection(
        tuple(concept.name for concept in concepts),
        tuple(detectors),
        *(tables[..., i] for i in range(4)),
    )


class Measured(NamedTuple):
    """Results of one detector on one concept."""

    auroc: float
    strict: float
    threshold: float
    hard_accuracy: float


def measure(scores: Float[np.ndarray, " text"], labels: Sequence[str]) -> Measured:
    """Return areas, best threshold and accuracy on hard negatives."""
    low, high = scores.min(), scores.max()
    scaled = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    kinds = np.array(labels)
    hard = kinds == "hard negative"
    plain, truth = scaled[~hard], (kinds == "positive").astype(int)
    at = threshold(plain, truth[~hard])
    strict = float(auroc(scaled, truth)) if hard.any() else np.nan
    right = float((scaled[hard] < at).mean()) if hard.any() else np.nan
    return Measured(float(auroc(plain, truth[~hard])), strict, at, right)


def threshold(scores: Float[np.ndarray, " text"], truth: Any) -> float:
    """Return the score with the largest Youden index; ties keep the highest."""
    places = np.unique(scores)[::-1]
    called = scores >= places[:, None]
    truth = np.asarray(truth) == 1
    index = called[:, truth].mean(1) - called[:, ~truth].mean(1)
    return float(places[index.argmax()])


def _tokens(
    model: Any, texts: Sequence[Any], place: Site, skip: int, batch: int | None
) -> list[Float[np.ndarray, "token embed"]]:
    """Return the activations of the tokens of each text, in float64."""
    given = list(texts)
    if not isinstance(given[0], str):
        given = Prompts.from_ids(given)
    bare, prompts = as_prompts(model, given)
    lengths = np.asarray(prompts.lengths)
    if lengths.min() <= skip:
        raise ShapeError(
            f"Text {int(lengths.argmin())} has {lengths.min()} tokens, and the first "
            f"{skip} are skipped: give longer texts."
        )
    acts = capture(bare, prompts, place, batch=batch or len(prompts), progress=False)
    wide = np.asarray(jnp.asarray(acts, jnp.float32), np.float64)
    return [row[skip:n] for row, n in zip(wide, lengths, strict=True)]
