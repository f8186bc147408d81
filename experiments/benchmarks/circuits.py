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
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sweeps import PEERS, machine, matmul_rate, per_row, weights

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
EVERY = (*METHODS, "exact", "acdc-induction", "acdc-smollm2")


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python with the peer installed")
    parser.add_argument("--eap-ig", help="working tree of the reference")
    parser.add_argument("--only", nargs="+", choices=EVERY, default=list(EVERY))
    parser.add_argument("--prompts", type=int, default=8, help="prompts (default 8)")
    parser.add_argument("--exact-prompts", type=int, default=1, help="of `exact`")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            found = case(name, Path(scratch), arguments)
            results.append({"case": name, **found})
            print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"on": machine(), "cases": results}))


def case(name: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one case."""
    if name.startswith("acdc"):
        return acdc(name.removeprefix("acdc-"))
    folder = weights(scratch / "gpt2-small-random")
    model = mijax.models.load(str(folder)).model
    random = np.random.default_rng(0)
    shape = (arguments.prompts, 15)
    clean, corrupt = (random.integers(0, 50257, shape).astype(np.int32) for _ in "ab")
    scores = np.zeros(())
    if name == "exact":
        keep = slice(arguments.exact_prompts)
        ours = exact(model, clean[keep], corrupt[keep])
    else:
        ours, scores = attribution(model, clean, corrupt, METHODS[name])
    if not arguments.peer or not arguments.eap_ig:
        return ours
    np.savez(
        scratch / "prompts.npz",
        clean=clean,
        corrupt=corrupt,
        answer=np.full(shape[0], 100),
        wrong=np.full(shape[0], 200),
    )
    command = [arguments.peer, str(PEERS / "eap_ig.py"), "--eap-ig", arguments.eap_ig]
    command += ["--weights", str(folder / "model.safetensors")]
    command += ["--tokens", str(scratch / "prompts.npz")]
    command += ["--out", str(scratch / "peer.npz"), "--methods", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    theirs = json.loads(done.stdout[done.stdout.index("{") :])
    seconds = theirs["seconds"][name]
    found = ours | {"peer": theirs["peer"], "peer_seconds": seconds}
    if name == "exact":
        rate = theirs["exact_edges"] * arguments.prompts / seconds
        return found | {
            "peer_edges_run": theirs["exact_edges"],
            "peer_edges_per_second": round(rate, 2),
            "ratio": round(ours["edges_per_second"] / rate, 1),
        }
    with np.load(scratch / "peer.npz") as file:
        error = np.abs(scores - file[name]).max() / np.abs(file[name]).max()
    return found | {
        "ratio": round(seconds / ours["seconds"], 1),
        "ratio_with_compile": round(seconds / ours["with_compile"], 1),
        "largest_relative_difference": float(f"{error:.1e}"),
    }


def attribution(
    model: Any, clean: np.ndarray, corrupt: np.ndarray, method: circuits.AbstractMethod
) -> tuple[dict[str, Any], np.ndarray]:
    """Times a method with compilation and without."""
    task = circuits.Task(clean, corrupt, metric=mijax.logit_difference(100, 200))

    def once() -> tuple[float, circuits.Scores]:
        start = time.perf_counter()
        found = circuits.discover(model, task, method)
        found.values.block_until_ready()
        return time.perf_counter() - start, found

    first, found = once()
    best = min(once()[0], once()[0])
    return {
        "edges": found.graph.n_edges,
        "with_compile": round(first, 2),
        "seconds": round(best, 2),
        "peak_gb": round(peak(), 2),
    }, np.asarray(found.values)


def exact(model: Any, clean: np.ndarray, corrupt: np.ndarray) -> dict[str, Any]:
    """Patches every edge, and states the floor of it."""
    task = circuits.Task(clean, corrupt, metric=mijax.logit_difference(100, 200))
    graph = circuits.Graph.of(model)
    start = time.perf_counter()
    found = circuits.discover(model, task, circuits.Exact())
    found.values.block_until_ready()
    seconds = time.perf_counter() - start
    edges = graph.n_edges * len(clean)
    floor = floor_flops(model, graph, clean.shape) / matmul_rate()
    return {
        "edges": edges,
        "with_compile": round(seconds, 2),
        "edges_per_second": round(edges / seconds, 1),
        "floor_seconds": round(floor, 1),
        "share_of_floor": round(floor / seconds, 3),
        "peak_gb": round(peak(), 2),
    }


def acdc(name: str) -> dict[str, Any]:
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
    found: dict[str, Any] = {"threshold": threshold, "prompts": len(task)}
    kept = []
    for batch in (32, 1):
        method = circuits.ACDC(batch=batch)
        # Nothing is kept at an infinite threshold: a short search that compiles.
        circuits.acdc_thresholds(model, task, [np.inf], method=method)
        start = time.perf_counter()
        sweep = circuits.acdc_thresholds(model, task, [threshold], method=method)
        seconds = time.perf_counter() - start
        label = "batched" if batch > 1 else "sequential"
        found[f"{label}_seconds"] = round(seconds, 2)
        found[f"{label}_forwards"] = int(sweep.forwards[0])
        found[f"{label}_calls"] = int(sweep.calls[0])
        kept.append(sweep.edges[0])
    same = bool((kept[0] == kept[1]).all())
    ratio = found["sequential_seconds"] / found["batched_seconds"]
    edges = {"edges": int(kept[0].sum()), "equal": same, "ratio": round(ratio, 1)}
    return found | edges


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
