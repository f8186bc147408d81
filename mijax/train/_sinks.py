"""Where numbers of a training run go."""

import abc
import importlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mijax._errors import ConfigError, OutputError
from mijax._progress import terminal_bars
from mijax.io import replace_file

# Every line of a `Jsonl` begins with this.
FIRST = '{"step": '


class AbstractSink(abc.ABC):
    """Takes the numbers of updates; a context manager around the run."""

    def open(self, done: int, steps: int) -> None:  # noqa: B027 - nothing by default
        """Is told before the first update how many are done, and how many there are."""

    @abc.abstractmethod
    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Takes the numbers of one update; `step` counts from 1."""

    def close(self) -> None:  # noqa: B027 - nothing by default
        """Is told that no more come, whatever the reason."""

    def __enter__(self) -> "AbstractSink":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Memory(AbstractSink):
    """Keeps the numbers in a list.

    Attributes:
        rows: a record per update that was reported, with its `"step"`.
    """

    def __init__(self):
        self.rows: list[dict[str, Any]] = []

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Appends a record."""
        self.rows.append({"step": step, **numbers})


class Jsonl(AbstractSink):
    """Writes a line of JSON per report.

    A run that goes on from a checkpoint cuts the lines written after it, so the file
    equals the file of a run without interruption. A new run begins the file again.

    Args:
        path: the file.

    Raises:
        OutputError: the file cannot be written, or holds anything but such lines.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._file: Any = None

    def open(self, done: int, steps: int) -> None:
        """Keeps the lines of the updates that are done."""
        kept = [line for step, line in self._lines() if 0 < step <= done]

        def write(path: Path) -> None:
            path.write_text("".join(kept), encoding="utf-8")

        replace_file(self.path, write)
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.path} ({error.strerror})."
            ) from error

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Writes a line, and to the disk at once."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _lines(self) -> list[tuple[int, str]]:
        """Read steps and their lines; a last line that a crash has cut is left out."""
        if not self.path.is_file():
            return []
        try:
            *lines, last = self.path.read_text(encoding="utf-8").split("\n")
            if not last.startswith(FIRST[: len(last)]):
                raise ValueError(last)
            return [(int(json.loads(line)["step"]), f"{line}\n") for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self.path} holds lines that no training wrote. Nothing was changed: "
                "move it away, or name another file."
            ) from error


class TensorBoard(AbstractSink):
    """Writes event files for TensorBoard.

    Args:
        folder: where they go.

    Raises:
        ConfigError: `tensorboardX` is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        try:
            writer: Any = importlib.import_module("tensorboardX").SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "The TensorBoard sink needs tensorboardX: pip install tensorboardX."
            ) from error
        self._writer = writer(os.fspath(folder))

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Writes scalars."""
        for name, value in numbers.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()


class Terminal(AbstractSink):
    """Draws a bar with the time that is left, and the last numbers beside it.

    Args:
        show: names of the numbers to show; all by default.
    """

    def __init__(self, show: tuple[str, ...] | None = None):
        self.show = show
        self._bar: Any = None
        self._task: Any = None

    def open(self, done: int, steps: int) -> None:
        """Starts the bar."""
        from rich.progress import TextColumn  # noqa: PLC0415 - slow to import

        self._bar = terminal_bars(TextColumn("{task.fields[numbers]}", markup=False))
        self._bar.start()
        self._task = self._bar.add_task(
            "Training", total=steps, completed=done, numbers=""
        )
        self._started = time.monotonic()

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Moves the bar."""
        names = self.show or tuple(numbers)
        shown = (f"{n} {numbers[n]:.4g}" for n in names if is_number(numbers.get(n)))
        self._bar.update(self._task, completed=step, numbers="  ".join(shown))

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()


def is_number(value: Any) -> bool:
    """True if a value can be shown as one number."""
    return isinstance(value, int | float)
