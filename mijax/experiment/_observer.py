"""What a run reports while it works, and who listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mijax.experiment._config import SHOWN_DIGITS, Value

Progress = Callable[[int, int], None]
"""Called with (done, total) as a stage advances."""

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Number:
    """A number that a run reports, and that `expected:` is compared with.

    Attributes:
        name: its name.
        value: the number; or a word, or several words.
        low: lower end of its confidence interval, None without one.
        high: upper end.
        count: number of samples behind the interval, None when not known.
        note: a remark for the tables.
    """

    name: str
    value: Value
    low: float | None = None
    high: float | None = None
    count: int | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """As the tables print it: `0.812 [0.774, 0.851]`."""
        value = cell_text(self.value)
        if self.low is None or self.high is None:
            return value
        return f"{value} [{cell_text(self.low)}, {cell_text(self.high)}]"


@dataclass(frozen=True)
class Table:
    """A table of results: one title, the names of its columns, its rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@runtime_checkable
class Observer(Protocol):
    """Whoever watches a run: the command line draws, tests stay silent."""

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """Opens a stage of work; the callable inside takes (done, total)."""
        ...

    def number(self, number: Number) -> None:
        """A number was reported."""
        ...

    def table(self, table: Table) -> None:
        """A table was reported."""
        ...

    def message(self, text: str) -> None:
        """Something the reader should know, in one line."""
        ...


@dataclass(frozen=True)
class Silent:
    """An observer that shows nothing.

    Examples:
        >>> with Silent().stage("count") as progress:
        ...     progress(1, 2)
    """

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Opens a stage that nobody sees."""
        yield lambda done, total: None

    def number(self, number: Number) -> None:
        """Does nothing."""

    def table(self, table: Table) -> None:
        """Does nothing."""

    def message(self, text: str) -> None:
        """Does nothing."""


def cell_text(value: Value | None) -> str:
    """A value as tables print it: four significant digits, words joined by commas."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.{SHOWN_DIGITS}g}"
    return str(value)
