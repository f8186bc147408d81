"""Groups of nodes, and features shared by several prompts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mijax._errors import ConfigError, ShapeError, SiteError
from mijax.graphs._graph import FEATURE, AttributionGraph


class Supernodes(NamedTuple):
    """A graph whose nodes are groups.

    Attributes:
        names: labels of the groups, then names of the ungrouped nodes.
        edges: sums of the effects between members, `[target, source]`, without effects
            inside a group.
        influence: sums of the members' influence.
    """

    names: tuple[str, ...]
    edges: Float[np.ndarray, "group group"]
    influence: Float[np.ndarray, " group"]


def contract(
    graph: AttributionGraph, groups: Mapping[str, Sequence[str]]
) -> Supernodes:
    """Merge nodes into groups.

    Args:
        graph: a graph.
        groups: names of nodes (`f3.17@5`) by label, each in at most one group.

    Returns:
        The graph with groups as nodes.

    Raises:
        ConfigError: a node in two groups, or a label that is the name of a node.
        SiteError: a node that the graph does not have.

    Examples:
        >>> edges = np.zeros((4, 4))
        >>> edges[3, :2], edges[:2, 2] = [2, 1], [1, 3]
        >>> kinds = ["feature", "feature", "token", "logit"]
        >>> graph = AttributionGraph.by_hand(edges, kinds)
        >>> found = contract(graph, {"both": ["f0.0@0", "f0.1@0"]})
        >>> found.names, found.edges[0, 1].item(), found.edges[2, 0].item()
        (('both', 'token@0', 'logit3'), 4.0, 3.0)
    """
    names = graph.names
    place = {name: i for i, name in enumerate(names)}
    member: dict[int, int] = {}
    for number, (label, group) in enumerate(groups.items()):
        if label in place:
            raise ConfigError(f"The label {label!r} names a node: choose another.")
        for name in group:
            if name not in place:
                raise SiteError(f"The graph has no node {name!r} (group {label!r}).")
            if place[name] in member:
                raise ConfigError(f"The node {name!r} is in two groups: choose one.")
            member[place[name]] = number
    alone = [i for i in range(len(names)) if i not in member]
    where = np.array(
        [member.get(i, -1) for i in range(len(names))],
    )
    where[alone] = len(groups) + np.arange(len(alone))
    size = len(groups) + len(alone)
    join = np.zeros((size, len(names)))
    join[where, np.arange(len(names))] = 1.0
    edges = join @ graph.edges @ join.T
    np.fill_diagonal(edges, 0.0)
    return Supernodes(
        (*groups, *(names[i] for i in alone)), edges, join @ graph.influence()
    )


def cluster(graph: AttributionGraph, *, groups: int) -> dict[str, tuple[str, ...]]:
    """Group features with similar sources and targets.

    Average-linkage clustering with the cosine distance between the features' normalized
    incoming and outgoing effects (SciPy). Treat the groups as a starting point for
    inspection, not as a finding.

    Args:
        graph: a graph, pruned first.
        groups: number of groups.

    Returns:
        Names of the features in each group, largest group first, for `contract` and
        `save_graph`. A group's label is its most influential member in parentheses.

    Raises:
        ConfigError: fewer than 1 group, or more groups than features.

    Examples:
        >>> edges = np.zeros((5, 5))
        >>> edges[4, :3], edges[:3, 3] = [2, 1, -1], [1, 3, 1]
        >>> kinds = ["feature"] * 3 + ["token", "logit"]
        >>> sorted(cluster(AttributionGraph.by_hand(edges, kinds), groups=2).values())
        [('f0.0@0', 'f0.1@0'), ('f0.2@0',)]
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # noqa: PLC0415

    ours = np.flatnonzero(graph.kind == FEATURE)
    if not 1 <= groups <= len(ours):
        raise ConfigError(
            f"Expected 1 to {len(ours)} groups, one per feature at most, got {groups}."
        )
    both = np.concatenate([graph.edges[ours], graph.edges[:, ours].T], axis=1)
    length = np.linalg.norm(both, axis=1, keepdims=True)
    both = both / np.where(length == 0, 1.0, length)
    labels = np.ones(len(ours), int)
    if len(ours) > 1:
        # For unit vectors, the squared Euclidean distance is twice the cosine distance,
        # and it is also defined for a zero vector.
        tree = linkage(both, "average", metric="sqeuclidean")
        labels = fcluster(tree, groups, "maxclust")
    names, influence = np.array(graph.names)[ours], graph.influence()[ours]
    found = {}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        best = members[np.argmax(influence[members])]
        found[f"({names[best]})"] = tuple(names[members].tolist())
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))


class Shared(NamedTuple):
    """Features in several graphs.

    Attributes:
        features: layer and index of every feature in any graph, sorted by total
            influence over all graphs, largest first.
        influence: influence of each feature in each graph, summed over positions,
            `[graph, feature]`; 0 if it is not active.
        similarity: cosine similarity between the graphs' influences, `[graph, graph]`.
    """

    features: Int[np.ndarray, "feature 2"]
    influence: Float[np.ndarray, "graph feature"]
    similarity: Float[np.ndarray, "graph graph"]


def compare(graphs: Sequence[AttributionGraph]) -> Shared:
    """Compare the graphs of several prompts feature by feature.

    Args:
        graphs: graphs from one replacement model.

    Returns:
        The influence of every feature in every graph.

    Raises:
        ShapeError: no graphs, or graphs from models with different numbers of layers.

    Examples:
        >>> edges = np.array([[0.0, 2.0, 0.0], [0, 0, 0], [1.5, 0, 0]])
        >>> graph = AttributionGraph.by_hand(edges, ["feature", "token", "logit"])
        >>> compare([graph, graph]).similarity.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if not len(graphs) or len({graph.layers for graph in graphs}) != 1:
        raise ShapeError(
            "Expected graphs from one replacement model, got "
            f"{sorted({graph.layers for graph in graphs}) or 'none'} layers."
        )
    each = []
    for graph in graphs:
        total, influence = {}, graph.influence()
        for i in np.flatnonzero(graph.kind == FEATURE):
            key = int(graph.layer[i]), int(graph.index[i])
            total[key] = total.get(key, 0.0) + float(influence[i])
        each.append(total)
    keys = sorted({key for one in each for key in one})
    table = np.array([[one.get(key, 0.0) for key in keys] for one in each])
    order = np.argsort(-table.sum(0), kind="stable")
    length = np.linalg.norm(table, axis=1)
    size = np.where(length == 0, 1.0, length)
    return Shared(
        np.array(keys, int).reshape(-1, 2)[order],
        table[:, order],
        (table @ table.T) / (size[:, None] * size),
    )
