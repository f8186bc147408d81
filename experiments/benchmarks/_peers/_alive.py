"""Peers that stay alive: one result per line of standard input."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--alive` to a peer's command line."""
    parser.add_argument(
        "--alive", action="store_true", help="run once per line of standard input"
    )


def answer(run: Callable[[], dict[str, Any]], *, alive: bool) -> None:
    """Print the result of one run, or of one run per line of standard input."""
    if not alive:
        print(json.dumps(run()))
        return
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)
