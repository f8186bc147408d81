"""Interventions on features, and whether a graph predicts what they do."""

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
from mijax.core.internal import Layered
from mijax.graphs._attribute import logit_directions, prepared
from mijax.graphs._graph import FEATURE, LOGIT, AttributionGraph
from mijax.graphs._replacement import Local, Replacement, Shift, linear_map, pushed
from mijax.graphs._sources import Node, nodes_of, written

# Interventions that run together.
BATCH = 8


@dataclasses.dataclass(frozen=True)
class FreezeAll:
    """Hold patterns, norm scales and other MLP outputs: direct effects only."""


@dataclasses.dataclass(frozen=True)
class FreezeAttention:
    """Hold attention patterns only: effects go through the MLPs that follow."""


class Outcome(NamedTuple):
    """What the model computes under an intervention.

    Attributes:
        reads: what the transcoders read.
        latents: activation of every feature.
        logits: of the last token, minus their mean.
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
    r"""Set features to other values and run the model.

    A change adds $(z' - z) \, w_f$ to what the feature writes, with $z$ its activation
    on the prompt, so errors stay. With `FreezeAll()` the outcome is what the graph
    predicts, exactly.

    Args:
        replacement: the model and its transcoders.
        prompt: token ids of one prompt, or a text with a `tokenizer`.
        changes: layer, position, feature and new activation of each.
        freeze: what is held at its value on the prompt.
        tokenizer: to read texts.

    Returns:
        The outcome, without padding.

    Raises:
        ConfigError: no change, or another way to freeze.
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
            f"freeze is FreezeAll() or FreezeAttention(), got {freeze!r:.80}."
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
    """Return the outcome of a shift of the MLP outputs with all else frozen."""
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
    """Return the outcome with attention patterns frozen only."""
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
    """Predictions of a graph next to interventions, for the removal of each feature.

    Attributes:
        features: names of the features that were set to 0, one at a time.
        targets: names of the nodes that were read: features and logits of the graph.
        predicted: change that the graph predicts, `[feature, target]`: minus the edge.
        direct: change with all else frozen.
        total: change of the logits with attention patterns frozen only.
        path: change of the logits that all paths of the graph predict together.
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
        """Correlation of the effects along all paths with those of the model."""
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
    """Remove features one at a time and compare with what the graph predicts.

    With all else frozen, prediction and outcome are the same number up to rounding;
    with only attention frozen, features that follow may stop or start firing, and the
    correlation tells how far the linear picture holds.

    Args:
        replacement: the model and its transcoders.
        prompt: the prompt of the graph.
        graph: a graph from `attribute`; if pruned, edges that were cut count as 0.
        features: number of features, those with most influence.
        tokenizer: to read texts.

    Returns:
        Predictions and outcomes; all runs are one compiled program each.

    Raises:
        ConfigError: a graph without features or of another prompt.
    """
    ids, last, found, count = prepared(replacement, prompt, tokenizer)
    if not np.array_equal(np.asarray(ids)[:count], graph.tokens):
        raise ConfigError("The graph is of another prompt than the one given.")
    read = np.flatnonzero((graph.kind == FEATURE) | (graph.kind == LOGIT))
    ours = np.flatnonzero(graph.kind == FEATURE)
    if not len(ours):
        raise ConfigError("The graph has no feature to remove.")
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
    """Return minus the effect on the logits over all paths, if features stay linear.

    A feature that is changed by `x` of its pre-activation writes `x / z` of what it
    wrote.
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
    """Return the changes of features and logits under each removal."""
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
