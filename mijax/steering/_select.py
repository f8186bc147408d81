"""`select`: one direction for a behavior, chosen by its effect and its cost."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError
from mijax.core import Add, Site, capture
from mijax.core.internal import ModelLike, checked, cut, integers
from mijax.data import Prompts
from mijax.steering._ablation import SITES, ablate_direction
from mijax.steering._directions import Directions
from mijax.steering._read import FromEnd, as_prompts, check_contrast, joined, read

# Added to probabilities before their logarithm, in the score and in the divergence.
ODDS_EPSILON, KL_EPSILON = 1e-8, 1e-6


class Rule(eqx.Module):
    """Criteria that a candidate must meet.

    Attributes:
        most_kl: largest allowed divergence on prompts without the behavior.
        least_added: smallest allowed score there when the direction is added.
        depth: fraction of the layers to consider, counted from the first layer.
    """

    most_kl: float = eqx.field(static=True, default=0.1)
    least_added: float = eqx.field(static=True, default=0.0)
    depth: float = eqx.field(static=True, default=0.8)


class Scores(NamedTuple):
    """Scores of candidates, averaged over validation prompts.

    Attributes:
        ablated: behavior score with the direction ablated, on prompts that show the
            behavior; lower is better.
        added: behavior score with the direction added, on prompts that do not show it;
            higher is better.
        kl: KL divergence of the next token on those prompts when the direction is
            ablated, in nats.
    """

    ablated: Float[np.ndarray, "..."]
    added: Float[np.ndarray, "..."]
    kl: Float[np.ndarray, "..."]


class Selection(eqx.Module):
    """The selected direction, and the scores of every candidate.

    Attributes:
        direction: the selected vector, not normalized, at its layer's input.
        position: its token, counted from the end: -1 is the last token.
        candidates: all mean differences, starting at the first template token.
        scores: scores of all candidates, `[position, layer]`.
        kept: true for candidates that pass the rule.
        base: scores of the unedited model on prompts that show the behavior and on
            those that do not.
        control: scores of random directions with the selected norm at the selected
            layer, `[control]`.
        used: number of prompts left in each set after filtering: training with and
            without the behavior, validation with and without.
    """

    direction: Directions
    position: int = eqx.field(static=True)
    candidates: Float[Array, "position layer embed"]
    scores: Scores
    kept: Bool[np.ndarray, "position layer"]
    base: tuple[float, float] = eqx.field(static=True)
    control: Scores
    used: tuple[int, int, int, int] = eqx.field(static=True)

    def __repr__(self) -> str:
        layer = self.direction.layers[0]
        row = (self.position + len(self.kept), layer)
        ablated, added, kl = (f"{scores[row]:.3g}" for scores in self.scores)
        shown, others = (f"{score:.3g}" for score in self.base)
        return cut(
            f"Selection(layer {layer}, position {self.position}: {shown} -> {ablated} "
            f"ablated, {others} -> {added} added, kl {kl})"
        )


@checked
def select(
    model: ModelLike,
    train: tuple[Any, Any],
    validation: tuple[Any, Any],
    *,
    tokens: Sequence[int],
    template: int,
    rule: Rule = Rule(),  # noqa: B008 - a frozen value
    controls: int = 4,
    key: PRNGKeyArray | None = None,
    batch: int | None = None,
) -> Selection:
    r"""Select a direction for a behavior, as Arditi et al. (2024) did for refusal.

    The score of a behavior is the log odds that the next token is one it begins with,
    $\log(P + 10^{-8}) - \log(1 - P + 10^{-8})$. Prompts that should show the behavior
    are kept if their score is positive, the others if it is negative. Candidates are
    the differences between the means of both sets, at the input of every layer and at
    each template token after the instruction. Among candidates that pass the rule, the
    one whose ablation leaves the lowest score is selected. Means and scores are in
    float64.

    Args:
        model: a decoder, or a language model.
        train: prompts with and without the behavior.
        validation: other prompts with and without it.
        tokens: tokens that the behavior begins with.
        template: number of tokens after the instruction in every prompt.
        rule: criteria that a candidate must meet.
        controls: number of random directions to score as a control.
        key: key for the controls; `jax.random.key(0)` by default.
        batch: number of prompts to run at a time.

    Returns:
        The direction, with the scores of all candidates and of the controls.

    Raises:
        ShapeError: identical sets, or tokens that the model does not have.
        PositionError: a prompt with fewer tokens than the template.
        ConfigError: no prompts or no candidates are left.

    Source: Arditi et al. 2024, arXiv:2406.11717, and its code.
    """
    bare, with_it = as_prompts(model, train[0])
    without_it = as_prompts(model, train[1])[1]
    shown, others = (as_prompts(model, given)[1] for given in validation)
    check_contrast(with_it, without_it, paired=None)
    check_contrast(shown, others, paired=None)
    judge = _Judge(bare, _ids(tokens), batch)
    sets = [
        judge.filtered(prompts, behavior=behavior)
        for prompts, behavior in (
            (with_it, True),
            (without_it, False),
            (shown, True),
            (others, False),
        )
    ]
    candidates = _mean_differences(bare, sets[0], sets[1], template, batch)
    judge.open(*sets[2:])
    count, layers, size = candidates.shape
    flat = candidates.reshape(-1, size)
    found = [judge.scores(r, i % layers) for i, r in enumerate(flat)]
    scores = Scores(
        *(np.array(s).reshape(count, layers) for s in zip(*found, strict=True))
    )
    kept = _kept(scores, rule)
    ranked = np.where(kept, scores.ablated, np.inf)
    row, layer = np.unravel_index(int(ranked.argmin()), ranked.shape)
    position = int(row) - count
    chosen = Directions(
        candidates[row, layer][None].astype(np.float32),
        layers=[int(layer)],
        site="resid_pre",
        method=f"mean difference at position {position}",
    )
    keys = jax.random.split(jax.random.key(0) if key is None else key, controls)
    drawn = [judge.scores(chosen.random(k).vectors[0], int(layer)) for k in keys]
    return Selection(
        direction=chosen,
        position=position,
        candidates=jnp.asarray(candidates, jnp.float32),
        scores=scores,
        kept=kept,
        base=judge.base,
        control=Scores(*np.array(drawn).reshape(-1, 3).T),
        used=tuple(map(len, sets)),  # pyright: ignore[reportArgumentType]
    )


def log_odds(logits: Any, tokens: Any) -> Float[np.ndarray, " prompt"]:
    r"""Return the log odds that the next token is in a given set, in float64.

    $\log(P + 10^{-8}) - \log(1 - P + 10^{-8})$, where $P$ is the total probability of
    the set.

    Args:
        logits: `[prompt, vocab]`.
        tokens: token ids in the set.

    Returns:
        One number per prompt.

    Examples:
        >>> log_odds(jnp.zeros((1, 4)), [0, 1]).round(6).tolist()
        [0.0]
    """
    chosen = _softmax(logits)[:, np.asarray(tokens)].sum(-1)
    return np.log(chosen + ODDS_EPSILON) - np.log(1 - chosen + ODDS_EPSILON)


def _ids(tokens: Sequence[int]) -> np.ndarray:
    ids = np.asarray(integers(list(tokens), "A token id")).reshape(-1)
    if not ids.size:
        raise ShapeError("Give the tokens that the behavior begins with, got none.")
    return np.unique(ids)


class _Judge:
    """Scores of directions on validation prompts."""

    def __init__(self, model: Any, tokens: np.ndarray, batch: int | None) -> None:
        self.model, self.tokens, self.batch = model, tokens, batch
        blocks = getattr(model, "blocks", None)
        self.sites = SITES if getattr(blocks, "mlp", None) is not None else SITES[:2]

    def logits(self, prompts: Prompts, edits: Any = None) -> Float[np.ndarray, "p v"]:
        """Return the logits after the last token."""
        place = Site("logits", position=prompts.last)
        options = {"batch": self.batch, "progress": False}
        return np.asarray(capture(self.model, prompts, place, edits, **options))

    def filtered(self, prompts: Prompts, *, behavior: bool) -> Prompts:
        """Keep the prompts that show the behavior, or those that do not."""
        logits = self.logits(prompts)
        if self.tokens.min() < 0 or self.tokens.max() >= logits.shape[-1]:
            raise ShapeError(
                f"Token ids must be 0 to {logits.shape[-1] - 1}, got "
                f"{self.tokens.tolist()}."
            )
        score = log_odds(logits, self.tokens)
        keep = np.flatnonzero(score > 0 if behavior else score < 0)
        if not keep.size:
            raise ConfigError(
                f"None of {len(prompts)} prompts {'shows' if behavior else 'lacks'} "
                f"the behavior: their scores are {score.min():.3g} to "
                f"{score.max():.3g}. Check `tokens` and the prompts."
            )
        return prompts[keep]

    def open(self, shown: Prompts, others: Prompts) -> None:
        """Keep the validation prompts and the unedited model's answers."""
        self.shown, self.others, self.both = len(shown), others, joined(shown, others)
        logits = self.logits(self.both)
        scores = log_odds(logits, self.tokens)
        self.base = (
            float(scores[: self.shown].mean()),
            float(scores[self.shown :].mean()),
        )
        self.before = _softmax(logits[self.shown :])

    def scores(self, direction: Any, layer: int) -> tuple[float, float, float]:
        """Return the scores of one direction."""
        vector = jnp.asarray(direction, jnp.float32)
        edits = ablate_direction(vector, sites=self.sites)
        logits = self.logits(self.both, edits)
        ablated = log_odds(logits[: self.shown], self.tokens).mean()
        after, before = _softmax(logits[self.shown :]), self.before
        ratio = np.log(before + KL_EPSILON) - np.log(after + KL_EPSILON)
        add = Add(vector).at("resid_pre", layer=layer)
        added = log_odds(self.logits(self.others, add), self.tokens).mean()
        return float(ablated), float(added), float((before * ratio).sum(-1).mean())


def _softmax(logits: Any) -> Float[np.ndarray, "prompt vocab"]:
    wide = np.asarray(logits, np.float64)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _mean_differences(
    model: Any, first: Prompts, second: Prompts, template: int, batch: int | None
) -> Float[np.ndarray, "position layer embed"]:
    """Return the mean differences at the last tokens, in float64."""
    both, found = joined(first, second), []
    for back in range(template, 0, -1):
        place = {"site": "resid_pre", "reading": FromEnd(back)}
        acts = np.asarray(read(model, both, batch=batch, **place), np.float64)
        found.append(acts[: len(first)].mean(0) - acts[len(first) :].mean(0))
    if not found:
        raise ConfigError(f"`template` must be 1 token or more, got {template}.")
    return np.stack(found)


def _kept(scores: Scores, rule: Rule) -> Bool[np.ndarray, "position layer"]:
    """Return true for each candidate that passes.

    Raises:
        ConfigError: no candidate passes.
    """
    layers = scores.kl.shape[1]
    finite = np.isfinite(np.stack(scores)).all(0)
    early = np.arange(layers) < int(rule.depth * layers)
    harmless = scores.kl <= rule.most_kl
    induces = scores.added >= rule.least_added
    kept = finite & early & harmless & induces
    if not kept.any():
        raise ConfigError(
            f"No candidate passes: of {kept.size}, {int((early & finite).sum())} are "
            f"in the first layers, {int(harmless.sum())} have kl <= {rule.most_kl:g}, "
            f"{int(induces.sum())} reach a score of {rule.least_added:g} when added."
        )
    return kept
