"""Where the command line prints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as RichTable
from rich.text import Text

from mijax._errors import printable
from mijax._progress import reporting, terminal_bars
from mijax.experiment import Number, Table, Verdict, cell_text
from mijax.experiment import Progress as Advance

# Legible on light and dark terminals: no yellow, white or bright colors.
VERDICT_STYLES = {"PASS": "bold green", "FAIL": "bold red", "missing": "bold magenta"}


class SafeConsole(Console):
    """A console that shows terminal escapes in names instead of sending them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints; strings and `Text` are escaped, tables have to be before."""
        super().print(*(escaped(value) for value in objects), **options)


def escaped(value: Any) -> Any:
    """Escapes a string or a `Text`; its line breaks stay."""
    if isinstance(value, str):
        return printable(value, keep="\n")
    if isinstance(value, Text) and printable(value.plain, keep="\n") != value.plain:
        return Text(printable(value.plain, keep="\n"), style=value.style)
    return value


def output() -> Console:
    """Standard output, without interpretation of what is printed."""
    return SafeConsole(markup=False, highlight=False, emoji=False)


def errors() -> Console:
    """Standard error."""
    return SafeConsole(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars on standard error, where they do not disturb results."""
    # Calls inside draw no further bars.
    with reporting(False, ""), terminal_bars(disable=not errors().is_terminal) as bars:
        yield bars


class Watcher:
    """An observer that draws progress bars, and tables as they come.

    Attributes:
        quiet: whether to leave the tables out.
    """

    quiet: bool

    def __init__(self, progress: Progress, *, quiet: bool = False):
        self._progress = progress
        self.quiet = quiet

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Draws the bar of a stage."""
        task = self._progress.add_task(name, total=None)

        def advance(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)

        yield advance
        self._progress.stop_task(task)

    def number(self, number: Number) -> None:
        """Numbers come in one table at the end."""

    def table(self, table: Table) -> None:
        """Prints a table."""
        if not self.quiet:
            rows = [[cell_text(cell) for cell in row] for row in table.rows]
            print_table(table.title, table.columns, rows)

    def message(self, text: str) -> None:
        """Prints a line on standard error."""
        errors().print(text, soft_wrap=True)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]
) -> None:
    """Prints a table, in full: cells fold instead of being cut."""
    table = RichTable(
        title=Text(escaped(title)) if title else None, title_justify="left", box=SIMPLE
    )
    for column in columns:
        table.add_column(Text(escaped(column)), overflow="fold")
    for row in rows:
        cells = (escaped(c) for c in row)
        table.add_row(*(Text(c) if isinstance(c, str) else c for c in cells))
    output().print(table)


def print_numbers(numbers: Sequence[Number]) -> None:
    """Prints the numbers of a run."""
    rows = [[n.name, n.text, n.note] for n in numbers]
    noted = any(n.note for n in numbers)
    columns = ["number", "value", "note"] if noted else ["number", "value"]
    print_table("", columns, [row[: len(columns)] for row in rows])


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Prints published / ours / verdict, and below it each source, once."""
    sources = list(dict.fromkeys(v.source for v in verdicts))
    print_table(
        "",
        ["", "published", "ours", "verdict", "source"],
        [
            [
                v.name,
                v.published,
                v.ours,
                Text(v.verdict, style=VERDICT_STYLES[v.verdict]),
                f"[{sources.index(v.source) + 1}]",
            ]
            for v in verdicts
        ],
    )
    for i, source in enumerate(sources, start=1):
        output().print(Text(f"  [{i}] {source}"))
