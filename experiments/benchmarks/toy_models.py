"""Training of toy models of superposition in mijax beside a PyTorch loop.

The same models, AdamW and batches of 1,024 of every instance. The loop draws two
random numbers for each feature of each instance and example, as the notebook of the
paper does; mijax draws one for each feature and example, which the instances turn by
angles of their own, and runs 100 updates in one program. Printed are seconds of an
update after the first program, seconds of compilation, the ratio without it and that
of 10,000 updates with it, and the losses after the timed updates, which agree up to
chance.

PyTorch runs in an environment of its own: see `_peers/torch_toy_models.py`.
"""

import argparse
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from _interleave import Worker, compiling, interleave, options, ratios, write

from mijax.features import SparseFeatures, squeeze, toy_losses

EXAMPLE = """example:
  python experiments/benchmarks/toy_models.py --peer PEER/bin/python
  python experiments/benchmarks/toy_models.py --only intro --updates 200
"""
BATCH, WHOLE, SCAN = 1024, 10_000, 100
PROGRAMS = ("first_program", "second_program")


class Case(NamedTuple):
    """Sizes of a case."""

    instances: int
    features: int
    embed: int


CASES = {
    "intro": Case(10, 5, 2),
    "many": Case(20, 100, 20),
    "geometry": Case(20, 200, 20),
    "phases": Case(400, 2, 1),
}


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--updates", type=int, default=1000, help="timed updates")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    arguments = parser.parse_args()
    results = []
    for name in arguments.only:
        results.append({"case": name, **case(CASES[name], arguments)})
        print(json.dumps(results[-1]), flush=True)
    write(arguments.out, results)


def case(sizes: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times one case here and in the peer, in turn."""
    updates = arguments.updates
    losses: list[float] = []

    def ours() -> float:
        seconds, loss = timed(sizes, updates, seed=2)
        losses.append(loss)
        return seconds / updates

    sides = {
        "first_program": compiling(lambda: timed(sizes, SCAN, seed=0)[0]),
        "second_program": lambda: timed(sizes, SCAN, seed=1)[0],
        "mijax": ours,
    }
    worker = None
    if arguments.peer:
        words = ["--batch", BATCH, "--updates", updates, "--threads", arguments.threads]
        for name, value in sizes._asdict().items():
            words += [f"--{name}", value]
        worker = Worker(arguments.peer, "torch_toy_models.py", *words)
        sides["peer"] = worker.seconds
    found = interleave(sides, rounds=arguments.rounds)
    found |= {**sizes._asdict(), "updates": updates, "loss": float(f"{losses[-1]:.4g}")}
    if worker is None:
        return found
    worker.close()
    return found | {
        "torch": worker.last["version"],
        "torch_loss": float(f"{worker.last['loss']:.4g}"),
        "ratio": ratios(found, "peer", "mijax"),
        "ratio_of_10000_with_compile": with_compile(found),
    }


def with_compile(found: dict[str, Any]) -> float:
    """Returns the ratio of medians for 10,000 updates, compilation included."""
    at = {name: found[name]["median"] for name in (*PROGRAMS, "mijax", "peer")}
    compilation = at["first_program"] - at["second_program"]
    return round(at["peer"] * WHOLE / (at["mijax"] * WHOLE + compilation), 2)


def timed(sizes: Case, updates: int, *, seed: int) -> tuple[float, float]:
    """Trains; returns seconds and the summed loss on fresh examples."""
    density = 20.0 ** -jnp.linspace(0, 1, sizes.instances)[:, None]
    density = jnp.tile(density, (1, sizes.features))
    importance = jnp.ones_like(density)
    start = time.perf_counter()
    model = squeeze(
        importance,
        density,
        embed=sizes.embed,
        steps=updates,
        batch=BATCH,
        seed=seed,
        scan=SCAN,
    )
    jax.block_until_ready(model)
    seconds = time.perf_counter() - start
    _, batch = SparseFeatures(density, batch=BATCH, seed=9).batch(jnp.int32(0))
    return seconds, float(toy_losses(model, batch.x, importance).sum())


if __name__ == "__main__":
    main()
