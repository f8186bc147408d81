"""`sweep`: one edit at thousands of places, in one compiled program.

A sweep does the work that its cells need and no more. A lane (one prompt at one cell)
re-runs the layers from its edit on, and the positions from the first one that the edit
changes up to the last one that the metric reads; the rest comes from the unedited run.
Lanes that change nothing are known without running. The rows of many lanes are packed
into one flat list (`Packed`), so shapes are static whatever the cells are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.core._axes import END, Axis, Cells, cells
from mijax.core._check import as_tokens, check_edits, site_shapes
from mijax.core._chunk import (
    Base,
    Chunk,
    changed,
    run_base,
    run_chunk_jit,
    run_chunks_on,
)
from mijax.core._edits import Compose, Edits, Placed
from mijax.core._intervals import Interval, interval
from mijax.core._journal import Journal
from mijax.core._metrics import AbstractMetric
from mijax.core._model import AbstractModel
from mijax.core._plan import Chunks, Lanes, Plan, pack
from mijax.core._sites import BLOCK_SITES, SITES, Sites, get


class Work(NamedTuple):
    """What a sweep ran.

    Attributes:
        lanes: prompts times cells.
        run: lanes that were run; the others are known to change nothing.
        row_layers: positions times layers that these lanes need.
        computed: positions times layers that were computed, padding included.
        chunks: calls of the compiled program.
    """

    lanes: int
    run: int = 0
    row_layers: int = 0
    computed: int = 0
    chunks: int = 0


class Sweep(eqx.Module):
    """Result of a sweep.

    Attributes:
        values: metric of every patched run, `[prompt, *axes]` (`[*axes]` for a single
            prompt).
        base: metric of the unedited run, `[prompt]` (`[]` for a single prompt).
        axes: name and labels of each axis.
        work: what was run.
    """

    values: Float[Array, "..."]
    base: Float[Array, "..."]
    axes: tuple[Axis, ...] = eqx.field(static=True)
    work: Work = eqx.field(static=True)

    def mean(self) -> Float[Array, "..."]:
        """Returns the mean over prompts, `[*axes]`."""
        return self.values.mean(0) if self.base.ndim else self.values

    def interval(self, **options: Any) -> Interval:
        """Returns the mean over prompts with its confidence interval, `[*axes]`.

        Args:
            **options: of `mijax.interval`.

        Raises:
            ShapeError: for a single prompt, which has no spread.
        """
        if not self.base.ndim:
            raise ShapeError("An interval needs several prompts: sweep a batch.")
        return interval(self.values, **options)


def sweep(
    model: AbstractModel,
    tokens: Int[Array, "*batch seq"],
    edit: Edits,
    *,
    over: Any,
    metric: AbstractMetric,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    chunks: Chunks | None = None,
) -> Sweep:
    """Runs a model once for every place of an edit and returns the metric of each run.

    Denoising patches clean activations into the corrupt run, noising the reverse: it
    is `tokens` that are run, and the edit that holds the other run's activations.

    Args:
        model: any `AbstractModel`.
        tokens: token ids of one prompt, or of a batch (padded on the right).
        edit: one placed edit, for instance `Patch(acts).at("resid_pre")`. Indices that
            it has stay fixed; those it lacks, and that are not swept, mean everywhere.
        over: names of the swept axes, in the order of the result: `"layer"`,
            `"position"`, `"head"`, `"feature"`; or a mapping from names to values.
            Values of `"position"` are integers, spans, or one of either per prompt,
            and may be a mapping from labels to those; values of `"coefficient"` are
            numbers.
        metric: what to measure.
        mesh: devices over which chunks of lanes are spread.
        progress: called with the number of lanes done and their total.
        chunks: memory budget, and the file from which an interrupted sweep resumes;
            `Chunks()` by default.

    Returns:
        The metric of every run, and of the unedited one.

    Raises:
        SiteError: a place that the model does not have, or an axis that the edit lacks.
        PositionError: a position beyond the prompts.
        ShapeError: operands that do not fit.
        OutputError: a file to resume from that is of another sweep.

    Example:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> acts = mijax.capture(model, [1, 2, 3, 4], mijax.Site("resid_pre"))
        >>> patch = mijax.Patch(acts).at("resid_pre")
        >>> metric = mijax.logit_difference(5, 6)
        >>> found = mijax.sweep(
        ...     model, [1, 9, 3, 4], patch, over=("layer", "position"), metric=metric
        ... )
        >>> found.values.shape, found.work.run  # before position 1 nothing changes
        ((3, 4), 7)
    """
    tokens = as_tokens(tokens)
    batch = jnp.atleast_2d(tokens)
    chunks = Chunks() if chunks is None else chunks
    placed = _only(check_edits(model, tokens, edit))
    shapes = site_shapes(model, batch.shape[1])
    grid = cells(placed, over, shapes, (batch.shape[0], batch.shape[1]))
    base = run_base(model, batch, placed.site, metric)
    lanes = _lanes(placed, grid, base)
    values = np.repeat(np.asarray(base.metric), np.prod(grid.shape[1:], dtype=int))
    work = Work(values.size)
    if lanes.cell.size:
        bytes_of = _bytes(shapes, batch.shape[1], lanes)
        plan = pack(lanes, layers=model.n_layers, memory=chunks.memory, **bytes_of)
        job = (model, batch, placed, metric, lanes, plan.rows)
        journal = Journal(chunks.resume, job)
        call = _program(model, metric, placed, base, mesh)
        devices = 1 if mesh is None else mesh.devices.size
        _run(call, devices, _feed(plan, grid), plan, values, progress, journal)
        work = _work(values.size, plan, model.n_layers)
    values = values.reshape(grid.shape)
    if tokens.ndim == 1:
        return Sweep(jnp.asarray(values[0]), base.metric[0], grid.axes, work)
    return Sweep(jnp.asarray(values), base.metric, grid.axes, work)


def _only(edits: Sites[Any]) -> Placed:
    """Returns the one placed edit."""
    found = [get(edits, name) for name in SITES if get(edits, name) is not None]
    if len(found) != 1 or isinstance(found[0], Compose):
        raise SiteError("A sweep moves one edit: give one edit.at(site).")
    placed: Placed = found[0]
    if placed.site in ("resid_final", "logits"):
        raise SiteError(
            f"Site {placed.site!r} is after every layer, so there is nothing to sweep: "
            "use run."
        )
    return placed


def _lanes(placed: Placed, grid: Cells, base: Base) -> Lanes:
    """Finds the lanes that change something, and from where they run."""
    layered = placed.site in BLOCK_SITES
    index = grid.index
    if grid.coefficients is None:
        maps = [changed(placed.edit, base, layered)]
    else:
        maps = [
            changed(_with_coefficient(placed.edit, c), base, layered)
            for c in grid.coefficients
        ]
    differs = np.stack(
        [np.asarray(m) for m in maps]
    )  # coefficient layer prompt seq head
    if "layer" not in index:
        differs = differs.any(1, keepdims=True)
    if "head" not in index:
        differs = differs.any(-1, keepdims=True)
    seq = differs.shape[3]
    at = np.where(differs, np.arange(seq)[:, None], seq)
    following = np.minimum.accumulate(at[:, :, :, ::-1], axis=3)[:, :, :, ::-1]
    zero = np.zeros_like(index["prompt"])
    layer, start = index.get("layer", zero), index.get("start", zero)
    head, prompt = index.get("head", zero), index["prompt"]
    first = following[grid.coefficient, layer, prompt, start, head]
    last = np.asarray(base.reads).max(1)[prompt]
    stop = np.minimum(index.get("stop", np.full_like(zero, END)), last + 1)
    cell = np.flatnonzero(first < stop)
    length = last - first + 1
    return Lanes(cell, prompt[cell], layer[cell], first[cell], length[cell])


def _with_coefficient(one: Any, coefficient: Any) -> Any:
    return eqx.tree_at(lambda e: e.coefficient, one, jnp.asarray(coefficient))


def _bytes(shapes: Sites[Any], seq: int, lanes: Lanes) -> dict[str, float]:
    """Estimates the working memory of a row and of a lane."""
    blocks = shapes.blocks
    size = blocks.resid_pre.dtype.itemsize
    embed = blocks.resid_pre.shape[-1]
    mlp = 0 if blocks.mlp_post is None else blocks.mlp_post.shape[-1]
    heads, head_dim = blocks.z.shape[-2:]
    width = int(lanes.length.max())
    row = size * (6 * embed + 3 * mlp + 4 * heads * head_dim)
    lane = heads * (3 * 4 * width * seq + size * head_dim * (2 * seq + 2 * width))
    return {"row_bytes": row, "lane_bytes": lane}


def _feed(plan: Plan, grid: Cells) -> Callable[[int], Chunk]:
    """Returns a function that lays out chunk `i`; beyond the last, an empty one."""

    def layout(i: int) -> Chunk:
        size, rows = plan.size, plan.rows
        lanes = (
            plan.lanes[i] if i < len(plan.lanes) else plan.lanes[0].take(np.arange(0))
        )
        used = len(lanes.cell)

        def fill(values: np.ndarray, length: int, rest: int = 0) -> np.ndarray:
            out = np.full(length, rest, values.dtype)
            out[: len(values)] = values
            return out

        offset = np.cumsum(lanes.length) - lanes.length
        lane = np.repeat(np.arange(used), lanes.length)
        position = np.arange(len(lane)) - offset[lane] + lanes.start[lane]
        place = {
            key: fill(values[lanes.cell], size, -1 if key == "layer" else 0)
            for key, values in grid.index.items()
            if key != "prompt"
        }
        as_int = lambda a, n: fill(a.astype(np.int32), n)  # noqa: E731
        return Chunk(
            first=np.int32(lanes.layer.min() if used else 2**30),
            prompt=as_int(lanes.prompt, size),
            start=as_int(lanes.start, size),
            offset=as_int(offset, size),
            lane=as_int(lane, rows),
            position=as_int(position, rows),
            place=place,
            width=plan.width,
        )

    return layout


def _program(
    model: AbstractModel,
    metric: AbstractMetric,
    placed: Placed,
    base: Base,
    mesh: Mesh | None,
) -> Callable[[list[Chunk]], Array]:
    """Returns the compiled call: from one chunk per device to `[device, lane]`."""
    if mesh is None:
        shared = (model, metric, placed, base)
        return lambda group: run_chunk_jit(*shared, _as_arrays(group[0]))[None]
    shared = eqx.filter_shard(
        (model, metric, placed, base), NamedSharding(mesh, PartitionSpec())
    )
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def call(group: list[Chunk]) -> Array:
        stacked = jax.tree.map(lambda *a: jax.device_put(np.stack(a), spread), *group)
        return run_chunks_on(mesh, *shared, stacked)

    return call


def _as_arrays(chunk: Chunk) -> Chunk:
    return jax.tree.map(jnp.asarray, chunk)


def _run(
    call: Callable[[list[Chunk]], Array],
    devices: int,
    layout: Callable[[int], Chunk],
    plan: Plan,
    values: np.ndarray,
    progress: Callable[[int, int], None] | None,
    journal: Journal,
) -> None:
    """Runs every chunk; results stay on the device until a save or the end."""
    journal.load(values)
    sizes = [len(lanes.cell) for lanes in plan.lanes]
    waiting: list[tuple[int, Array]] = []
    done = journal.done

    def collect() -> None:
        for at, out in zip(
            waiting, jax.device_get([w[1] for w in waiting]), strict=True
        ):
            for device, row in enumerate(out):
                i = at[0] + device
                if i < len(sizes):
                    values[plan.lanes[i].cell] = row[: sizes[i]]
        waiting.clear()

    try:
        for i in range(journal.done, len(sizes), devices):
            out = call([layout(i + d) for d in range(devices)])
            if waiting:
                waiting[-1][1].block_until_ready()
                done = i
                if progress is not None:
                    progress(sum(sizes[:i]), sum(sizes))
                if journal.due():
                    collect()
                    journal.save(values, done)
            waiting.append((i, out))
        collect()
        done = len(sizes)
        if progress is not None:
            progress(sum(sizes), sum(sizes))
    finally:
        if journal.path is not None and done > journal.done:
            waiting[:] = [w for w in waiting if w[0] < done]
            collect()
            journal.save(values, done)


def _work(lanes: int, plan: Plan, layers: int) -> Work:
    """Counts what a plan runs."""
    run = sum(len(chunk.cell) for chunk in plan.lanes)
    need = sum(int(((layers - c.layer) * c.length).sum()) for c in plan.lanes)
    computed = sum(int(layers - c.layer.min()) * plan.rows for c in plan.lanes)
    return Work(lanes, run, need, computed, len(plan.lanes))
