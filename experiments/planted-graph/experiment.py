"""Attribution graphs of networks whose graphs are known.

Paper: Ameisen, Lindsey et al. 2025, "Circuit Tracing: Revealing Computational Graphs in
Language Models", transformer-circuits.pub/2025/attribution-graphs/methods.html, for the
graphs; there the true graph of a model is not known.

Claim: where transcoders are exact and features do not interfere, the graph is the true
one. Networks of three layers have two planted paths to a logit, one of which crosses
tokens through an attention head, among neurons that fire and lead nowhere. Nodes and
edges with influence on the logit are the planted ones, all of them and no other, in
every network; removing a feature does what the graph predicts. As a control, the same
is asked of graphs whose transcoders have their decoder rows permuted: what they show is
not the planted graph, and their replacement score says so.

Command:
    mijax run planted-graph

Runtime: see experiments/README.md.
"""

import dataclasses

import numpy as np

import mijax.experiment
from mijax import dictionaries, graphs, viz

from ._network import TARGET, WIDTH, Planted, planted

# Influence and effects below this are rounding.
SMALL = 1e-5
Transcoders = dict[int, dictionaries.Dictionary]


class Config(mijax.experiment.Config):
    """Number of networks and seed."""

    networks: int = 20
    "Networks."
    seed: int = 0
    "Seed of the first network; others follow."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Run the experiment."""
    run.seed("networks", config.seed)
    rows, verified, scores, controls = [], [], [], []
    with run.progress("networks") as progress:
        for i in range(config.networks):
            case = planted(config.seed + i)
            replacement = graphs.Replacement.of(case.model, case.transcoders)
            graph = graph_of(case, case.transcoders)
            found = recovered(case, graph)
            control = graph_of(case, shuffled(case, seed=config.seed + i))
            controls.append([*recovered(case, control), control.quality().replacement])
            scores.append(graph.quality().replacement)
            verified.append(graphs.verify(replacement, case.tokens, graph, features=8))
            rows.append([i, *found, scores[-1], verified[-1].largest_error])
            if not i:
                page(case, graph, verified[-1], run)
            progress(i + 1, config.networks)
    table = np.array(rows, float)
    other = np.array(controls, float)
    names = ["node precision", "node recall", "edge precision", "edge recall"]
    for column, name in enumerate(names):
        run.number(
            name.replace(" ", "_"), table[:, column + 1].min(), note="worst network"
        )
    run.number("replacement", table[:, 5].min(), note="score of the worst network")
    run.number("largest_error", table[:, 6].max(), note="of a predicted removal")
    run.number("control_edge_recall", other[:, 3].mean(), note="decoder rows permuted")
    run.number("control_replacement", other[:, 4].mean(), note="decoder rows permuted")
    run.table(
        "networks",
        columns=["network", *names, "replacement", "error of removals"],
        rows=rows,
    )
    removal(verified, run)


def graph_of(case: Planted, transcoders: Transcoders) -> graphs.AttributionGraph:
    """Return the graph of the planted logit."""
    replacement = graphs.Replacement.of(case.model, transcoders)
    return graphs.attribute(
        replacement, case.tokens, targets=[TARGET], left_out=0, progress=False
    )


def shuffled(case: Planted, *, seed: int) -> Transcoders:
    """Return the transcoders with their decoder rows permuted."""
    order = np.random.default_rng(seed).permutation(WIDTH)
    return {
        layer: dataclasses.replace(
            one,
            weights=dataclasses.replace(
                one.weights, decoder=one.weights.decoder[order]
            ),
        )
        for layer, one in case.transcoders.items()
    }


def recovered(case: Planted, graph: graphs.AttributionGraph) -> list[float]:
    """Return precision and recall of nodes and of edges that matter to the logit."""
    matters = graph.influence() > SMALL
    matters |= graph.where("logit")
    names = np.array(graph.names)
    nodes = set(names[matters])
    strong = np.abs(graph.edges) > SMALL
    targets, sources = np.nonzero(strong & matters[:, None] & matters)
    edges = set(zip(names[sources], names[targets], strict=True))
    pairs = ((nodes, case.nodes), (edges, case.edges))
    return [
        len(found & true) / max(len(size), 1)
        for found, true in pairs
        for size in (found, true)
    ]


def page(
    case: Planted,
    graph: graphs.AttributionGraph,
    verified: graphs.Verified,
    run: mijax.experiment.Run,
) -> None:
    """Write the page of one network."""
    run.page(
        "graph",
        viz.graph_page(graph, title="Planted graph", verified=verified),
        caption="Graph of the first network, neurons that lead nowhere included.",
    )


def removal(verified: list[graphs.Verified], run: mijax.experiment.Run) -> None:
    """Draw predicted against measured changes of the logit."""
    path = np.concatenate([one.path.ravel() for one in verified])
    total = np.concatenate([one.total.ravel() for one in verified])
    run.figure(
        "removals",
        viz.score_scatter(
            total,
            path,
            title="Change of the logit when a feature is removed",
            x="Measured change (logits)",
            y="Predicted along all paths (logits)",
            outliers=0,
        ),
        caption="Each point is a feature that was removed.",
    )
