"""Effects and side effects of an edit, compared with a placebo."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mijax._errors import ConfigError, nearest
from mijax.core import Interval, interval

LABELS = {
    "efficacy": "Efficacy",
    "efficacy_margin": "Efficacy margin (probability)",
    "paraphrase": "Paraphrase",
    "paraphrase_margin": "Paraphrase margin (probability)",
    "neighborhood": "Neighborhood",
    "neighborhood_margin": "Neighborhood margin (probability)",
    "related": "Other facts with the same relation",
    "divergence": "KL on held-out text (nats per token)",
    "entropy": "Entropy of generated text (bits)",
    "growth": "Growth of the weight's norm",
}


class Effects(eqx.Module):
    """Measurements of one model, one number per example.

    Attributes:
        efficacy: 1 where the new target is more likely than the true one, per fact.
        efficacy_margin: probability of the new target minus that of the true one, each
            the exponential of its mean log-likelihood per token.
        paraphrase: like efficacy, averaged over the fact's paraphrases.
        paraphrase_margin: like the margin, averaged over the fact's paraphrases.
        neighborhood: 1 where the true target is more likely, averaged over the fact's
            neighbors.
        neighborhood_margin: probability of the true target minus that of the new one.
        related: 1 where another fact with the same relation is completed correctly,
            with each of its tokens the most likely one.
        divergence: KL divergence from the model before the edit, per text.
        entropy: entropy of token bigrams and trigrams in generated text, per fact.
        growth: relative growth of the norm, per edited weight.
    """

    efficacy: Float[np.ndarray, " fact"]
    efficacy_margin: Float[np.ndarray, " fact"]
    paraphrase: Float[np.ndarray, " fact"]
    paraphrase_margin: Float[np.ndarray, " fact"]
    neighborhood: Float[np.ndarray, " fact"]
    neighborhood_margin: Float[np.ndarray, " fact"]
    related: Float[np.ndarray, " other"]
    divergence: Float[np.ndarray, " text"]
    entropy: Float[np.ndarray, " generated"]
    growth: Float[np.ndarray, " place"]

    def interval(self, name: str) -> Interval | None:
        """Return the mean of one measurement with its 95% interval.

        Args:
            name: one of the attributes.

        Returns:
            The interval; `None` where nothing was measured.

        Raises:
            ConfigError: an unknown name.
        """
        if name not in LABELS:
            raise ConfigError(f"No measurement {name!r}.{nearest(name, LABELS)}")
        values = getattr(self, name)
        values = values[~np.isnan(values)]
        return interval(jnp.asarray(values, jnp.float32)) if len(values) else None

    @property
    def score(self) -> float:
        """Harmonic mean of mean efficacy, paraphrase and neighborhood."""
        parts = (self.efficacy, self.paraphrase, self.neighborhood)
        if any(np.isnan(part).all() for part in parts):
            return float("nan")
        means = [float(np.nanmean(part)) for part in parts]
        return 3 / sum(1 / mean for mean in means) if min(means) > 0 else 0.0


class SideEffects(eqx.Module):
    """Report on an edit: the model before it, after it, and after a placebo edit.

    Attributes:
        before: the model before the edit.
        edited: the model after the edit.
        placebo: the model after an edit of the same size in a random direction.
    """

    before: Effects
    edited: Effects
    placebo: Effects

    @classmethod
    def joined(cls, reports: Sequence["SideEffects"]) -> "SideEffects":
        """Combine reports on edits that were made one at a time.

        Args:
            reports: one per edit.

        Returns:
            A report with all their examples.

        Raises:
            ConfigError: no reports.
        """
        if not reports:
            raise ConfigError("Expected one report or more, got none.")
        parts = {
            part: Effects(
                **{
                    name: np.concatenate(
                        [getattr(getattr(r, part), name) for r in reports]
                    )
                    for name in LABELS
                }
            )
            for part in ("before", "edited", "placebo")
        }
        return cls(**parts)

    def rows(
        self,
    ) -> list[tuple[str, *tuple[Interval | None, ...]]]:
        """Return the name of each measurement, and its three intervals."""
        models = (self.before, self.edited, self.placebo)
        return [
            (label, *(m.interval(name) for m in models))
            for name, label in LABELS.items()
        ]

    def __repr__(self) -> str:
        head = ("", "before", "edited", "placebo")
        lines = [head] + [
            (label, *(_text(cell) for cell in cells)) for label, *cells in self.rows()
        ]
        score = (f"{m.score:.3f}" for m in (self.before, self.edited, self.placebo))
        lines.append(("Score (harmonic mean)", *score))
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join(
            "  ".join(
                cell.ljust(w) for cell, w in zip(line, widths, strict=True)
            ).rstrip()
            for line in lines
        )


def _text(found: Interval | None) -> str:
    """Format a mean and its interval."""
    if found is None:
        return "-"
    mean, low, high = (float(x) for x in (found.mean, found.low, found.high))
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"
