"""Plans of a sweep: which lanes run, from where, and packed into which chunks.

All of this is integer bookkeeping on the host; what it decides travels to the device
as data, so every plan of one shape runs in the same compiled program.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

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
    """Chunks of lanes with common static sizes.

    Attributes:
        lanes: the lanes of every chunk.
        rows: rows of a chunk.
        width: longest suffix of a chunk.
        size: lanes of a chunk.
    """

    lanes: list[Lanes]
    rows: int
    width: int
    size: int


def pack(
    lanes: Lanes, *, layers: int, row_bytes: float, lane_bytes: float, memory: int
) -> Plan:
    """Packs lanes into chunks so that few rows are computed in vain.

    A chunk runs from the lowest first layer of its lanes, so lanes are taken by layer;
    within a layer long and short suffixes alternate, so chunks hold like numbers of
    lanes. The number of rows is the one with the least work within the memory budget.

    Args:
        lanes: what is to run; not empty.
        layers: number of layers of the model.
        row_bytes: working memory per row.
        lane_bytes: working memory per lane.
        memory: bytes that a chunk may take.

    Returns:
        The plan.
    """
    order = _order(lanes)
    lanes = lanes.take(order)
    longest = int(lanes.length.max())
    per_row = row_bytes + lane_bytes / lanes.length.mean()
    most = max(longest, int(memory / per_row))
    total = int(lanes.length.sum())
    # Small chunks multiply small matrices; very many of them only cost time to plan.
    least = min(most, max(longest, min(total, 256), total // 2048))
    best: tuple[float, int, list[int]] | None = None
    for rows in _grid(least, min(most, _up(total))):
        cuts = _cut(lanes.length, rows)
        depth = layers - lanes.layer[cuts[:-1]]
        # Each layer of a chunk also reads the layer's weights, worth about 64 rows.
        cost = float(depth.sum()) * (rows + 64)
        if best is None or cost < best[0]:
            best = cost, rows, cuts
    assert best is not None
    _, rows, cuts = best
    chunks = [lanes.take(np.arange(a, b)) for a, b in itertools.pairwise(cuts)]
    size = _up(max(len(chunk.cell) for chunk in chunks))
    return Plan(chunks, rows, _up(longest), size)


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
