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
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _interleave import Worker, compiling, interleave, options, ratios, write

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
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--p", type=int, default=113)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=1, help="trained side by side")
    parser.add_argument("--updates", type=int, default=100, help="timed updates")
    arguments = parser.parse_args()
    training = importlib.import_module(f"{PACKAGE}._training")
    pairs = training.every_pair(arguments.p)
    pairs = pairs[training.chosen(arguments.p, arguments.share, 0)]
    objectives = [
        training.Adds(arguments.p, EMBED, HEADS, MLP, seed=seed)
        for seed in range(arguments.seeds)
    ]
    source = training.Whole(jnp.asarray(pairs), jnp.asarray(pairs.sum(1) % arguments.p))
    losses: list[np.ndarray] = []

    def ours() -> float:
        seconds, found = timed(objectives, source, arguments.updates)
        losses.append(found)
        return seconds / arguments.updates

    sides = {
        "first_program": compiling(lambda: timed(objectives, source, SCAN)[0]),
        "second_program": lambda: timed(objectives, source, SCAN)[0],
        "product": lambda: 1e9 / product_speed(),
        "mijax": ours,
    }
    with tempfile.TemporaryDirectory() as folder:
        worker = None
        if arguments.peer:
            worker = started(objectives[0], pairs, Path(folder), arguments)
            sides["peer"] = lambda: worker.seconds() * arguments.seeds
        found = interleave(sides, rounds=arguments.rounds)
    needed = flops(arguments.p, len(pairs)) * arguments.seeds / 1e9
    found |= {
        **{"p": arguments.p, "pairs": len(pairs), "seeds": arguments.seeds},
        "gflop_per_update": round(needed, 2),
        "fraction_of_floor": [
            round(needed * row["product"] / row["mijax"], 3) for row in found["rounds"]
        ],
    }
    if worker is not None:
        worker.close()
        theirs = np.array(worker.last["losses"])
        same = min(len(losses[-1]), len(theirs))
        apart = np.abs(losses[-1][:same] - theirs[:same])
        found |= {
            "torch": worker.last["version"],
            "ratio": ratios(found, "peer", "mijax"),
            "ratio_of_10000_with_compile": with_compile(found),
            "largest_difference_of_losses": float(f"{apart.max():.2g}"),
        }
    print(json.dumps(found))
    write(arguments.out, [found])


def with_compile(found: dict[str, Any]) -> float:
    """Returns the ratio of medians for 10,000 updates, compilation included."""
    names = ("first_program", "second_program", "mijax", "peer")
    first, second, ours, peer = (found[name]["median"] for name in names)
    return round(peer * WHOLE / (ours * WHOLE + first - second), 2)


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


def started(
    objective: Any, pairs: np.ndarray, folder: Path, arguments: argparse.Namespace
) -> Worker:
    """Starts the peer, which trains from the same weights."""
    model = objective.start(objective.key())[0]
    attention, mlp = model.blocks.attention, model.blocks.mlp
    leaves = [attention.w_q, attention.w_k, attention.w_v, attention.w_o]
    leaves += [mlp.w_in, mlp.w_out, mlp.b_in, mlp.b_out]
    weights = [model.embedding.weight, model.positions.weight]
    weights += [leaf[0] for leaf in leaves]
    given = zip(NAMES, weights, strict=True)
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in given}
    arrays["unembedding"] = np.asarray(model.unembedding.weight)
    file = folder / "start.npz"
    np.savez(file, pairs=pairs, **arrays)
    updates = arguments.updates - WARM
    return Worker(arguments.peer, "torch_grokking.py", file, "--updates", updates)


if __name__ == "__main__":
    main()
