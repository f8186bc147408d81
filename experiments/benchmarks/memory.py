"""Memory of a device that trains a dictionary, by how many share its latents.

TopK dictionaries on simulated devices of the CPU. `held` is what a device keeps between
updates (parameters, Adam's moments, counters), `work` what XLA's program of one update
takes beside that.
"""

import argparse
import json
import os
from typing import Any

DEVICES = (1, 2, 4, 8)
FLAG = f"--xla_force_host_platform_device_count={max(DEVICES)}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}"

import jax  # noqa: E402 - reads the flags
import numpy as np  # noqa: E402

import mijax  # noqa: E402
from mijax import dictionaries as d  # noqa: E402
from mijax import train  # noqa: E402
from mijax.train._fit import traced  # noqa: E402
from mijax.train._update import _update, begin, spread  # noqa: E402

EXAMPLE = """example:
  python experiments/benchmarks/memory.py --latents 8192 --embed 256 --batch 512
"""


def main() -> None:
    """Prints one JSON line per number of devices."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--embed", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24576)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    arguments = parser.parse_args()
    for devices in DEVICES:
        print(json.dumps({"devices": devices, **memory(arguments, devices)}))


def memory(arguments: argparse.Namespace, devices: int) -> dict[str, float]:
    """Compiles an update and returns what a device needs, in MB."""
    embed = arguments.embed
    training = d.Training(
        d.TopK(arguments.k), d.SAE(embed), latents=arguments.latents, steps=10
    )
    x = np.zeros((arguments.batch, embed), np.float32)
    source = mijax.data.Examples(x, batch=arguments.batch)
    mesh = train.mesh(model=devices)
    objective = traced(training)
    state = begin(objective, source, several=False, mesh=mesh)
    _, batch = source.batch(state.source)
    core = (state.params, state.memory, state.optimiser, state.step)
    shared = (objective, spread(batch, mesh), False, mesh)
    program: Any = _update
    needs = program.lower(shared, core).compile().compiled.memory_analysis()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(core))
    return {
        "held_mb": round(held / 1e6, 1),
        "work_mb": round(needs.temp_size_in_bytes / 1e6, 1),
    }


if __name__ == "__main__":
    main()
