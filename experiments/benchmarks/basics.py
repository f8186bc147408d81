"""What the basics cost: capture beside the plain forward pass, loading, import.

Every pair is measured side by side in one run; the second of each pair is ours.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import mijax
from mijax.models import init

EXAMPLE = """example:
  python experiments/benchmarks/basics.py
  python experiments/benchmarks/basics.py --skip load
"""


def main() -> None:
    """Prints one JSON line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = {"capture": capture, "load": load, "imports": imports}
    parser.add_argument("--skip", nargs="+", choices=list(parts), default=[])
    arguments = parser.parse_args()
    for name, part in parts.items():
        if name not in arguments.skip:
            print(json.dumps({"measured": name, **part()}), flush=True)


def capture() -> dict[str, Any]:
    """Times capturing every `resid_post` beside the jitted forward pass."""
    model = init("gpt2", jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 64), 0, 50257)
    sites = {"resid_post": mijax.Site("resid_post"), "logits": mijax.Site("logits")}
    plain = lambda: mijax.run(model, tokens)  # noqa: E731
    both = lambda: mijax.capture(model, tokens, sites)  # noqa: E731
    forward, captured = side_by_side(plain, both)
    return {
        "shape": "GPT-2 small, 8 x 64 tokens, logits in both",
        "forward_seconds": round(forward, 4),
        "capture_seconds": round(captured, 4),
        "ratio": round(captured / forward, 3),
    }


def side_by_side(*functions: Callable[[], Any]) -> list[float]:
    """Returns the median seconds of functions that take turns."""
    for function in functions:
        jax.block_until_ready(function())
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(9):
        for own, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            own.append(time.perf_counter() - start)
    return [float(np.median(own)) for own in times]


LOAD = """
import json, re, time
from pathlib import Path
import equinox as eqx, jax, mijax, mijax.models

def kilobytes(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+)", text)[1])

jax.numpy.zeros(1).block_until_ready()
before = kilobytes("VmRSS")
start = time.perf_counter()
lm = mijax.models.load("smollm2-135m-instruct")
leaves = jax.block_until_ready(jax.tree.leaves(eqx.filter(lm.model, eqx.is_array)))
seconds = time.perf_counter() - start
peak = kilobytes("VmHWM") - before
size = sum(a.nbytes for a in leaves) / 1024
found = {"seconds": round(seconds, 2), "peak_mb": round(peak / 1024)}
found |= {"weights_mb": round(size / 1024)}
print(json.dumps(found | {"peak_over_weights": round(peak / size, 2)}))
"""


def load() -> dict[str, Any]:
    """Times loading SmolLM2 in a process of its own, and its peak memory."""
    return json.loads(python(LOAD)[1])


def imports() -> dict[str, Any]:
    """Times `import mijax` beside `import jax, equinox`."""
    seconds: dict[str, list[float]] = {"import jax, equinox": [], "import mijax": []}
    for _ in range(5):
        for statement, times in seconds.items():
            times.append(python(statement)[0])
    medians = {key: round(float(np.median(v)), 2) for key, v in seconds.items()}
    base, ours = medians.values()
    return {**medians, "ratio": round(ours / base, 2)}


def python(code: str) -> tuple[float, str]:
    """Runs code in a new interpreter; returns seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - start, done.stdout


if __name__ == "__main__":
    main()
