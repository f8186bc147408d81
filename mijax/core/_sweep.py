"""`sweep`: one edit at thousands of places, in one compiled program.

A sweep does the work that its cells need and no more. A lane (one prompt at one cell)
re-runs the layers from its edit on, and the positions from the first one that the edit
changes up to the last one that the metric reads; the rest comes from the unedited run.
Lanes that change nothing are known without running. The rows of many lanes are packed
into one flat list (`Packed`), so shapes are static whatever the cells are.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mijax._errors import SiteError
from mijax._progress import Progress, reports
from mijax.core._arguments import checked
from mijax.core._axes import Cells, cells
from mijax.core._check import (
    check_edits,
    check_metric,
    rows_of,
)
from mijax.core._check_looks import check_looks
from mijax.core._check_stated import check_cache, check_kept_keys, masked_lengths
from mijax.core._chunk import (
    Base,
    Tile,
    run_base,
    run_chunk_jit,
    run_chunks_on,
)
from mijax.core._edits import Compose, Edits, Placed, compose
from mijax.core._function import FunctionModel
from mijax.core._function_sweep import sweep_function
from mijax.core._jobs import Piece, run_pieces
from mijax.core._lanes import lanes_of
from mijax.core._metric import AbstractMetric
from mijax.core._model import AbstractModel
from mijax.core._plan import Chunks, Cost, Lanes, Plan, layer_overhead, pack
from mijax.core._score import Metrics
from mijax.core._several import joined
from mijax.core._shapes import site_shapes
from mijax.core._sharding import on_mesh, spare_axes
from mijax.core._sites import END, Sites, filled, get
from mijax.core._sources import with_sources
from mijax.core._sweep_result import Sweep, Work
from mijax.core._text import ModelLike, opened
from mijax.core._tokens import PromptsLike, as_tokens, lengths_of

# The first layer of an empty tile.
NEVER = 2**30


@reports("Sweep")
@checked
def sweep(
    model: ModelLike,
    tokens: Any,
    edit: Edits,
    *,
    over: Any,
    metric: Metrics,
    edits: Any = None,
    mesh: Mesh | None = None,
    progress: Progress = None,
    chunks: Chunks | None = None,
) -> Any:
    """Runs a model once for every place of an edit and returns the metric of each run.

    Denoising patches clean activations into the corrupt run, noising the reverse: it
    is `tokens` that are run, and the edit that holds the other run's activations.

    Args:
        model: any `AbstractModel`, a language model (`mijax.models.load(...)`), or any
            function as a model (`mijax.model`).
        tokens: token ids of one prompt, or of a batch (padded on the right), or
            `mijax.data.Prompts`; with a language model also a text or a list of texts.
            A `FunctionModel` takes one example, or a batch.
        edit: one placed edit, for instance `Patch(acts).at("resid_pre")`. Indices that
            it has stay fixed; those it lacks, and that are not swept, mean everywhere.
        over: names of the swept axes, in the order of the result: `"layer"`,
            `"position"`, `"head"`, `"feature"`; or a mapping from names to values.
            Values of `"position"` are integers, spans, or one of either per prompt,
            names of spans of `Prompts` (`prompts.spans` for all of them); values of
            `"coefficient"` are numbers. Of other axes a value is an index, or a list,
            range or slice: a group in one cell. `("layer", "head")` is an axis of
            pairs, or of lists of pairs. Values may be a mapping from labels to them.
            `"source_layer"`, `"source_position"` and so on are indices that `Patch`
            reads its source at (`from_place`). With a `FunctionModel` any axis of the
            site, and `"where"` for masks.
        metric: a metric, or several by name. With a `FunctionModel` also a function
            `(output)` or `(output, example)`.
        edits: edits that stay in every run, and in the one that cells are compared
            with: noise under causal tracing, for instance.
        mesh: devices over which chunks of lanes are spread, along the axes that do not
            split the weights (see `mijax.models.load`).
        progress: called with the number of lanes done and their total; `None` draws a
            bar after three seconds in a terminal or notebook, `False` none.
        chunks: memory budget, and the file from which an interrupted sweep resumes;
            `Chunks()` by default.

    Returns:
        The metric of every run, and of the unedited one; one `Sweep` for each of
        several metrics, by name.

    Raises:
        SiteError: a place that the model does not have, or an axis that the edit lacks.
        PositionError: a position beyond the prompts.
        ShapeError: operands that do not fit.
        OutputError: a file to resume from that is of another sweep.
        NotFiniteError: an edit that gives NaN at a swept place.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> clean, corrupt = jax.numpy.array([[1, 2, 3, 4], [1, 9, 3, 4]])
        >>> acts = mijax.capture(model, clean, mijax.Site("resid_pre"))
        >>> patch = mijax.Patch(acts).at("resid_pre")
        >>> metric = mijax.logit_difference(5, 6)
        >>> found = mijax.sweep(
        ...     model, corrupt, patch, over=("layer", "position"), metric=metric
        ... )
        >>> found.values.shape, found.work.run  # before position 1 nothing changes
        ((3, 4), 7)
    """
    chunks = Chunks() if chunks is None else chunks
    if isinstance(model, FunctionModel):
        options = {"mesh": mesh, "progress": progress, "chunks": chunks}
        return sweep_function(
            model, tokens, edit, over=over, metric=metric, edits=edits, **options
        )
    model, tokens = opened(model, tokens)
    spans = tokens.spans if isinstance(tokens, PromptsLike) else {}
    given, lengths, tokens = tokens, lengths_of(tokens), as_tokens(tokens)
    batch = tokens if tokens.ndim == 2 else jax.device_put(np.asarray(tokens)[None])
    edit = with_sources(compose(edit), over)
    placed = _only(check_edits(model, tokens, edit, operands=False, lengths=lengths))
    shapes = site_shapes(model, batch.shape[1])
    check_cache(model, "A sweep")
    grid = cells(placed, over, shapes, (batch.shape[0], batch.shape[1]), spans)
    rows = rows_of(placed, batch.shape[1], batch.shape[1])
    if isinstance(over, Mapping) and over.get("position") is not None:
        rows = range(int(grid.places["stop"].max()), END)
    placed.edit.check_operand(get(shapes, placed.site), rows, tokens.shape[:-1])
    vocab = shapes.logits.shape[-1]
    several = metric if isinstance(metric, Mapping) else {"": metric}
    for one in several.values():
        check_metric(one, tokens, lengths=lengths, vocab=vocab, looks=True)
    looked = {k: check_looks(model, tokens, m, lengths) for k, m in several.items()}
    measured, names = joined(
        looked if several is metric else looked[""], batch.shape[1]
    )
    before = _staying(check_edits(model, tokens, edits, lengths=lengths))
    masked = masked_lengths(model, given, batch.shape[1])
    base = run_base(model, batch, placed.site, measured, before, masked)
    lanes = lanes_of(placed, grid, base, model.causal)
    cell_count = np.prod(grid.shape[1:], dtype=int)
    values = np.repeat(np.asarray(base.metric), cell_count, axis=0)
    work = Work(len(values))
    if lanes.cell.size:
        plan = pack(lanes, _cost(shapes, batch.shape[1], lanes, base), chunks.memory)
        sizes = (plan.rows, plan.per_chunk)
        job = (model, batch, placed, before, measured, lanes, sizes, grid)
        job += () if masked is None else (masked,)
        call = _program(model, measured, placed, base, mesh)
        devices = 1 if mesh is None else _groups(model, mesh)
        pieces = _pieces(call, plan, _feed(plan, grid), devices)
        run_pieces(pieces, values, job, progress, chunks.resume)
        work = _work(len(values), plan, model.n_layers)
    if np.isnan(values).any():
        warnings.warn(
            f"{np.isnan(values).sum()} of {values.size} runs of the sweep have a NaN "
            "metric.",
            RuntimeWarning,
            stacklevel=2,
        )
    values = values.reshape(*grid.shape, *values.shape[1:])
    ends = np.asarray(base.metric)
    if tokens.ndim == 1:
        values, ends = values[0], ends[0]

    def result(values: Any, ends: Any) -> Sweep:
        return Sweep(jax.device_put(values), jax.device_put(ends), grid.axes, work)

    if names is None:
        return result(values, ends)
    return {k: result(values[..., i], ends[..., i]) for i, k in enumerate(names)}


def _staying(edits: Sites[Any]) -> Sites[Any]:
    """Refuse edits that no lane could keep, where only some logits are computed."""
    for name in ("resid_final", "logits"):
        if get(edits, name) is not None:
            raise SiteError(
                f"An edit at {name!r} cannot stay under a sweep of a decoder: put it "
                "at resid_post of the last layer, or into the metric."
            )
    check_kept_keys(edits, "A sweep with edits in every run")
    return edits


def _only(edits: Sites[Any]) -> Placed:
    """Returns the one placed edit."""
    found = [get(edits, name) for name in filled(edits)]
    if len(found) != 1 or isinstance(found[0], Compose):
        raise SiteError("A sweep moves one edit: give one edit.at(site).")
    placed: Placed = found[0]
    if placed.site in ("resid_final", "logits"):
        raise SiteError(
            f"Site {placed.site!r} is after every layer, so there is nothing to sweep: "
            "use run."
        )
    return placed


def _cost(shapes: Sites[Any], seq: int, lanes: Lanes, base: Base) -> Cost:
    """Estimates the working memory of a row and of a lane."""
    blocks = shapes.blocks
    size = blocks.resid_pre.dtype.itemsize
    embed = blocks.resid_pre.shape[-1]
    mlp = 0 if blocks.mlp_post is None else blocks.mlp_post.shape[-1]
    heads, head_dim = (0, 0) if blocks.z is None else blocks.z.shape[-2:]
    width = int(lanes.length.max())
    # Of one token, beyond the keys and values that are counted with the heads.
    state = sum(
        int(np.prod(value.shape[3:]))
        for name, value in base.past.items()
        if name not in ("k", "v")
    )
    return Cost(
        layers=blocks.resid_pre.shape[0],
        state_bytes=size * embed,
        row_bytes=size * (6 * embed + 3 * mlp + 4 * heads * head_dim),
        lane_bytes=heads * (12 * width * seq + 2 * size * head_dim * (seq + width))
        + 3 * size * state * width,
        overhead=layer_overhead(),
        row_flops=2 * embed * (4 * heads * head_dim + 3 * mlp),
    )


def _feed(plan: Plan, grid: Cells) -> Callable[[int], Tile]:
    """Returns a function that lays out chunk `i`, filled up with empty tiles."""
    chunks = plan.chunks
    empty = plan.tiles[0].take(np.arange(0))

    def chunk(i: int) -> Tile:
        tiles = list(chunks[i]) if i < len(chunks) else []
        tiles += [empty] * (plan.per_chunk - len(tiles))
        return jax.tree.map(
            lambda *a: np.stack(a), *(_tile(t, plan, grid) for t in tiles)
        )

    return chunk


def _tile(lanes: Lanes, plan: Plan, grid: Cells) -> Tile:
    """Lays out one tile."""

    def fill(values: np.ndarray, length: int, rest: int = 0) -> np.ndarray:
        kinds = {"f": np.float32, "b": np.bool_}
        kind = kinds.get(values.dtype.kind, np.int32)
        # A lane that is not used has layer -1, or an empty set.
        shape = (length, *values.shape[1:])
        out = np.full(shape, rest if values.dtype.kind != "b" else False, kind)
        out[: len(values)] = values
        return out

    used = len(lanes.cell)
    offset = np.cumsum(lanes.length) - lanes.length
    lane = np.repeat(np.arange(used), lanes.length)
    position = np.arange(len(lane)) - offset[lane] + lanes.start[lane]
    place = {
        key: fill(values[lanes.cell], plan.lanes, -1 if key == "layer" else 0)
        for key, values in grid.places.items()
        if key != "prompt"
    }
    return Tile(
        np.int32(lanes.layer.min() if used else NEVER),
        fill(lanes.prompt, plan.lanes),
        fill(lanes.start, plan.lanes),
        fill(offset, plan.lanes),
        fill(lane, plan.rows),
        fill(position, plan.rows),
        place,
        plan.width,
    )


def _program(
    model: AbstractModel,
    metric: AbstractMetric,
    placed: Placed,
    base: Base,
    mesh: Mesh | None,
) -> Callable[[list[Tile]], Array]:
    """Returns the compiled call, from a chunk per device to `[device, tile, lane]`."""
    if mesh is None:

        def alone(group: list[Tile]) -> Array:
            tiles = jax.device_put(group[0])
            return run_chunk_jit(model, metric, placed, base, tiles)

        return alone
    mesh = Mesh(mesh.devices, mesh.axis_names)
    lanes, copied = spare_axes(model, mesh), NamedSharding(mesh, PartitionSpec())
    metric, placed = eqx.filter_shard((metric, placed), copied)
    # What is computed from a model on the mesh is there as well.
    if not on_mesh(model, mesh):
        model, base = eqx.filter_shard((model, base), copied)
    spread = NamedSharding(mesh, PartitionSpec(lanes))

    def call(group: list[Tile]) -> Array:
        stacked = jax.tree.map(lambda *a: jax.device_put(np.stack(a), spread), *group)
        return run_chunks_on(mesh, lanes, (model, metric, placed, base), stacked)

    return call


def _groups(model: AbstractModel, mesh: Mesh) -> int:
    """Return the number of groups of devices that each hold a whole model."""
    return math.prod(mesh.shape[name] for name in spare_axes(model, mesh))


def _pieces(
    call: Callable[[list[Tile]], Array],
    plan: Plan,
    chunk: Callable[[int], Tile],
    devices: int,
) -> list[Piece]:
    """Return the calls of a plan; each runs a chunk per device."""
    chunks, ahead = plan.chunks, {}

    def laid_out(first: int) -> list[Tile]:
        return [chunk(first + i) for i in range(devices)]

    def piece(first: int) -> Piece:
        group = chunks[first : first + devices]

        def store(out: np.ndarray, values: np.ndarray) -> None:
            for tiles, metrics in zip(group, out, strict=False):
                for tile, of_tile in zip(tiles, metrics, strict=False):
                    values[tile.cell] = of_tile[: len(tile.cell)]

        def run() -> Array:
            out = call(ahead.pop(first, None) or laid_out(first))
            after = first + devices
            # The next chunks are laid out while the devices work on these.
            if after < len(chunks):
                ahead[after] = laid_out(after)
            return out

        size = sum(len(tile.cell) for tiles in group for tile in tiles)
        return Piece(size, run, store, len(group))

    return [piece(first) for first in range(0, len(chunks), devices)]


def _work(lanes: int, plan: Plan, layers: int) -> Work:
    """Counts what a plan runs."""
    run = sum(len(tile.cell) for tile in plan.tiles)
    need = sum(int(((layers - t.layer) * t.length).sum()) for t in plan.tiles)
    computed = sum(int(layers - t.layer.min()) * plan.rows for t in plan.tiles)
    return Work(lanes, run, need, computed, len(plan.chunks))
