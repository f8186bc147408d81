"""Where the nodes of a circuit lie, and how its edges run between them.

Rows are layers. An edge that passes rows takes a channel through each, between the
nodes, so that no edge runs behind a node that it does not touch. Rows are ordered by
barycentres (Sugiyama, Tagawa and Toda 1981), then each row is placed as near to its
neighbours as its order and its gaps allow, which is an isotonic regression.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mijax.viz._selection import LOGITS, Edge, points, shares

# Inches.
_HEAD, _MLP, _BAR = (0.62, 0.36), (0.42, 0.26), (0.80, 0.28)
_RAISED = 0.30  # an MLP stands above the heads of its layer, which it may read
_PORTS = {"q": -0.2, "k": 0.0, "v": 0.2}
_AROUND = 0.11
_SWEEPS = 24


class Box(NamedTuple):
    """A node: its middle and size in inches, and which of q, k, v are read."""

    name: str
    kind: str
    x: float
    y: float
    width: float
    height: float
    ports: dict[str, float]


class Row(NamedTuple):
    """A layer: its label, its lower and its upper end."""

    label: str
    low: float
    high: float


class Layout(NamedTuple):
    """A drawing in inches, from the lower left.

    Attributes:
        boxes: the nodes.
        curves: one per edge: cubic Bézier curves end to end, `[1 + 3 n, 2]`.
        rows: the layers, from below.
        width: of the drawing.
        height: of the drawing.
    """

    boxes: tuple[Box, ...]
    curves: tuple[Float[np.ndarray, "control 2"], ...]
    rows: tuple[Row, ...]
    width: float
    height: float


def lay_out(edges: Sequence[Edge]) -> Layout:
    """Lays a circuit out.

    Args:
        edges: the edges to draw, at least one.

    Returns:
        The drawing.
    """
    net = _net(edges)
    _order(net)
    leave, arrive = _ends(net, edges)
    x = _columns(net, leave, arrive)
    rows = _rows(net, x)
    boxes = tuple(
        Box(
            name,
            net.kinds[i],
            float(x[i]),
            rows[net.rank[i]].low + _HEAD[1] / 2 + _RAISED * (net.kinds[i] == "mlp"),
            float(net.width[i]),
            _size(net.kinds[i])[1],
            {e.port: _PORTS[e.port] for e in edges if e.port and e.node == name},
        )
        for i, name in enumerate(net.names)
    )
    curves = tuple(
        _curve(net, rows, boxes, x, chain, leave[e], arrive[e])
        for e, chain in enumerate(net.chains)
    )
    width = float(np.max(x + net.width / 2))
    return Layout(boxes, curves, rows, width, rows[-1].high)


@dataclass
class _Net:
    """Nodes first, then one channel per edge and row that it passes.

    Attributes:
        names: of the nodes.
        kinds: of the nodes.
        rank: the row of every item.
        width: of every item, in inches.
        chains: the items of each edge, from its sender to its receiver.
        links: lower item, upper item and edge of each stretch between two rows.
        beside: head, MLP and edge of each edge within a row.
        weight: of each edge.
        order: the items of each row from left to right.
        labels: of the rows.
    """

    names: list[str]
    kinds: list[str]
    rank: list[int]
    width: Float[np.ndarray, " item"]
    chains: list[list[int]]
    links: list[tuple[int, int, int]]
    beside: list[tuple[int, int, int]]
    weight: Float[np.ndarray, " edge"]
    order: list[list[int]]
    labels: list[str]


def _net(edges: Sequence[Edge]) -> _Net:
    places = {e.sender: e.start for e in edges} | {e.node: e.end for e in edges}
    names = sorted(places, key=lambda name: (places[name], name))
    levels = sorted({place.level for place in places.values()})
    rank = [levels.index(places[name].level) for name in names]
    kinds = [places[name].kind for name in names]
    degree = [
        max(sum(e.sender == n for e in edges), sum(e.node == n for e in edges))
        for n in names
    ]
    channels = _channels(edges)
    width = [_wide(k, d) for k, d in zip(kinds, degree, strict=True)]
    chains, links, beside = [], [], []
    for index, edge in enumerate(edges):
        start, end = names.index(edge.sender), names.index(edge.node)
        chain = [start]
        for between in range(rank[start] + 1, rank[end]):
            chain.append(len(rank))
            rank.append(between)
            width.append(channels[index])
        chain.append(end)
        chains.append(chain)
        into = links if rank[start] < rank[end] else beside
        into += [(a, b, index) for a, b in itertools.pairwise(chain)]
    order: list[list[int]] = [[] for _ in levels]
    for item, row in enumerate(rank):
        order[row].append(item)
    weight = 0.15 + np.array(shares(edges))
    labels = [f"Layer {level}" if 0 <= level < LOGITS else "" for level in levels]
    sizes = np.array(width)
    return _Net(names, kinds, rank, sizes, chains, links, beside, weight, order, labels)


def _channels(edges: Sequence[Edge]) -> list[float]:
    """Room for each edge in inches: its line and some air, less if there are many."""
    air = float(np.clip(3.5 / len(edges), 0.012, 0.05))
    return [points(part, len(edges)) / 72 + air for part in shares(edges)]


def _size(kind: str) -> tuple[float, float]:
    return {"head": _HEAD, "mlp": _MLP}.get(kind, _BAR)


def _wide(kind: str, degree: int) -> float:
    least = _size(kind)[0]
    if kind == "head":
        return least
    return float(np.clip(0.055 * degree, least, 0.8 if kind == "mlp" else 6.0))


def _order(net: _Net) -> None:
    """Sorts the rows, up and down by turns, and keeps the order that crosses least."""
    below: dict[int, list[tuple[int, float]]] = defaultdict(list)
    above: dict[int, list[tuple[int, float]]] = defaultdict(list)
    weight = net.weight.tolist()
    for a, b, edge in net.links:
        below[b].append((a, weight[edge]))
        above[a].append((b, weight[edge]))
    for a, b, edge in net.beside:
        for near in (below, above):
            near[a].append((b, weight[edge]))
            near[b].append((a, weight[edge]))
    x = np.zeros(len(net.rank))
    for row in net.order:
        _spread(net, row, x)
    best, fewest = [list(row) for row in net.order], np.inf
    for sweep in range(_SWEEPS if len(net.chains) <= 600 else _SWEEPS // 4):
        upwards = sweep % 2 == 0
        side = below if upwards else above
        for row in net.order if upwards else net.order[::-1]:
            centre = {
                i: sum(x[j] * w for j, w in near) / sum(w for _, w in near)
                if (near := side[i])
                else x[i]
                for i in row
            }
            row.sort(key=centre.__getitem__)
            _spread(net, row, x)
        crossings = _crossings(net, x)
        if crossings < fewest:
            best, fewest = [list(row) for row in net.order], crossings
    net.order[:] = best


def _spread(net: _Net, row: list[int], x: Float[np.ndarray, " item"]) -> None:
    """Puts the items of a row side by side around 0."""
    width = net.width[row] + _AROUND / 2
    x[row] = np.cumsum(width) - width / 2 - width.sum() / 2


def _crossings(net: _Net, x: Float[np.ndarray, " item"]) -> float:
    total = 0.0
    gaps = defaultdict(list)
    for a, b, edge in net.links:
        gaps[net.rank[a]].append((x[a], x[b], net.weight[edge]))
    for links in gaps.values():
        low, high, weight = np.array(links).T
        cross = (low[:, None] - low) * (high[:, None] - high) < 0
        total += float(weight @ cross @ weight) / 2
    for a, b, edge in net.beside:
        low, _, weight = np.array(gaps[net.rank[a]]).reshape(-1, 3).T
        cross = (low - x[a]) * (low - x[b]) < 0
        total += float(net.weight[edge] * (cross @ weight))
    return total


def _ends(
    net: _Net, edges: Sequence[Edge]
) -> tuple[Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]]:
    """Where each edge leaves and arrives, from the middle of its node.

    Edges of one node leave side by side, in the order in which they go on; they
    arrive so too, except at the query, key and value of a head, which have one place
    each.
    """
    x = np.zeros(len(net.rank))
    for row in net.order:
        _spread(net, row, x)
    leave, arrive = np.zeros(len(edges)), np.zeros(len(edges))
    for node in range(len(net.names)):
        for ends, at, next_to in ((leave, 0, 1), (arrive, -1, -2)):
            mine = [e for e, chain in enumerate(net.chains) if chain[at] == node]
            mine.sort(key=lambda e, i=next_to: (x[net.chains[e][i]], e))
            room = 0.8 * net.width[node]
            step = min(room / max(len(mine), 1), 0.09)
            for place, e in enumerate(mine):
                ends[e] = step * (place - (len(mine) - 1) / 2)
    for e, edge in enumerate(edges):
        if edge.port:
            arrive[e] = _PORTS[edge.port]
    return leave, arrive


def _columns(
    net: _Net, leave: Float[np.ndarray, " edge"], arrive: Float[np.ndarray, " edge"]
) -> Float[np.ndarray, " item"]:
    """Places the items of each row near those that they are joined to."""
    count, nodes = len(net.rank), len(net.names)
    near: list[list[tuple[int, float, float]]] = [[] for _ in range(count)]
    for a, b, edge in net.links:
        shift = float(leave[edge] * (a < nodes) - arrive[edge] * (b < nodes))
        # Long stretches are kept straight before short ones are kept short.
        channels = (a >= nodes) + (b >= nodes)
        weight = float(net.weight[edge]) * (1, 2, 6)[channels]
        near[b].append((a, shift, weight))
        near[a].append((b, -shift, weight))
    x = np.zeros(count)
    for row in net.order:
        _spread(net, row, x)
    for sweep in range(_SWEEPS):
        for row in net.order if sweep % 2 == 0 else net.order[::-1]:
            wish, weight = np.array(x[row]), np.full(len(row), 1e-3)
            for place, item in enumerate(row):
                if near[item]:
                    total = sum(pull for *_, pull in near[item])
                    wish[place] = sum((x[i] + s) * pull for i, s, pull in near[item])
                    wish[place] /= total
                    weight[place] = total
            x[row] = _separate(wish, weight, _distances(net, row))
    return x - np.min(x - net.width / 2)


def _distances(net: _Net, row: list[int]) -> Float[np.ndarray, " item"]:
    """Least distances of the middles of neighbours, 0 for the first."""
    half = net.width[row] / 2
    node = np.array(row) < len(net.names)
    space = np.where(node[1:] & node[:-1], _AROUND, _AROUND / 2)
    space[~(node[1:] | node[:-1])] = 0.0
    return np.concatenate([[0.0], half[1:] + half[:-1] + space])


def _separate(
    wish: Float[np.ndarray, " item"],
    weight: Float[np.ndarray, " item"],
    distance: Float[np.ndarray, " item"],
) -> Float[np.ndarray, " item"]:
    """The places nearest to the wishes that keep the order and the distances."""
    offset = np.cumsum(distance)
    pools: list[list[float]] = []  # mean, weight, items: the pool adjacent violators
    for value, pull in zip((wish - offset).tolist(), weight.tolist(), strict=True):
        pools.append([value, pull, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, mass, items = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * mass) / (last[1] + mass)
            last[1] += mass
            last[2] += items
    return np.repeat([p[0] for p in pools], [int(p[2]) for p in pools]) + offset


def _rows(net: _Net, x: Float[np.ndarray, " item"]) -> tuple[Row, ...]:
    """Heights of the rows: the farther edges go sideways, the more room they have."""
    rows, y = [], 0.0
    far = np.zeros(len(net.order))  # sideways, of the heavier edges
    for a, b, edge in net.links:
        far[net.rank[a]] = max(far[net.rank[a]], net.weight[edge] * abs(x[a] - x[b]))
    for index, label in enumerate(net.labels):
        kinds = {net.kinds[i] for i in net.order[index] if i < len(net.names)}
        high = y + _HEAD[1] + (_RAISED - 0.04) * ("mlp" in kinds)
        rows.append(Row(label, y, high))
        y = high + float(np.clip(0.3 + 0.13 * far[index], 0.44, 0.9))
    return tuple(rows)


def _curve(
    net: _Net,
    rows: Sequence[Row],
    boxes: Sequence[Box],
    x: Float[np.ndarray, " item"],
    chain: list[int],
    leave: float,
    arrive: float,
) -> Float[np.ndarray, "control 2"]:
    start, end = boxes[chain[0]], boxes[chain[-1]]
    x0, y0 = start.x + leave, start.y + start.height / 2
    if net.rank[chain[0]] == net.rank[chain[-1]]:  # from a head to the MLP beside it
        side = -1 if start.x < end.x else 1
        # Those from afar run above those from nearby.
        rise = side * arrive / end.width * 0.9 * end.height
        x1, y1 = end.x + side * end.width / 2, end.y + rise
        bend = 0.5 * abs(x1 - x0)
        return np.array([(x0, y0), (x0, y1), (x1 + side * bend, y1), (x1, y1)])
    x1, y1 = end.x + arrive, end.y - end.height / 2
    stops = [(x0, y0), (x0, rows[net.rank[chain[0]]].high)]
    for item in chain[1:-1]:
        row = rows[net.rank[item]]
        stops += [(x[item], row.low), (x[item], row.high)]
    stops += [(x1, rows[net.rank[chain[-1]]].low), (x1, y1)]
    controls = [np.array(stops[0])]
    for (xa, ya), (xb, yb) in itertools.pairwise(stops):
        if (xa, ya) != (xb, yb):
            middle = (ya + yb) / 2
            controls += [np.array((xa, middle)), np.array((xb, middle))]
            controls.append(np.array((xb, yb)))
    return np.stack(controls)
