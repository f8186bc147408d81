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
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sweeps import PEERS, machine, matmul_rate

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
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python with the peers installed")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--embed", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24576)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default 5)")
    parser.add_argument("--dtype", default="float32", help="of products")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    results = []
    for name in arguments.only:
        found = lanes() if name == "lanes" else case(name, arguments)
        results.append({"case": name, **found})
        print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"on": machine(), "cases": results}))


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
    ours, losses = timed(training, mijax.data.Examples(x, batch=batch), arguments.steps)
    products = 1 if name == "topk" else 5
    floor = products * 2 * batch * embed * latents / matmul_rate()
    ours |= {
        "tokens_per_second": round(batch / ours["seconds"]),
        "floor_seconds": round(floor, 3),
        "share_of_floor": round(floor / ours["seconds"], 3),
    }
    if not arguments.peer:
        return ours
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "start.npz"
        params, _ = training.start(jax.random.key(0))
        source = mijax.data.Examples(x, batch=batch)
        state, batches = source.start(), []
        for _ in range(arguments.steps + 1):
            state, drawn = source.batch(state)
            batches.append(np.asarray(drawn.x))
        np.savez(
            file,
            encoder=params.weights.encoder,
            decoder=params.weights.decoder,
            batches=np.stack(batches),
        )
        for library in LIBRARIES:
            ours |= peer(library, name, file, arguments.peer, ours["seconds"], losses)
    return ours


def timed(
    training: d.Training, source: mijax.data.Examples, steps: int
) -> tuple[dict[str, Any], list[float]]:
    """Times steps after the first, which compiles."""
    told, marks = mijax.train.Memory(), [time.perf_counter()]

    class Clock(mijax.train.AbstractSink):
        def write(self, step: int, numbers: Any) -> None:
            marks.append(time.perf_counter())

    d.train(training, source, sinks=[told, Clock()], report=1)
    each = np.diff(marks)
    return {
        "first_step": round(float(each[0]), 2),
        "seconds": round(float(np.median(each[1 : steps + 1])), 3),
    }, [row["loss"] for row in told.rows]


def peer(
    library: str,
    name: str,
    file: Path,
    python: str,
    seconds: float,
    losses: list[float],
) -> dict[str, Any]:
    """Runs the same steps in a peer."""
    command = [python, str(PEERS / "dictionary_step.py"), "--library", library]
    command += ["--architecture", name, "--start", str(file)]
    command += ["--k", str(K), "--sparsity", str(SPARSITY), "--rate", str(RATE)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    theirs = json.loads(done.stdout[done.stdout.index("{") :])
    off = np.abs(np.array(losses) / np.array(theirs["losses"]) - 1).max()
    return {
        f"{library}": theirs["version"],
        f"{library}_seconds": round(theirs["seconds"], 3),
        f"{library}_ratio": round(theirs["seconds"] / seconds, 2),
        f"{library}_loss_difference": float(f"{off:.1e}"),
    }


def lanes(count: int = 16) -> dict[str, Any]:
    """Times many small dictionaries together, and one after another."""
    x = jax.random.normal(jax.random.key(0), (16_384, 64))
    source = mijax.data.Examples(x, batch=512)
    given = [
        d.Training(d.TopK(8), d.SAE(64), latents=512, steps=200, seed=seed)
        for seed in range(count)
    ]
    d.train(given[0], source)
    start = time.perf_counter()
    alone = [d.train(one, source, report=200) for one in given]
    jax.block_until_ready(jax.tree.leaves(alone[-1].weights))
    sequence = time.perf_counter() - start
    start = time.perf_counter()
    together = d.train(given, source, report=200)
    jax.block_until_ready(jax.tree.leaves(together[-1].weights))
    joined = time.perf_counter() - start
    start = time.perf_counter()
    again = d.train(given, source, report=200)
    jax.block_until_ready(jax.tree.leaves(again[-1].weights))
    warm = time.perf_counter() - start
    off = jnp.abs(alone[0].weights.decoder - together[0].weights.decoder).max()
    return {
        "dictionaries": count,
        "in_sequence": round(sequence, 2),
        "together_with_compile": round(joined, 2),
        "together": round(warm, 2),
        "ratio": round(sequence / warm, 2),
        "largest_difference": float(f"{float(off):.1e}"),
    }


if __name__ == "__main__":
    main()
