"""Interventions on features, and a check of the graph's predictions."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, SiteError
from mijax.core import AbstractEdit, compose
from mijax.core.internal import Layered, Shift
from mijax.graphs._attribute import logit_directions, prepared
from mijax.graphs._graph import FEATURE, LOGIT, AttributionGraph
from mijax.graphs._replacement import Local, Replacement, linear_map, pushed
from mijax.graphs._sources import Node, nodes_of, written

# Number of interventions to run together.
BATCH = 8


@dataclasses.dataclass(frozen=True)
class FreezeAll:
    """Freeze patterns, norm scales and other MLP outputs: direct effects only."""


@dataclasses.dataclass(frozen=True)
class FreezeAttention:
    """Freeze only attention patterns: effects pass through later MLPs."""


class Outcome(NamedTuple):
    """Result of a run with an intervention.

    Attributes:
        reads: inputs of the transcoders.
        latents: activation of every feature.
        logits: logits at the last token, minus their mean.
    """

    reads: Float[Array, "layer seq embed"]
    latents: Float[Array, "layer seq feature"]
    logits: Float[Array, " vocab"]


def intervene(
    replacement: Replacement,
    prompt: Any,
    changes: Sequence[tuple[int, int, int, float]],
    *,
    freeze: FreezeAll | FreezeAttention = FreezeAttention(),
    tokenizer: Any = None,
) -> Outcome:
    r"""Set features to given values and run the model.

    A change adds $(z' - z) \, w_f$ to the MLP output, with $z$ the feature's activation
    on the prompt, so errors do not change. With `FreezeAll()`, the outcome matches the
    graph's prediction exactly.

    Args:
        replacement: the model and its transcoders.
        prompt: token ids of one prompt, or a text with a `tokenizer`.
        changes: layer, position, feature and new activation for each change.
        freeze: activations to freeze at their values on the prompt.
        tokenizer: tokenizer for a text prompt.

    Returns:
        The outcome, without padding.

    Raises:
        ConfigError: no changes, or an unknown value of `freeze`.
        SiteError: a feature that does not exist.

    Examples:
        >>> import jax, mijax
        >>> from mijax import dictionaries as d, graphs
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> coders = {
        ...     i: d.untrained(d.TopK(4), d.Transcoder(32), latents=64, key=key)
        ...     for i, key in enumerate(jax.random.split(jax.random.key(1), 3))
        ... }
        >>> both = graphs.Replacement.of(model, coders)
        >>> outcome = graphs.intervene(both, [5, 6, 7], [(0, 2, 9, 4.0)])
        >>> outcome.logits.shape
        (64,)
    """
    if not len(changes):
        raise ConfigError(
            "Give at least one change: (layer, position, feature, value)."
        )
    if not isinstance(freeze, FreezeAll | FreezeAttention):
        raise ConfigError(
            f"Expected FreezeAll() or FreezeAttention(), got {freeze!r:.80}."
        )
    ids, last, found, count = prepared(replacement, prompt, tokenizer)
    sizes = (found.latents.shape[0], count, found.latents.shape[2])
    for change in changes:
        place = change[:3]
        if any(not 0 <= i < n for i, n in zip(place, sizes, strict=True)):
            raise SiteError(
                f"Expected layer, position and feature below {sizes}, got "
                f"{tuple(place)}."
            )
    shift = jnp.zeros_like(found.errors)
    for layer, position, feature, value in changes:
        step = value - found.latents[layer, position, feature]
        kind, i, at, f = (jnp.asarray(n) for n in (FEATURE, layer, position, feature))
        node = Node(kind, i, at, f, step)
        shift = shift + written(replacement, found, node)[1]
    run = frozen_run if isinstance(freeze, FreezeAll) else free_run
    out = _outcome(run, replacement, ids, last, found, shift)
    return Outcome(out.reads[:, :count], out.latents[:, :count], out.logits)


def frozen_run(
    replacement: Replacement,
    tokens: Int[Array, " seq"],
    last: Int[Array, ""],
    found: Local,
    shift: Float[Array, "layer seq embed"],
) -> Outcome:
    """Return the outcome of shifting the MLP outputs with everything else frozen."""
    mapped = linear_map(replacement, tokens)
    zeros = jnp.zeros_like(found.embed), jnp.zeros_like(found.errors)
    reads, stream, _ = pushed(mapped, zeros, (zeros[0], shift))
    reads = found.reads + reads
    every = jnp.arange(len(found.logits))
    to = logit_directions(replacement.model, found.stream, every)
    logits = found.logits - found.logits.mean() + to @ stream[last]
    return Outcome(reads, replacement.coders.encode(reads), logits)


class Held(AbstractEdit):
    """The value of the unedited run."""

    value: Any

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Return the value."""
        return self.value.value.astype(x.dtype)


def free_run(
    replacement: Replacement,
    tokens: Int[Array, " seq"],
    last: Int[Array, ""],
    found: Local,
    shift: Float[Array, "layer seq embed"],
) -> Outcome:
    """Return the outcome with only attention patterns frozen."""
    pattern = replacement.model(tokens)[1].blocks.pattern
    edits = [
        Shift(Layered(shift)).at(replacement.write),
        Held(Layered(pattern)).at("pattern"),
    ]
    logits, acts = replacement.model(tokens, compose(edits))
    reads = getattr(acts.blocks, replacement.read).astype(jnp.float32)
    end = logits[last].astype(jnp.float32)
    return Outcome(reads, replacement.coders.encode(reads), end - end.mean())


@eqx.filter_jit
def _outcome(
    run: Any,
    replacement: Replacement,
    tokens: Array,
    last: Array,
    found: Local,
    shift: Array,
) -> Outcome:
    return run(replacement, tokens, last, found, shift)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Verified:
    """Predictions of a graph compared with interventions that remove features.

    Attributes:
        features: names of the features that were set to 0, one at a time.
        targets: names of the measured nodes: features and logits in the graph.
        predicted: change predicted by the graph, `[feature, target]`: minus the edge.
        direct: change with everything else frozen.
        total: change in the logits with only attention patterns frozen.
        path: change in the logits predicted by all paths in the graph together.
    """

    features: tuple[str, ...]
    targets: tuple[str, ...]
    predicted: Float[np.ndarray, "feature target"]
    direct: Float[np.ndarray, "feature target"]
    total: Float[np.ndarray, "feature logit"]
    path: Float[np.ndarray, "feature logit"]

    @property
    def largest_error(self) -> float:
        """Largest error of a prediction, as a fraction of the largest effect."""
        size = max(float(np.abs(self.direct).max()), 1e-12)
        return float(np.abs(self.predicted - self.direct).max()) / size

    @property
    def correlation(self) -> float:
        """Correlation between predicted path effects and the model's total effects."""
        if self.path.size < 2:
            return float("nan")
        return float(np.corrcoef(self.path.ravel(), self.total.ravel())[0, 1])

    def __repr__(self) -> str:
        return (
            f"Verified({len(self.features)} features: frozen outcomes differ by "
            f"{self.largest_error:.1e}, correlation of total effects "
            f"{self.correlation:.2f})"
        )


def verify(
    replacement: Replacement,
    prompt: Any,
    graph: AttributionGraph,
    *,
    features: int = 32,
    tokenizer: Any = None,
) -> Verified:
    """Remove features one at a time and compare with the graph's predictions.

    With everything else frozen, prediction and outcome agree up to rounding. With only
    attention frozen, later features may switch on or off, and the correlation measures
    how well the linear approximation holds.

    Args:
        replacement: the model and its transcoders.
        prompt: the prompt of the graph.
        graph: a graph from `attribute`; edges removed by pruning count as 0.
        features: number of features to remove, by influence.
        tokenizer: tokenizer for a text prompt.

    Returns:
        Predictions and outcomes, from one compiled program for each kind of run.

    Raises:
        ConfigError: a graph without features, or a graph for another prompt.
    """
    ids, last, found, count = prepared(replacement, prompt, tokenizer)
    if not np.array_equal(np.asarray(ids)[:count], graph.tokens):
        raise ConfigError("The graph was made for another prompt.")
    read = np.flatnonzero((graph.kind == FEATURE) | (graph.kind == LOGIT))
    ours = np.flatnonzero(graph.kind == FEATURE)
    if not len(ours):
        raise ConfigError("The graph has no features to remove.")
    order = np.argsort(-graph.influence()[ours], kind="stable")[:features]
    chosen = ours[order]
    nodes = nodes_of(graph, chosen)._replace(
        activation=-jnp.asarray(graph.activation[chosen], jnp.float32)
    )
    ends = jnp.asarray(graph.index[graph.kind == LOGIT], jnp.int32)
    targets = nodes_of(graph, ours)
    direct, total = _removals(replacement, ids, last, found, nodes, targets, ends)
    names = np.array(graph.names)
    return Verified(
        features=tuple(names[chosen]),
        targets=tuple(names[read]),
        predicted=-graph.edges[np.ix_(read, chosen)].T,
        direct=np.asarray(direct),
        total=np.asarray(total),
        path=_along_paths(graph, chosen),
    )


def _along_paths(graph: AttributionGraph, chosen: np.ndarray) -> np.ndarray:
    """Return minus the effect on the logits along all paths, if features stay linear.

    Changing a feature's pre-activation by `x` changes its output by the fraction
    `x / z`.
    """
    inner = graph.kind == FEATURE
    activation = np.where(inner, graph.activation, 1.0)
    step = graph.edges.astype(np.float64) / activation[:, None]
    step[~inner] = graph.edges[~inner]
    change = np.zeros((len(graph.kind), len(chosen)))
    change[chosen, np.arange(len(chosen))] = -1.0
    total = np.zeros_like(change)
    for _ in range(graph.layers + 1):
        change = step @ change
        total += change
        change[graph.kind == LOGIT] = 0
    return total[graph.kind == LOGIT].T


@eqx.filter_jit
def _removals(
    replacement: Replacement,
    tokens: Array,
    last: Array,
    found: Local,
    nodes: Node,
    targets: Node,
    ends: Array,
) -> tuple[Array, Array]:
    """Return the changes in features and logits for each removal."""
    readers = replacement.coders.readers(targets.layer, targets.feature)
    before = found.logits - found.logits.mean()

    def one(node: Node) -> tuple[Array, Array]:
        shift = written(replacement, found, node)[1]
        held = frozen_run(replacement, tokens, last, found, shift)
        moved = (held.reads - found.reads)[targets.layer, targets.position]
        direct = jnp.concatenate(
            [(moved * readers).sum(-1), (held.logits - before)[ends]]
        )
        free = free_run(replacement, tokens, last, found, shift)
        return direct, (free.logits - before)[ends]

    return jax.lax.map(one, nodes, batch_size=BATCH)
