"""`mijax list`."""

import argparse
from collections.abc import Sequence

from mijax.cli._console import output, print_table
from mijax.cli._parser import Commands, command


def add(commands: Commands) -> None:
    """Adds the command."""
    command(
        commands,
        "list",
        _call,
        summary="List the experiments, one row per config.",
        example="  mijax list",
    )


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from mijax.experiment import entries  # noqa: PLC0415

    found = entries()
    if not found:
        output().print("No experiments are installed.")
        return 0
    rows = [[entry.name, entry.size, entry.description] for entry in found]
    print_table("", ["name", "size", "description"], rows)
    return 0
