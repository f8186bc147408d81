"""Training of the model that groks addition, in mijax beside a PyTorch loop.

The same weights at the start, pairs, loss and AdamW, so losses of all updates agree.
The loop computes all three positions of every pair, as the authors' code does; mijax
computes the one whose answer is read, makes keys and values once for each number, and
runs 50 updates in one program. Printed are seconds of an update, of compilation, the
ratio without it and that of 10,000 updates with it, the largest difference of losses,
and the share of the floor: the products that the update needs at the speed of one large
product here.

PyTorch runs in an environment of its own: see `_peers/torch_grokking.py`.
"""

import argparse
import importlib
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sweeps import PEERS, machine

import mijax.experiment
from mijax import train

EXAMPLE = """example:
  python experiments/benchmarks/grokking.py --peer PEER/bin/python
  python experiments/benchmarks/grokking.py --p 59 --share 0.4 --seeds 3
"""
PACKAGE = mijax.experiment.load("grokking").function.__module__
EMBED, HEADS, MLP, SCAN, WARM, WHOLE = 128, 4, 512, 50, 3, 10_000
NAMES = ("embedding", "positions", "q", "k", "v", "o", "in", "out", "b_in", "b_out")


def main() -> None:
    """Times one size and prints one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python with PyTorch installed")
    parser.add_argument("--p", type=int, default=113)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=1, help="trained side by side")
    parser.add_argument("--updates", type=int, default=100, help="timed updates")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    training = importlib.import_module(f"{PACKAGE}._training")
    pairs = training.every_pair(arguments.p)
    pairs = pairs[training.chosen(arguments.p, arguments.share, 0)]
    objectives = [
        training.Adds(arguments.p, EMBED, HEADS, MLP, seed=seed)
        for seed in range(arguments.seeds)
    ]
    source = training.Whole(jnp.asarray(pairs), jnp.asarray(pairs.sum(1) % arguments.p))
    first, _ = timed(objectives, source, SCAN)
    again, _ = timed(objectives, source, SCAN)
    seconds, losses = timed(objectives, source, arguments.updates)
    each, compilation = seconds / arguments.updates, first - again
    needed = flops(arguments.p, len(pairs)) * arguments.seeds
    speed = product_speed()
    found: dict[str, Any] = {
        **{"p": arguments.p, "pairs": len(pairs), "seeds": arguments.seeds},
        "seconds_per_update": float(f"{each:.3g}"),
        "compile_seconds": round(compilation, 2),
        "gflop_per_update": round(needed / 1e9, 2),
        "share_of_floor": round(needed / speed / each, 3),
    }
    if arguments.peer:
        theirs = peer(objectives[0], pairs, arguments)
        slow = theirs["seconds"] * arguments.seeds
        same = min(len(losses), len(theirs["losses"]))
        apart = np.abs(losses[:same] - np.array(theirs["losses"][:same]))
        found |= {
            "torch": theirs["version"],
            "torch_seconds_per_update": float(f"{slow:.3g}"),
            "ratio": round(slow / each, 2),
            "ratio_of_10000_with_compile": round(
                slow * WHOLE / (each * WHOLE + compilation), 2
            ),
            "largest_difference_of_losses": float(f"{apart.max():.2g}"),
        }
    print(json.dumps(found))
    if arguments.out:
        arguments.out.write_text(json.dumps({"on": machine(), **found}))


def timed(objectives: Any, source: Any, updates: int) -> tuple[float, np.ndarray]:
    """Trains; returns seconds and the losses of the first seed."""
    told = train.Memory()
    start = time.perf_counter()
    state = train.fit(
        objectives, source, steps=updates, scan=SCAN, report=1, sinks=[told]
    )
    jax.block_until_ready(state.params)
    seconds = time.perf_counter() - start
    return seconds, np.array([row["loss"][0] for row in told.rows])


def flops(p: int, pairs: int) -> float:
    """Counts operations of an update: products forward, and twice that backward."""
    of_pair = 2 * EMBED * (EMBED + 2 * MLP + p + 1)
    of_number = 2 * 2 * EMBED * EMBED * 2 * p
    return 3.0 * (pairs * of_pair + of_number)


def product_speed() -> float:
    """Measures operations per second of one large product."""
    a = jnp.ones((4096, 1024))
    product = jax.jit(lambda a: a @ a.T)
    product(a).block_until_ready()
    start = time.perf_counter()
    for _ in range(3):
        product(a).block_until_ready()
    return 3 * 2 * 4096 * 4096 * 1024 / (time.perf_counter() - start)


def peer(objective: Any, pairs: np.ndarray, arguments: Any) -> dict[str, Any]:
    """Runs the same updates in PyTorch, from the same weights."""
    model = objective.start(objective.key())[0]
    attention, mlp = model.blocks.attention, model.blocks.mlp
    leaves = [attention.w_q, attention.w_k, attention.w_v, attention.w_o]
    leaves += [mlp.w_in, mlp.w_out, mlp.b_in, mlp.b_out]
    weights = [model.embedding.weight, model.positions.weight]
    weights += [leaf[0] for leaf in leaves]
    given = zip(NAMES, weights, strict=True)
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in given}
    arrays["unembedding"] = np.asarray(model.unembedding.weight)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start.npz"
        np.savez(file, pairs=pairs, **arrays)
        command = [arguments.peer, str(PEERS / "torch_grokking.py"), str(file)]
        command += ["--updates", str(arguments.updates - WARM)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
