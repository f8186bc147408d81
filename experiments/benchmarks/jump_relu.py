"""Quality of JumpReLU dictionaries next to SAELens and dictionary_learning.

16,384 rows of 64 numbers from 128 planted features, 4 active on average, each of a size
between 1 and 2; 256 latents, 2,000 steps of 256 rows in the same order, Adam at 1e-3
with the same warm-up and decay. The rest is each library's default. Printed are, on
2,048 rows held out, L0, the fraction of variance unexplained, and the mean over planted
features of the largest cosine with a decoder row (MMCS; 1 is perfect), for strengths of
the L0 penalty and for targets of L0.

Peers need an environment of their own: see `_peers/jump_relu.py`.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from _interleave import PEERS

import mijax
from mijax import dictionaries as d

EXAMPLE = """example:
  python experiments/benchmarks/jump_relu.py --peer PEER/bin/python
"""
FEATURES, EMBED, LATENTS, ROWS, HELD, ACTIVE = 128, 64, 256, 16384, 2048, 4
STEPS, BATCH = 2000, 256


def main() -> None:
    """Train with every library and print one JSON line each."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python with the peers installed")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.03, 0.3, 3.0])
    parser.add_argument("--targets", type=float, nargs="+", default=[4.0, 8.0])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    true, x = planted()
    rows, held = x[:-HELD], x[-HELD:]
    runs = [("strength", s) for s in arguments.strengths]
    runs += [("target", t) for t in arguments.targets]
    for (kind, value), sae in zip(runs, ours(rows, runs, arguments.seed), strict=True):
        latents = np.asarray(sae.encode(held))
        quality = measured(true, held, sae.weights.decoder, latents, sae(held))
        show("mijax", kind, value, quality)
    if not arguments.peer:
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data.npz"
        np.savez(data, rows=rows, held=held, order=order(len(rows)))
        for library in ("saelens", "dictionary_learning"):
            found = Path(scratch) / f"{library}.npz"
            version = peer(library, data, found, arguments)
            with np.load(found) as arrays:
                for kind, value in runs:
                    names = (f"{kind}_{value:g}_{n}" for n in PARTS)
                    parts = [arrays[name] for name in names if name in arrays]
                    if parts:
                        show(version, kind, value, measured(true, held, *parts))


PARTS = ("decoder", "latents", "output")


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Draw planted directions and rows."""
    random = np.random.default_rng(0)
    true = random.normal(size=(FEATURES, EMBED))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    active = random.random((ROWS, FEATURES)) < ACTIVE / FEATURES
    code = active * random.uniform(1, 2, (ROWS, FEATURES))
    return true, (code @ true).astype(np.float32)


def ours(rows: np.ndarray, runs: list[tuple[str, float]], seed: int) -> list[Any]:
    """Train one dictionary for each strength and each target."""
    source = mijax.data.Examples(jnp.asarray(rows), batch=BATCH)
    scale = mijax.data.statistics(source, 4096).scale
    architectures = [
        d.JumpReLU(value) if kind == "strength" else d.JumpReLU(target=value)
        for kind, value in runs
    ]
    return [
        d.train(
            d.Training(
                *(architecture, d.SAE(EMBED)),
                latents=LATENTS,
                steps=STEPS,
                learning_rate=1e-3,
                warmup=100,
                decay=400,
                sparsity_warmup=200,
                scale=scale,
                seed=seed,
            ),
            source,
        )
        for architecture in architectures
    ]


def order(rows: int) -> np.ndarray:
    """Return the rows of each batch, in the order in which mijax draws them."""
    index = mijax.data.Examples(
        jnp.arange(rows, dtype=jnp.float32)[:, None], batch=BATCH
    )
    state, batches = index.start(), []
    for _ in range(STEPS):
        state, batch = index.batch(state)
        batches.append(np.asarray(batch.x[:, 0], np.int64))
    return np.stack(batches)


def peer(library: str, data: Path, found: Path, arguments: argparse.Namespace) -> str:
    """Train the same in a peer and return its version."""
    command = [arguments.peer, str(PEERS / "jump_relu.py"), "--library", library]
    command += ["--data", str(data), "--out", str(found)]
    command += ["--seed", str(arguments.seed), "--threads", "1"]
    if library == "saelens":
        command += ["--strengths", *map(str, arguments.strengths)]
    command += ["--targets", *map(str, arguments.targets)]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    done = subprocess.run(command, check=True, stdout=pipe, stderr=quiet, text=True)
    return json.loads(done.stdout[done.stdout.index("{") :])["version"]


def measured(
    true: np.ndarray, held: np.ndarray, decoder: Any, latents: Any, output: Any
) -> dict[str, float]:
    """Return L0, FVU and MMCS."""
    rows = np.asarray(decoder)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    missed = ((held - np.asarray(output)) ** 2).sum()
    return {
        "l0": round(float((np.asarray(latents) > 0).sum(1).mean()), 2),
        "fvu": round(float(missed / ((held - held.mean(0)) ** 2).sum()), 4),
        "mmcs": round(float((true @ rows.T).max(1).mean()), 4),
    }


def show(library: str, kind: str, value: float, quality: dict[str, float]) -> None:
    """Print a line."""
    print(json.dumps({"library": library, kind: value, **quality}), flush=True)


if __name__ == "__main__":
    main()
