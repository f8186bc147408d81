"""Timing of two sides that take turns, for machines that are shared with others.

Every round measures the machine's rate of large matrix products, then each side once,
then the rate again. A side is a function that returns seconds. Reported are minimum and
median over the rounds, so that an outlier or a slow half hour shows.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PEERS = Path(__file__).parent / "_peers"
Side = Callable[[], float]


class Worker:
    """A peer in its own Python, which stays alive between rounds.

    Args:
        python: the interpreter.
        script: name of a script in `_peers/`; it prints one line of JSON per line read.
        options: its command line.
    """

    def __init__(self, python: str, script: str, *options: Any):
        command = [python, str(PEERS / script), *map(str, options), "--alive"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.last: dict[str, Any] = {}

    def ask(self) -> dict[str, Any]:
        """Run the peer once and return its result."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                self.last = json.loads(line)
                return self.last
        raise SystemExit(f"The peer ended with code {self._process.wait()}.")

    def seconds(self) -> float:
        """Run the peer once and return its seconds."""
        return float(self.ask()["seconds"])

    def close(self) -> None:
        """End the peer."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def interleave(sides: Mapping[str, Side], *, rounds: int) -> dict[str, Any]:
    """Time sides in turn.

    Args:
        sides: name and function of each side, in the order in which they run.
        rounds: number of turns.

    Returns:
        `rounds`, one row each, with `gflops` before and after it; and minimum and
        median seconds of each side.
    """
    rows = []
    for i in range(rounds):
        before = matmul_rate()
        row: dict[str, Any] = {
            name: float(f"{side():.4g}") for name, side in sides.items()
        }
        row["gflops"] = [round(rate / 1e9) for rate in (before, matmul_rate())]
        print(json.dumps({"round": i + 1, **row}), file=sys.stderr, flush=True)
        rows.append(row)
    summary: dict[str, Any] = {"rounds": rows}
    for name in sides:
        seconds = [row[name] for row in rows]
        median = float(f"{np.median(seconds):.4g}")
        summary[name] = {"min": min(seconds), "median": median}
    return summary


def ratios(summary: Mapping[str, Any], peer: str, ours: str) -> dict[str, float]:
    """Divide a peer's seconds by ours: minima, medians, smallest and largest round."""
    of = [row[peer] / row[ours] for row in summary["rounds"]]
    both = {key: summary[peer][key] / summary[ours][key] for key in ("min", "median")}
    both |= {"lowest": min(of), "highest": max(of)}
    return {key: round(value, 2) for key, value in both.items()}


def timed(call: Callable[[], Any]) -> Side:
    """Return a side that times a call until its arrays are there."""

    def side() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    return side


def compiling(side: Side) -> Side:
    """Return a side that first forgets every compiled program."""

    def cold() -> float:
        jax.clear_caches()
        return side()

    return cold


def matmul_rate() -> float:
    """Measure floating-point operations per second of a large matrix product."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size))

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready([jnp.matmul(a, a) for _ in range(5)])
        return (time.perf_counter() - start) / 5

    once()
    return 2 * size**3 / min(once() for _ in range(3))


def options(doc: str | None, example: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share.

    Compilation is part of what is timed, so programs kept on disk are left out.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    parser = argparse.ArgumentParser(
        description=doc,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python with the peers installed")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    return parser


def machine() -> dict[str, Any]:
    """Describe the machine."""
    return {
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "device": str(jax.devices()[0]),
        "cpu": cpu(),
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else "unknown"


def write(out: Path | None, results: list[dict[str, Any]]) -> None:
    """Save all results of a run."""
    if out:
        text = json.dumps({"on": machine(), "cases": results}, indent=1)
        out.write_text(text + "\n", encoding="utf-8")
