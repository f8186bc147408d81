"""`mijax show`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mijax.cli._console import output, print_numbers, print_table, print_verdicts
from mijax.cli._parser import Commands, command
from mijax.experiment import cell_text, read_result


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "show",
        _call,
        summary="Show the numbers, verdicts and pictures of a finished run.",
        example="  mijax show runs/induction",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    result = read_result(Path(arguments.run))
    console = output()
    console.print(f"{result.name}: {result.description}", soft_wrap=True)
    if result.numbers:
        print_numbers(result.numbers)
    if result.verdicts:
        print_verdicts(result.verdicts)
    for table in result.tables:
        rows = [[cell_text(cell) for cell in row] for row in table.rows]
        print_table(table.title, table.columns, rows)
    for picture in (*result.pictures, *result.pages):
        for file in picture.files:
            console.print(str(result.folder / file), soft_wrap=True)
    console.print(str(result.folder / "report.html"), soft_wrap=True)
    return 0
