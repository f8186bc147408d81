"""Causal tracing: the effect of one restored activation in a corrupted run."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, PositionError, ShapeError
from mijax._progress import Progress
from mijax.causal._corruptions import AbstractCorruption
from mijax.causal._roles import mean_over_roles
from mijax.core import (
    AbstractModel,
    Chunks,
    Interval,
    Patch,
    Site,
    capture,
    compose,
    interval,
    probability,
    sweep,
)
from mijax.core.internal import ModelLike, checked, integers, one_each, opened
from mijax.data import Prompts, aligned


class Restore(eqx.Module):
    """Site and window of layers to restore to their clean values in one run.

    Attributes:
        site: `"resid_post"` for whole states, `"mlp_out"` or `"attn_out"` for the
            output of one part of the blocks.
        width: number of layers, starting at `layer - width // 2`; the paper restores
            single states, and MLPs and attention in windows of 10.

    Examples:
        >>> Restore("mlp_out", width=10).windows(12)["1"]
        range(0, 6)
    """

    site: str = eqx.field(static=True, default="resid_post")
    width: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        """Raise if the window is empty."""
        if self.width < 1:
            raise ConfigError(f"width must be 1 layer or more, got {self.width}.")

    def windows(self, layers: int) -> dict[str, range]:
        """Return the layers to restore around each layer.

        Args:
            layers: number of layers in the model.
        """
        before, after = self.width // 2, -(-self.width // 2)
        return {
            str(i): range(max(0, i - before), min(layers, i + after))
            for i in range(layers)
        }


class CausalTrace(eqx.Module):
    """Probability of the answer in corrupted runs with one part restored.

    Attributes:
        scores: probability averaged over noisy copies, `[prompt, layer, position]`; NaN
            at padding.
        clean: probability in the clean run.
        corrupt: probability in the corrupted run, with nothing restored.
        answer: the answer token.
        positions: labels of the positions.
    """

    scores: Float[Array, "prompt layer position"]
    clean: Float[Array, " prompt"]
    corrupt: Float[Array, " prompt"]
    answer: Int[Array, " prompt"]
    positions: tuple[str, ...] = eqx.field(static=True)

    def effects(self) -> Float[Array, "prompt layer position"]:
        """Return indirect effects: scores minus the corrupted run's score."""
        return self.scores - self.corrupt[:, None, None]

    def total_effect(self) -> Interval:
        """Return the average total effect, clean minus corrupt, with its interval."""
        return interval(self.clean - self.corrupt)

    def by_role(
        self, prompts: Prompts, *, span: str = "subject"
    ) -> dict[str, Float[Array, "prompt layer"]]:
        """Return the mean indirect effect for each token role.

        Args:
            prompts: the traced prompts, with every position traced.
            span: name of the subject's span.

        Returns:
            Mean effect over the tokens with each role: first, middle and last tokens of
            the subject, the first token after it, the further tokens, and the last
            token of the prompt. NaN if a prompt has no such token.

        Raises:
            ShapeError: the prompts are not the traced ones.
        """
        found = self.effects()
        if found.shape[::2] != prompts.tokens.shape:
            raise ShapeError(
                f"The trace has {found.shape[0]} prompts and {found.shape[2]} "
                f"positions, got prompts of shape {prompts.tokens.shape}: give the "
                "prompts that were traced at every position."
            )
        return mean_over_roles(found, prompts, span)


@checked
def causal_trace(  # noqa: PLR0913 - every one of them is a choice of the user
    model: ModelLike,
    prompts: Prompts,
    corruption: AbstractCorruption,
    *,
    restore: Restore | None = None,
    answer: Any = None,
    position: Mapping[str, Any] | None = None,
    severed: tuple[str, ...] = (),
    batch: int | None = None,
    progress: Progress = None,
    chunks: Chunks | None = None,
) -> CausalTrace:
    """Restore every part of a corrupted run in turn: causal tracing.

    Meng et al. 2022, "Locating and Editing Factual Associations in GPT"
    (arXiv:2202.05262). Causal tracing corrupts the subject and sets one activation to
    its clean value; the probability of the clean run's answer then measures how much of
    the fact that activation carries. One sweep covers layers, positions, noisy copies
    and prompts.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        prompts: prompts with a span for their subject
            (`Prompts.from_texts(..., spans={"subject": ...})`).
        corruption: `SubjectNoise(key, deviation)` or `Replacement(counterparts)`.
        restore: activations to restore; whole states by default, `Restore("mlp_out",
            width=10)` for windows of MLPs.
        answer: token whose probability is measured, one or one per prompt; by default
            the most likely token in the clean run.
        position: label and position to restore, one or one per prompt; by default every
            position.
        severed: sites that keep their corrupted value at the restored position in all
            layers, such as `("mlp_out",)`, which cuts paths through them. Requires
            exactly one `position`.
        batch: number of prompts per sweep, to bound memory; all by default.
        progress: as in `sweep`.
        chunks: as in `sweep`.

    Returns:
        Scores of every restored run, of the clean run and of the corrupted run.

    Raises:
        PositionError: prompts without a subject, or counterparts that do not match.
        SiteError: a site that the model does not have.
        ConfigError: severed paths without one position.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> prompts = mijax.data.Prompts.from_ids(
        ...     [[5, 6, 7, 8]], spans={"subject": [(1, 3)]}
        ... )
        >>> noise = mijax.causal.SubjectNoise(jax.random.key(1), 2.0, copies=3)
        >>> trace = causal_trace(model, prompts, noise)
        >>> trace.scores.shape  # prompt, layer, position
        (1, 3, 4)
        >>> sorted(trace.by_role(prompts))[:3]
        ['first after', 'first subject', 'further']
    """
    restore = Restore() if restore is None else restore
    if severed and (position is None or len(position) != 1):
        raise ConfigError(
            "Paths are severed at the restored position: give one, such as "
            "position={'last subject': prompts.position('subject')}."
        )
    _check(prompts, corruption, position, batch)
    clean, best = _clean(model, prompts, answer)
    size = len(prompts) if batch is None else batch
    parts = []
    for first in range(0, len(prompts), size):
        # The last part repeats its last prompt, so all parts share one program.
        rows = np.minimum(np.arange(first, first + size), len(prompts) - 1)
        part = _Part(
            prompts[rows], best[rows], _rows_of(corruption, rows), _at(position, rows)
        )
        options = {"progress": progress, "chunks": chunks}
        parts.append(_trace(model, part, restore, severed, options))
    scores, corrupt = (
        jnp.concatenate(each)[: len(prompts)] for each in zip(*parts, strict=True)
    )
    if position is None:
        scores = jnp.where(prompts.mask[:, None], scores, jnp.nan)
        labels = tuple(map(str, range(prompts.tokens.shape[1])))
    else:
        labels = tuple(position)
    return CausalTrace(scores, clean, corrupt, best, labels)


def _check(prompts: Prompts, corruption: Any, position: Any, batch: int | None) -> None:
    """Refuse positions in padding, other numbers of them, and empty batches."""
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}: give a number of prompts, 1 or more.")
    for node in jax.tree.leaves(corruption, is_leaf=_is_prompts):
        if _is_prompts(node):
            aligned(prompts, node)
    lengths = np.asarray(prompts.lengths)
    for label, at in (position or {}).items():
        found = integers(at, f"Position {label!r}", PositionError)
        one = found.shape in ((), lengths.shape)
        if not one or (found < 0).any() or (found >= lengths).any():
            raise PositionError(
                f"Position {label!r} is one index, or one for each of {len(prompts)} "
                f"prompts, before its padding, got {found.tolist()}."
            )


def _is_prompts(node: Any) -> bool:
    return isinstance(node, Prompts)


class _Part(eqx.Module):
    """Prompts of one sweep."""

    prompts: Prompts
    answer: Int[Array, " prompt"]
    corruption: AbstractCorruption
    position: dict[str, np.ndarray] | None


def _clean(model: Any, prompts: Prompts, answer: Any) -> tuple[Array, Array]:
    """Return the probability of each answer in the clean run, and the answers."""
    logits = capture(model, prompts, Site("logits", position=prompts.last))
    p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    ids = p.argmax(-1).astype(jnp.int32)
    if answer is not None:
        ids = one_each(answer, (len(prompts),), p.shape[-1])
    return jnp.take_along_axis(p, ids[:, None], axis=-1)[:, 0], ids


def _rows_of(corruption: Any, rows: np.ndarray) -> AbstractCorruption:
    """Return the corruption for some prompts."""
    return jax.tree.map(
        lambda node: node[rows] if _is_prompts(node) else node,
        corruption,
        is_leaf=_is_prompts,
    )


def _at(
    position: Mapping[str, Any] | None, rows: np.ndarray
) -> dict[str, np.ndarray] | None:
    """Return each position for some prompts."""
    if position is None:
        return None
    found = {label: np.asarray(at) for label, at in position.items()}
    return {
        label: at[rows] if at.ndim else np.full(len(rows), at)
        for label, at in found.items()
    }


def _trace(
    model: Any,
    part: _Part,
    restore: Restore,
    severed: tuple[str, ...],
    options: dict[str, Any],
) -> tuple[Float[Array, "prompt layer position"], Float[Array, " prompt"]]:
    """Run one sweep and average over copies."""
    opened_model: AbstractModel = opened(model, part.prompts)[0]
    copies = part.corruption.copies
    runs = part.corruption.runs(opened_model, part.prompts)
    repeat = lambda a: jnp.repeat(jnp.asarray(a), copies, axis=0)  # noqa: E731
    acts = capture(opened_model, part.prompts, restore.site)
    over: dict[str, Any] = {"layer": restore.windows(opened_model.n_layers)}
    at = None
    if part.position is not None:
        at = {label: np.repeat(rows, copies) for label, rows in part.position.items()}
    over["position"] = at
    edits = [runs.edits]
    if severed:
        (place,) = (at or {}).values()
        kept = capture(opened_model, runs.prompts, list(severed), runs.edits)
        edits += [
            Patch(values).at(name, position=place)
            for name, values in zip(severed, kept, strict=True)
        ]
    found = sweep(
        opened_model,
        runs.prompts,
        Patch(repeat(acts)).at(restore.site),
        over=over,
        metric=probability(repeat(part.answer), position=runs.prompts.last),
        edits=compose(*edits),
        **options,
    )
    shape = (len(part.prompts), copies)
    mean = lambda a: a.reshape(*shape, *a.shape[1:]).mean(1)  # noqa: E731
    return mean(found.values), mean(found.base)
