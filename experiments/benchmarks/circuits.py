"""Circuit discovery of mijax beside the reference implementation of EAP-IG.

GPT-2 small's shape with random weights, 8 prompts of 15 tokens that differ from their
counterparts from the first token on, all 32,491 edges. Every method runs in mijax and,
where a Python with the peer is given, in the peer right after it, on the same machine
with the same threads; scores are compared. Printed are seconds with and without compile
time, their ratio to the peer's, and the peak memory of this process so far. `exact`
patches every edge of one prompt, once, compilation included; its floor is the matrix
products of the rows that have to be run over the machine's measured rate; the peer
patches a few of its edges. `acdc` compares speculative batches with one candidate at a
time.

The peer needs an environment of its own: see `_peers/eap_ig.py`.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _interleave import (
    Side,
    Worker,
    compiling,
    interleave,
    options,
    ratios,
    timed,
    write,
)
from sweeps import per_row, weights

import mijax
from mijax import circuits

EXAMPLE = """example:
  python experiments/benchmarks/circuits.py --peer PEER/bin/python --eap-ig EAP-IG
  python experiments/benchmarks/circuits.py --only eap exact --out circuits.json
"""
METHODS: dict[str, circuits.AbstractMethod] = {
    "eap": circuits.EAP(),
    "eap_ig_inputs": circuits.EAPIG(steps=5),
    "eap_ig_activations": circuits.EAPIGActivations(steps=5),
}
BATCHES = {"batched": 32, "sequential": 1}
EVERY = (*METHODS, "exact", "acdc-induction", "acdc-smollm2")


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--eap-ig", help="working tree of the reference")
    parser.add_argument("--only", nargs="+", choices=EVERY, default=list(EVERY))
    parser.add_argument("--prompts", type=int, default=8, help="prompts (default 8)")
    parser.add_argument("--exact-prompts", type=int, default=1, help="of `exact`")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            found = case(name, Path(scratch), arguments)
            results.append({"case": name, **found})
            print(json.dumps(results[-1]), flush=True)
    write(arguments.out, results)


def case(name: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one case."""
    if name.startswith("acdc"):
        return acdc(name.removeprefix("acdc-"), arguments)
    folder = weights(scratch / "gpt2-small-random")
    model = mijax.models.load(str(folder)).model
    random = np.random.default_rng(0)
    shape = (arguments.prompts, 15)
    clean, corrupt = (random.integers(0, 50257, shape).astype(np.int32) for _ in "ab")
    file = scratch / "prompts.npz"
    answers: dict[str, Any] = {"answer": np.full(shape[0], 100)}
    answers["wrong"] = np.full(shape[0], 200)
    np.savez(file, clean=clean, corrupt=corrupt, **answers)
    worker = None
    if arguments.peer and arguments.eap_ig:
        words = ["--eap-ig", arguments.eap_ig, "--methods", name]
        words += ["--weights", folder / "model.safetensors", "--tokens", file]
        words += ["--out", scratch / "peer.npz"]
        worker = Worker(arguments.peer, "eap_ig.py", *words)
    if name == "exact":
        keep = slice(arguments.exact_prompts)
        found = exact(model, (clean[keep], corrupt[keep]), worker, arguments)
    else:
        given = (clean, corrupt)
        found, scores = attribution(model, given, METHODS[name], worker, arguments)
        if worker is not None:
            with np.load(scratch / "peer.npz") as theirs:
                error = np.abs(scores - theirs[name]).max() / np.abs(theirs[name]).max()
            found["largest_relative_difference"] = float(f"{error:.1e}")
    if worker is not None:
        worker.close()
        found["peer_name"] = worker.last["peer"]
    return found | {"peak_gb": round(peak(), 2)}


def attribution(
    model: Any,
    prompts: tuple[np.ndarray, np.ndarray],
    method: circuits.AbstractMethod,
    worker: Worker | None,
    arguments: argparse.Namespace,
) -> tuple[dict[str, Any], np.ndarray]:
    """Times a method with compilation, without, and in the peer."""
    task = circuits.Task(*prompts, metric=mijax.logit_difference(100, 200))
    discover = lambda: circuits.discover(model, task, method).values  # noqa: E731
    sides = {"with_compile": compiling(timed(discover)), "mijax": timed(discover)}
    if worker is not None:
        sides["peer"] = worker.seconds
    found = interleave(sides, rounds=arguments.rounds)
    found["edges"] = circuits.Graph.of(model).n_edges
    if worker is not None:
        found["ratio"] = ratios(found, "peer", "mijax")
        found["ratio_with_compile"] = ratios(found, "peer", "with_compile")
    return found, np.asarray(discover())


def exact(
    model: Any,
    prompts: tuple[np.ndarray, np.ndarray],
    worker: Worker | None,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Patches every edge, compilation included, and states the floor of it."""
    task = circuits.Task(*prompts, metric=mijax.logit_difference(100, 200))
    graph = circuits.Graph.of(model)
    method = circuits.Exact()
    discover = lambda: circuits.discover(model, task, method).values  # noqa: E731
    sides = {"with_compile": compiling(timed(discover))}
    if worker is not None:
        sides["peer"] = worker.seconds
    found = interleave(sides, rounds=arguments.rounds)
    edges = graph.n_edges * len(prompts[0])
    flops = floor_flops(model, graph, prompts[0].shape) / 1e9
    found |= {
        "edges": edges,
        "fraction_of_floor": [
            round(flops / min(row["gflops"]) / row["with_compile"], 3)
            for row in found["rounds"]
        ],
    }
    if worker is None:
        return found
    # The peer runs a few of the edges of all prompts.
    run = worker.last["exact_edges"] * arguments.prompts
    at = ratios(found, "peer", "with_compile")
    scaled = {key: round(value * edges / run, 1) for key, value in at.items()}
    return found | {"peer_edges_run": run, "ratio_with_compile": scaled}


def acdc(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times ACDC with speculative batches and one candidate at a time."""
    if name == "induction":
        model = mijax.models.load("induction-2l").model
        vocab = model.embedding.weight.shape[0]
        pairs = mijax.data.induction(vocab, 8, length=10)
        threshold = 0.05
    else:
        loaded = mijax.models.load("smollm2-135m-instruct")
        model, threshold = loaded.model, 0.3
        pairs = mijax.data.ioi(loaded.tokenizer, 16).of_length()[:1]
    task = circuits.Task.of(pairs)
    kept: dict[str, Any] = {}

    def side(label: str, batch: int) -> Side:
        method = circuits.ACDC(batch=batch)
        # Nothing is kept at an infinite threshold: a short search that compiles.
        circuits.acdc_thresholds(model, task, [np.inf], method=method)

        def search() -> Any:
            kept[label] = circuits.acdc_thresholds(
                model, task, [threshold], method=method
            )
            return kept[label].edges

        return timed(search)

    sides = {name: side(name, batch) for name, batch in BATCHES.items()}
    found = interleave(sides, rounds=arguments.rounds)
    found |= {"threshold": threshold, "prompts": len(task)}
    for label, done in kept.items():
        found[f"{label}_forwards"] = int(done.forwards[0])
        found[f"{label}_calls"] = int(done.calls[0])
    edges = [done.edges[0] for done in kept.values()]
    return found | {
        "edges": int(edges[0].sum()),
        "equal": bool((edges[0] == edges[1]).all()),
        "ratio": ratios(found, "sequential", "batched"),
    }


def floor_flops(model: Any, graph: circuits.Graph, shape: tuple[int, int]) -> float:
    """Counts the products that no edge can do without.

    An edge into a head re-runs the MLP of its layer and all layers after it, one into
    an MLP that MLP and the layers after it, at every position.
    """
    prompts, seq = shape
    whole = per_row(model)
    mlp = sum(a[0].size for a in (model.blocks.mlp.w_in, model.blocks.mlp.w_out))
    rows = 0.0
    for receiver, count in zip(graph.receivers, graph.edges.sum(0), strict=True):
        if receiver != "logits":
            layer = int(receiver[1:].split(".")[0])
            rows += count * ((graph.n_layers - 1 - layer) * whole + mlp)
    return 2 * rows * prompts * seq


def peak() -> float:
    """Returns the largest resident size of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
