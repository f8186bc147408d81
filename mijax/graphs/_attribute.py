"""`attribute`: the attribution graph for a prompt."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, PositionError, ShapeError, TokenError
from mijax._progress import Progress, reporting
from mijax.core.internal import as_tokens, bucket, checked, lengths_of, opened
from mijax.graphs._graph import ERROR, FEATURE, LOGIT, TOKEN, AttributionGraph
from mijax.graphs._influence import normalized
from mijax.graphs._replacement import Local, Replacement, local
from mijax.graphs._rows import Features, Targets, rows
from mijax.nn import scaled_like
from mijax.nn.internal import readout_of

# Number of targets to run together, and between updates of the ranking.
BATCH, UPDATE = 32, 1024


@dataclasses.dataclass(frozen=True)
class TopLogits:
    """The most likely next tokens as targets.

    Attributes:
        most: maximum number of targets.
        mass: take the fewest tokens whose probabilities sum to this or more.
    """

    most: int = 10
    mass: float = 0.95

    def of(self, logits: Float[np.ndarray, " vocab"]) -> Int[np.ndarray, " k"]:
        """Return the token ids, most likely first."""
        chances = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
        best = np.argsort(-chances, kind="stable")[: self.most]
        return best[: int(np.searchsorted(np.cumsum(chances[best]), self.mass)) + 1]


@checked
def attribute(
    replacement: Replacement,
    prompt: Any,
    *,
    targets: TopLogits | Sequence[int] = TopLogits(),
    left_out: int = 1,
    features: int | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
) -> AttributionGraph:
    r"""Compute the attribution graph for a prompt.

    Nodes are the transcoders' active features, their errors, the tokens and the most
    likely next tokens. An edge is a direct effect with attention patterns, norm scales
    and errors frozen at their values on the prompt: $A_{ts} = g_t^\top x_s$. Here $x_s$
    is the source's output (a feature's activation times its decoder row, an error, or
    an embedding), and $g_t$ is the gradient of the target, which is a feature's
    pre-activation or a logit minus the mean logit, both before a soft cap (Ameisen et
    al. 2025, "Circuit Tracing"). The contributions of sources and biases sum exactly to
    the target's value. The first `left_out` positions have no features or errors.

    All rows for a prompt come from one linearization and a few compiled programs, which
    other prompts of up to the same number of tokens reuse.

    Args:
        replacement: the model and its transcoders.
        prompt: token ids of one prompt, `[seq]`, or a text with a `tokenizer`.
        targets: target logits, as `TopLogits()` or token ids.
        left_out: number of positions at the start without features and errors;
            circuit-tracer leaves out the first token.
        features: maximum number of features to keep, by influence on the targets;
            every active feature by default.
        tokenizer: tokenizer for a text prompt and for node labels.
        progress: called with the number of targets done and the total; `None` shows a
            bar after three seconds, `False` shows none.

    Returns:
        The graph.

    Raises:
        ConfigError: no targets, or `features` below 1.
        ShapeError: more than one prompt, or a prompt with no active features.
        TokenError: a target outside the vocabulary.

    Examples:
        >>> import jax, mijax
        >>> from mijax import dictionaries as d, graphs
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> coders = {
        ...     i: d.untrained(d.TopK(4), d.Transcoder(32), latents=64, key=key)
        ...     for i, key in enumerate(jax.random.split(jax.random.key(1), 3))
        ... }
        >>> both = graphs.Replacement.of(model, coders)
        >>> graph = graphs.attribute(both, [5, 6, 7], targets=[9])
        >>> graph
        AttributionGraph(24 features, 9 errors, 3 tokens, 1 logit; 268 edges)
        >>> graph.prune().quality().replacement <= 1
        True
    """
    if features is not None and features < 1:
        raise ConfigError(f"features must be 1 or more, got {features}.")
    ids, last, found, count = prepared(
        replacement, prompt, tokenizer, left_out=left_out
    )
    chosen = _targets(targets, np.asarray(found.logits))
    latents = np.asarray(found.latents)
    active = np.argwhere(latents > 0)
    if not len(active):
        raise ShapeError(
            "No feature is active on this prompt, so it has no graph: check that the "
            "transcoders were trained on this model and site."
        )
    job = _Job(replacement, ids, found, active, latents[tuple(active.T)], count)
    seeds = Targets(
        *(jnp.zeros(len(chosen), jnp.int32), jnp.full(len(chosen), last, jnp.int32)),
        logit_directions(replacement.model, found.stream, jnp.asarray(chosen)),
        jnp.ones(len(chosen), bool),
    )
    chances = np.asarray(jax.nn.softmax(found.logits))[chosen]
    with reporting(progress, "Attribution graph") as report:
        of_logits = job.rows(seeds)
        kept, of_features = _feature_rows(job, of_logits, chances, features, report)
    return _assembled(job, kept, of_features, of_logits, (chosen, chances), tokenizer)


def prepared(
    replacement: Replacement, prompt: Any, tokenizer: Any, *, left_out: int = 0
) -> tuple[Int[Array, " seq"], Int[Array, ""], Local, int]:
    """Run one prompt.

    Args:
        replacement: the model and its transcoders.
        prompt: token ids of one prompt, or a text.
        tokenizer: tokenizer for a text prompt.
        left_out: number of positions at the start without features and errors.

    Returns:
        Padded token ids, the index of the last token, the run, the number of tokens.

    Raises:
        PositionError: all positions are left out.
        ShapeError: more than one prompt.
    """
    tokens = _one_prompt(replacement, prompt, tokenizer)
    count = len(tokens)
    if not 0 <= left_out < count:
        raise PositionError(
            f"left_out must be below {count}, the number of tokens in the prompt, "
            f"got {left_out}."
        )
    # Padding on the right changes nothing: the model is causal.
    padded = np.zeros(bucket(count), np.int32)
    padded[:count] = tokens
    place = np.arange(len(padded))
    nodes = jnp.asarray((place >= left_out) & (place < count))
    ids, last = jnp.asarray(padded), jnp.asarray(count - 1, jnp.int32)
    return ids, last, local(replacement, ids, last, nodes), count


def _one_prompt(replacement: Replacement, prompt: Any, tokenizer: Any) -> np.ndarray:
    """Return the token ids of one prompt."""
    lm = (
        replacement.model if tokenizer is None else _Named(replacement.model, tokenizer)
    )
    found = opened(lm, prompt)[1]
    lengths = lengths_of(found)
    ids = np.asarray(as_tokens(found))
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0] if lengths is None else ids[0, : int(lengths[0])]
    if ids.ndim != 1 or not len(ids):
        raise ShapeError(
            f"A graph takes one prompt, token ids [seq], got shape {ids.shape}: call "
            "attribute for each prompt."
        )
    return ids


@dataclasses.dataclass(frozen=True)
class _Named:
    model: Any
    tokenizer: Any


def _targets(targets: Any, logits: np.ndarray) -> np.ndarray:
    """Return token ids, each once."""
    if isinstance(targets, TopLogits):
        return targets.of(logits)
    chosen = np.asarray(targets)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
        raise ConfigError(
            f"Expected TopLogits() or a list of token ids, got {targets!r:.80}."
        )
    wrong = chosen[(chosen < 0) | (chosen >= len(logits))]
    if len(wrong) or len(set(chosen.tolist())) < len(chosen):
        raise TokenError(
            f"Targets must be distinct token ids from 0 to {len(logits) - 1}, got "
            f"{targets!r:.80}."
        )
    return chosen


def logit_directions(
    model: Any, stream: Float[Array, " embed"], ids: Int[Array, " k"]
) -> Float[Array, "k embed"]:
    """Return the stream direction of each logit minus the mean, at a frozen scale."""
    readout = readout_of(model, "An attribution graph", linear=False)
    weight = readout.head.weight
    to = weight[ids].astype(jnp.float32) - weight.astype(jnp.float32).mean(0)
    # The norm is linear in its first argument; its transpose is a gradient.
    norm = getattr(readout.norm, "inner", readout.norm)
    pull = jax.grad(lambda v, to: (scaled_like(norm, v, stream) * to).sum())
    return jax.vmap(lambda one: pull(jnp.zeros_like(stream), one))(to)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Shared inputs for computing rows."""

    replacement: Replacement
    tokens: Array
    found: Local
    active: np.ndarray
    values: np.ndarray
    count: int

    @property
    def sources(self) -> Features:
        """Active features, padded so that a different number rarely recompiles."""
        room = bucket(len(self.active)) - len(self.active)
        places = jnp.asarray(np.pad(self.active, ((0, room), (0, 0))), jnp.int32)
        values = jnp.asarray(np.pad(self.values, (0, room)), jnp.float32)
        return Features(places[:, 0], places[:, 1], places[:, 2], values)

    def rows(self, targets: Targets) -> np.ndarray:
        """Return effects of features, errors and tokens, one row per target."""
        found = []
        total = len(targets.layer)
        sources = self.sources
        for start in range(0, total, UPDATE):
            part = jax.tree.map(lambda a, s=start: a[s : s + UPDATE], targets)
            here = len(part.layer)
            room = -(-bucket(here) // BATCH) * BATCH - here
            part = jax.tree.map(
                lambda a, r=room: jnp.pad(a, ((0, r), *[(0, 0)] * (a.ndim - 1))), part
            )
            got = rows(self.replacement, self.tokens, self.found, sources, part, BATCH)
            flat = np.concatenate(
                [
                    np.asarray(got.features)[:here, : len(self.active)],
                    np.asarray(got.errors)[:here, :, : self.count].reshape(here, -1),
                    np.asarray(got.tokens)[:here, : self.count],
                ],
                axis=1,
            )
            found.append(flat)
        return np.concatenate(found)

    def of_features(self, chosen: np.ndarray) -> np.ndarray:
        """Return the rows for some active features."""
        layer, position, feature = (jnp.asarray(a) for a in self.active[chosen].T)
        direction = self.replacement.coders.readers(layer, feature)
        none = jnp.zeros(len(chosen), bool)
        return self.rows(Targets(layer, position, direction.astype(jnp.float32), none))


def _feature_rows(
    job: _Job,
    of_logits: np.ndarray,
    chances: np.ndarray,
    most: int | None,
    report: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the kept active features, and their rows.

    If some must be left out, those with the most influence on the logits through known
    rows go first; the ranking is updated after every few rows.
    """
    total = len(job.active)
    room = total if most is None else min(most, total)
    kept = np.zeros(total, bool)
    rows = np.zeros((total, of_logits.shape[1]), np.float32)
    while kept.sum() < room:
        ranked = np.arange(total)
        if room < total:
            ranked = np.argsort(-_partial(of_logits, rows, chances), kind="stable")
        fresh = ranked[~kept[ranked]][: min(UPDATE, room - int(kept.sum()))]
        rows[fresh] = job.of_features(fresh)
        kept[fresh] = True
        if report:
            report(int(kept.sum()), room)
    return kept, rows[kept]


def _partial(
    of_logits: np.ndarray, rows: np.ndarray, chances: np.ndarray
) -> np.ndarray:
    """Return the influence of features on the logits through the known rows."""
    count = len(rows)
    current = chances @ normalized(of_logits)
    step = normalized(rows)
    total = current[:count].copy()
    for _ in range(count):
        current = current[:count] @ step
        if not current.any():
            break
        total += current[:count]
    return total


def _assembled(
    job: _Job,
    kept: np.ndarray,
    of_features: np.ndarray,
    of_logits: np.ndarray,
    logits: tuple[np.ndarray, np.ndarray],
    tokenizer: Any,
) -> AttributionGraph:
    """Assemble the graph from rows and nodes."""
    ids, chances = logits
    layers, count = job.found.errors.shape[0], job.count
    columns = np.concatenate([kept, np.ones(of_logits.shape[1] - len(kept), bool)])
    inner, size = int(kept.sum()), int(columns.sum()) + len(ids)
    edges = np.zeros((size, size), np.float32)
    edges[:inner, : size - len(ids)] = of_features[:, columns]
    edges[size - len(ids) :, : size - len(ids)] = of_logits[:, columns]
    layer, position, feature = job.active[kept].T
    grid = np.indices((layers, count)).reshape(2, -1)
    tokens = np.asarray(job.tokens)[:count]
    repeat = lambda value, n: np.full(n, value)  # noqa: E731
    counts = (inner, layers * count, count, len(ids))
    join = lambda *parts: np.concatenate(parts)  # noqa: E731
    zeros = [np.zeros(n) for n in counts]
    name = str if tokenizer is None else (lambda i: tokenizer.decode([int(i)]))
    return AttributionGraph(
        tokens=tokens,
        words=tuple(name(i) for i in tokens),
        layers=layers,
        kind=np.repeat([FEATURE, ERROR, TOKEN, LOGIT], counts),
        layer=join(layer, grid[0], repeat(-1, count), repeat(layers, len(ids))),
        position=join(position, grid[1], np.arange(count), repeat(count - 1, len(ids))),
        index=join(feature, repeat(-1, layers * count), tokens, ids),
        activation=join(job.values[kept], *zeros[1:]),
        probability=join(*zeros[:3], chances),
        edges=edges,
        labels=tuple((int(i), name(i)) for i in ids),
    )
