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
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from sweeps import PEERS, machine

from mijax.features import SparseFeatures, squeeze, toy_losses

EXAMPLE = """example:
  python experiments/benchmarks/toy_models.py --peer PEER/bin/python
  python experiments/benchmarks/toy_models.py --only intro --updates 200
"""
BATCH, WHOLE, SCAN = 1024, 10_000, 100


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
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python with PyTorch installed")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--updates", type=int, default=1000, help="timed updates")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    results = []
    for name in arguments.only:
        results.append({"case": name, **case(CASES[name], arguments)})
        print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"on": machine(), "cases": results}))


def case(sizes: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times one case here and in the peer."""
    updates = arguments.updates
    compiled, _ = timed(sizes, SCAN, seed=0)
    again, _ = timed(sizes, SCAN, seed=1)
    seconds, loss = timed(sizes, updates, seed=2)
    each, compilation = seconds / updates, compiled - again
    ours = {
        **sizes._asdict(),
        "updates": updates,
        "seconds_per_update": float(f"{each:.3g}"),
        "updates_per_second": round(1 / each, 1),
        "compile_seconds": round(compilation, 2),
        "loss": float(f"{loss:.4g}"),
    }
    if arguments.peer:
        theirs = peer(sizes, arguments)
        slow = theirs["seconds"]
        ours |= {
            "torch": theirs["version"],
            "torch_seconds_per_update": float(f"{slow:.3g}"),
            "torch_loss": float(f"{theirs['loss']:.4g}"),
            "ratio": round(slow / each, 2),
            "ratio_of_10000_with_compile": round(
                slow * WHOLE / (each * WHOLE + compilation), 2
            ),
        }
    return ours


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


def peer(sizes: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the same updates in PyTorch."""
    command = [arguments.peer, str(PEERS / "torch_toy_models.py")]
    given = {**sizes._asdict(), "batch": BATCH, "updates": arguments.updates}
    given["threads"] = arguments.threads
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
