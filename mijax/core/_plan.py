"""Plans of a sweep: which lanes run, from where, and packed into which chunks.

All of this is integer bookkeeping on the host; what it decides travels to the device
as data, so every plan of one shape runs in the same compiled program.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mijax.core._buckets import bucket

Ints = np.ndarray


class Lanes(NamedTuple):
    """Patched runs, one entry per lane.

    Attributes:
        cell: index into the flattened result, `[prompt, *axes]`.
        prompt: which prompt.
        layer: first layer to run.
        start: first position to run.
        length: number of positions to run.
    """

    cell: Ints
    prompt: Ints
    layer: Ints
    start: Ints
    length: Ints

    def take(self, index: Ints) -> "Lanes":
        """Returns some lanes."""
        return Lanes(*(field[index] for field in self))


class Chunks(NamedTuple):
    """How lanes are cut into chunks, each one call of the compiled program.

    Attributes:
        memory: bytes that one chunk's working set may take.
        resume: file in which an interrupted sweep is kept and from which the same
            sweep goes on; `None` keeps nothing.
    """

    memory: int = 2**30
    resume: str | None = None


class Plan(NamedTuple):
    """Tiles of lanes with common static sizes, and chunks of tiles.

    Attributes:
        tiles: the lanes of every tile, by first layer.
        per_chunk: tiles of a chunk.
        rows: rows of a tile.
        lanes: lanes of a tile.
        width: longest suffix.
    """

    tiles: list[Lanes]
    per_chunk: int
    rows: int
    lanes: int
    width: int

    @property
    def chunks(self) -> list[list[Lanes]]:
        """Return the tiles of each chunk: one at first, then twice as many each time.

        The first report of progress so comes after one tile. Tiles that a chunk does
        not use cost nothing, but each call does: what fits one chunk is one chunk.
        """
        few = len(self.tiles) <= self.per_chunk
        found, start, size = [], 0, self.per_chunk if few else 1
        while start < len(self.tiles):
            found.append(self.tiles[start : start + size])
            start, size = start + size, min(2 * size, self.per_chunk)
        return found


class Cost(NamedTuple):
    """What running costs, for choosing sizes.

    Attributes:
        layers: number of layers of the model.
        state_bytes: memory of a row that waits between layers.
        row_bytes: working memory of a row.
        lane_bytes: working memory of a lane.
        overhead: rows that a tile's fixed cost per layer is worth.
        row_flops: floating-point operations of a row in one layer.
    """

    layers: int
    state_bytes: float
    row_bytes: float
    lane_bytes: float
    overhead: int
    row_flops: float = 0.0


# Matrix products of fewer rows than this do not use all cores of a CPU.
LEAST_ROWS = 384
# Work that fewer rows may cost, as a factor: a short sweep leaves less of a tile empty.
SLACK = 1.02
# More tiles in a chunk save little, and progress and interruption come between chunks.
MOST_TILES = 16
# Operations of a chunk on a CPU: a fraction of the half minute between saves.
MOST_FLOPS = 2e12


def layer_overhead() -> int:
    """Returns the rows that the fixed cost of a call is worth in each layer."""
    return 24 if jax.default_backend() == "cpu" else 2048


def pack(lanes: Lanes, cost: Cost, memory: int) -> Plan:
    """Pack lanes into tiles so that few rows are computed in vain.

    A tile runs from the lowest first layer of its lanes, so lanes are taken by layer;
    within a layer long and short suffixes alternate, so tiles have similar numbers of
    lanes. Sizes follow from the lanes of one layer and the depth of the model, so that
    a sweep over other layers runs in the same program; a sweep of few rows takes the
    next power of two.

    Args:
        lanes: lanes to run; not empty.
        cost: of rows and lanes.
        memory: bytes that a chunk may take.

    Returns:
        The plan.
    """
    lanes = lanes.take(_order(lanes))
    longest, total = int(lanes.length.max()), int(lanes.length.sum())
    per_row = cost.row_bytes + cost.lane_bytes / lanes.length.mean() + cost.state_bytes
    within = rows_in_time(cost)
    most = max(longest, min(int(memory / per_row), within))
    typical = _typical(lanes, cost.layers)
    rows = min(_rows(typical, cost, most), max(longest, bucket(total, steps=1)))
    cuts = _cut(lanes.length, rows)
    tiles = [lanes.take(np.arange(a, b)) for a, b in itertools.pairwise(cuts)]
    spare = memory - rows * (per_row - cost.state_bytes)
    fit = max(1, min(int(spare / (rows * cost.state_bytes)), within // rows))
    # Tiles that a chunk does not use cost nothing, so there are always as many.
    per_chunk = min(2 ** (fit.bit_length() - 1), MOST_TILES)
    widest = max(int(np.diff(c).max()) for c in (cuts, _cut(typical.length, rows)))
    return Plan(tiles, per_chunk, rows, bucket(widest), _up(longest))


def _typical(lanes: Lanes, layers: int) -> Lanes:
    """Return the lanes of the layer with the most rows, as if at every layer."""
    rows = np.bincount(lanes.layer, lanes.length)
    one = lanes.take(np.flatnonzero(lanes.layer == rows.argmax()))
    every = one.take(np.tile(np.arange(len(one.cell)), layers))
    return every._replace(layer=np.repeat(np.arange(layers), len(one.cell)))


def _rows(typical: Lanes, cost: Cost, most: int) -> int:
    """Choose the rows of a tile: the fewest near the least work."""
    longest, total = int(typical.length.max()), int(typical.length.sum())
    least = min(most, max(longest, min(total, LEAST_ROWS), total // 2048))
    work = {}
    for rows in _grid(least, min(most, _up(total))):
        depth = cost.layers - typical.layer[_cut(typical.length, rows)[:-1]]
        work[rows] = float(depth.sum()) * (rows + cost.overhead)
    return min(n for n, each in work.items() if each <= SLACK * min(work.values()))


def rows_in_time(cost: Cost) -> int:
    """Return the rows that a chunk may run, so that a save never waits long for one."""
    flops = cost.layers * cost.row_flops
    if not flops or jax.default_backend() != "cpu":
        return 2**31
    return max(1, int(MOST_FLOPS / flops))


def _order(lanes: Lanes) -> Ints:
    """Sorts by layer; within one, alternates the longest and the shortest."""
    order = np.lexsort((lanes.cell, -lanes.length, lanes.layer))
    layer = lanes.layer[order]
    edges = np.flatnonzero(np.diff(layer, prepend=-1, append=-1))
    for a, b in itertools.pairwise(edges):
        group = order[a:b].copy()
        half = (len(group) + 1) // 2
        order[a:b:2] = group[:half]
        order[a + 1 : b : 2] = group[half:][::-1]
    return order


def _cut(length: Ints, rows: int) -> list[int]:
    """Cuts lanes, in order, into runs of at most `rows` rows."""
    ends = np.cumsum(length)
    cuts = [0]
    while cuts[-1] < len(length):
        done = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(int(np.searchsorted(ends, done + rows, side="right")))
    return cuts


def _up(n: int) -> int:
    """Round up to eight sizes per octave, at most 12 % too large."""
    return bucket(n, steps=8)


def _grid(low: int, high: int) -> Sequence[int]:
    """Lists the sizes that `_up` gives from `low` to `high`, the last few octaves."""
    sizes = [_up(low)]
    while sizes[-1] < high:
        sizes.append(_up(sizes[-1] + 1))
    return [s for s in sizes if s <= max(high, sizes[0])] or sizes[:1]
