"""Training steps of dictionaries in mijax beside SAELens and dictionary_learning.

768 numbers, 24,576 latents, batches of 4,096, TopK (k = 32) and ReLU, the same weights
and the same data everywhere. Printed are seconds of a step without compile time, tokens
per second, the ratio to each peer, the largest relative difference of the losses of the
first steps, and the floor: for TopK one dense encoder product, for ReLU the five dense
products of encoder and decoder, forwards and backwards, over the machine's measured
rate. `lanes` compares dictionaries trained together with one after another.

Peers need environments of their own: see `_peers/dictionary_step.py`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _interleave import Worker, compiling, interleave, options, ratios, timed, write

import mijax
from mijax import dictionaries as d

EXAMPLE = """example:
  python experiments/benchmarks/dictionaries.py --peer PEER/bin/python
  python experiments/benchmarks/dictionaries.py --only topk --embed 256 --latents 2048
"""
CASES = ("topk", "relu", "lanes")
LIBRARIES = ("dictionary_learning", "saelens")
K, SPARSITY, RATE = 32, 0.01, 3e-4


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--embed", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24576)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default 5)")
    parser.add_argument("--dtype", default="float32", help="of products")
    arguments = parser.parse_args()
    results = []
    for name in arguments.only:
        found = lanes(arguments) if name == "lanes" else case(name, arguments)
        results.append({"case": name, **found})
        print(json.dumps(results[-1]), flush=True)
    write(arguments.out, results)


def case(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times steps of one architecture, here and in the peers."""
    embed, latents, batch = arguments.embed, arguments.latents, arguments.batch
    random = np.random.default_rng(0)
    x = random.normal(size=(2 * batch, embed)).astype(np.float32)
    training = d.Training(
        d.TopK(K, aux=0.0) if name == "topk" else d.ReLU(SPARSITY),
        d.SAE(embed),
        latents=latents,
        steps=arguments.steps + 1,
        learning_rate=RATE,
        clip=None,
        dtype=arguments.dtype,
    )
    source = mijax.data.Examples(x, batch=batch)
    firsts: list[float] = []
    losses: list[float] = []

    def ours() -> float:
        first, seconds, losses[:] = stepped(training, source, arguments.steps)
        firsts.append(round(first, 2))
        return seconds

    sides = {"mijax": compiling(ours)}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.peer:
            file = start_file(training, source, arguments.steps, Path(scratch))
            for library in LIBRARIES:
                workers[library] = started(library, name, file, arguments.peer)
                sides[library] = workers[library].seconds
        found = interleave(sides, rounds=arguments.rounds)
    products = 1 if name == "topk" else 5
    floor = products * 2 * batch * embed * latents / 1e9
    found |= {
        "first_steps": firsts,
        "tokens_per_second": round(batch / found["mijax"]["median"]),
        "fraction_of_floor": [
            round(floor / min(row["gflops"]) / row["mijax"], 3)
            for row in found["rounds"]
        ],
    }
    for library, worker in workers.items():
        worker.close()
        off = np.abs(np.array(losses) / np.array(worker.last["losses"]) - 1).max()
        found |= {
            f"{library}_version": worker.last["version"],
            f"{library}_ratio": ratios(found, library, "mijax"),
            f"{library}_loss_difference": float(f"{off:.1e}"),
        }
    return found


def start_file(
    training: d.Training, source: mijax.data.Examples, steps: int, folder: Path
) -> Path:
    """Writes the weights and batches that all sides start from."""
    params, _ = training.start(jax.random.key(0))
    state, batches = source.start(), []
    for _ in range(steps + 1):
        state, drawn = source.batch(state)
        batches.append(np.asarray(drawn.x))
    weights: dict[str, Any] = {
        "encoder": params.weights.encoder,
        "decoder": params.weights.decoder,
    }
    file = folder / "start.npz"
    np.savez(file, batches=np.stack(batches), **weights)
    return file


def stepped(
    training: d.Training, source: mijax.data.Examples, steps: int
) -> tuple[float, float, list[float]]:
    """Returns seconds of the first step, which compiles, and of a later one."""
    told, marks = mijax.train.Memory(), [time.perf_counter()]

    class Clock(mijax.train.AbstractSink):
        def write(self, step: int, numbers: Any) -> None:
            marks.append(time.perf_counter())

    d.train(training, source, sinks=[told, Clock()], report=1)
    each = np.diff(marks)
    losses = [row["loss"] for row in told.rows]
    return float(each[0]), float(np.median(each[1 : steps + 1])), losses


def started(library: str, name: str, file: Path, python: str) -> Worker:
    """Starts a peer, which takes the same steps."""
    words = ["--library", library, "--architecture", name, "--start", file]
    words += ["--k", K, "--sparsity", SPARSITY, "--rate", RATE]
    return Worker(python, "dictionary_step.py", *words)


def lanes(arguments: argparse.Namespace, count: int = 16) -> dict[str, Any]:
    """Times many small dictionaries together, and one after another."""
    x = jax.random.normal(jax.random.key(0), (16_384, 64))
    source = mijax.data.Examples(x, batch=512)
    given = [
        d.Training(d.TopK(8), d.SAE(64), latents=512, steps=200, seed=seed)
        for seed in range(count)
    ]

    def together() -> Any:
        return [one.weights for one in d.train(given, source, report=200)]

    def in_sequence() -> Any:
        return [d.train(one, source, report=200).weights for one in given]

    sides = {
        "together_with_compile": compiling(timed(together)),
        "together": timed(together),
        "in_sequence_with_compile": compiling(timed(in_sequence)),
        "in_sequence": timed(in_sequence),
    }
    found = interleave(sides, rounds=arguments.rounds)
    off = jnp.abs(in_sequence()[0].decoder - together()[0].decoder).max()
    return found | {
        "dictionaries": count,
        "ratio": ratios(found, "in_sequence", "together"),
        "largest_difference": float(f"{float(off):.1e}"),
    }


if __name__ == "__main__":
    main()
