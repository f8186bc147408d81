"""Plans of a sweep: which lanes run, from where, and packed into which chunks.

All of this is integer bookkeeping on the host; what it decides travels to the device
as data, so every plan of one shape runs in the same compiled program.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

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
        """Returns the tiles of each chunk; the last may have fewer."""
        starts = range(0, len(self.tiles), self.per_chunk)
        return [self.tiles[i : i + self.per_chunk] for i in starts]


class Cost(NamedTuple):
    """What running costs, for choosing sizes.

    Attributes:
        layers: number of layers of the model.
        state_bytes: memory of a row that waits between layers.
        row_bytes: working memory of a row.
        lane_bytes: working memory of a lane.
        overhead: rows that a tile's fixed cost per layer is worth.
    """

    layers: int
    state_bytes: float
    row_bytes: float
    lane_bytes: float
    overhead: int


# Matrix products of fewer rows than this do not use all cores of a CPU.
LEAST_ROWS = 384
# More tiles in a chunk save little, and progress and interruption come between chunks.
MOST_TILES = 16


def layer_overhead() -> int:
    """Returns the rows that the fixed cost of a call is worth in each layer."""
    return 24 if jax.default_backend() == "cpu" else 2048


def pack(lanes: Lanes, cost: Cost, memory: int) -> Plan:
    """Packs lanes into tiles so that few rows are computed in vain.

    A tile runs from the lowest first layer of its lanes, so lanes are taken by layer;
    within a layer long and short suffixes alternate, so tiles hold like numbers of
    lanes. The number of rows is the one with the least work within the memory budget.

    Args:
        lanes: what is to run; not empty.
        cost: of rows and lanes.
        memory: bytes that a chunk may take.

    Returns:
        The plan.
    """
    lanes = lanes.take(_order(lanes))
    longest, total = int(lanes.length.max()), int(lanes.length.sum())
    per_row = cost.row_bytes + cost.lane_bytes / lanes.length.mean() + cost.state_bytes
    most = max(longest, int(memory / per_row))
    least = min(most, max(longest, min(total, LEAST_ROWS), total // 2048))
    best: tuple[float, int, list[int]] | None = None
    for rows in _grid(least, min(most, _up(total))):
        cuts = _cut(lanes.length, rows)
        depth = float((cost.layers - lanes.layer[cuts[:-1]]).sum())
        work = depth * (rows + cost.overhead)
        if best is None or work < best[0]:
            best = work, rows, cuts
    assert best is not None
    _, rows, cuts = best
    tiles = [lanes.take(np.arange(a, b)) for a, b in itertools.pairwise(cuts)]
    spare = memory - rows * (per_row - cost.state_bytes)
    fit = max(1, int(spare / (rows * cost.state_bytes)))
    size = _up(max(len(tile.cell) for tile in tiles))
    per_chunk = min(fit, MOST_TILES, len(tiles))
    return Plan(tiles, per_chunk, rows, size, _up(longest))


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
    """Rounds up to eight steps per octave: few sizes, at most 12 % too large."""
    step = 2 ** max(0, (int(n) - 1).bit_length() - 4)
    return -(-int(n) // step) * step


def _grid(low: int, high: int) -> Sequence[int]:
    """Lists the sizes that `_up` gives from `low` to `high`, the last few octaves."""
    sizes = [_up(low)]
    while sizes[-1] < high:
        sizes.append(_up(sizes[-1] + 1))
    return [s for s in sizes if s <= max(high, sizes[0])] or sizes[:1]
