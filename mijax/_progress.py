"""Progress of long work: a callback, an automatic bar, or nothing.

This is the one place outside `mijax.cli` that prints. Only the outermost call of mijax
draws: the calls inside it find `_BUSY` set and stay silent.
"""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from html import escape
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, runtime_checkable

from mijax._errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

Report = Callable[[int, int], None]
"""Called with the work that is done and the total."""

Progress = Report | Literal[False] | None
"""A callable; `None` for an automatic bar, or `False` for none."""

# Seconds before a bar appears, and between its updates.
PATIENCE = 3.0
PERIOD = 0.2

# The theme of rich writes times in yellow, which a light terminal does not show.
STYLES = {
    "bar.back": "dim",
    "bar.complete": "blue",
    "bar.finished": "green",
    "bar.pulse": "blue",
    "progress.download": "none",
    "progress.elapsed": "none",
    "progress.percentage": "none",
    "progress.remaining": "dim",
    "progress.spinner": "none",
}

_BUSY: ContextVar[bool] = ContextVar("mijax_progress", default=False)


def reports(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a verb with a keyword `progress` draw a bar by default.

    The verb receives a callable, or `None` if nothing is to be reported.

    Args:
        name: description of the work for the bar.
    """

    def decorate(verb: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(verb)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            progress: Any = kwargs.pop("progress", None)
            with reporting(progress, name) as report:
                kwargs["progress"] = report
                return verb(*args, **kwargs)

        return call

    return decorate


@contextlib.contextmanager
def reporting(progress: Any, name: str) -> Iterator[Report | None]:
    """Open a stage of work and yield the callable that takes (done, total).

    Args:
        progress: a callable is yielded as it is. With `None` a bar appears after three
            seconds in a terminal or a notebook, unless a call around this one reports
            progress already; `False` draws no bar here or in calls inside.
        name: description of the work for the bar.

    Raises:
        ConfigError: `progress` is something else.

    Yields:
        The callable, or `None` if nothing is to be reported.

    Examples:
        >>> with reporting(None, "Count") as report:
        ...     report is None  # not a terminal
        True
    """
    if not (progress is None or progress is False or callable(progress)):
        raise ConfigError(
            f"progress is {progress!r:.80}: give a callable that takes (done, total), "
            "None for a bar after three seconds, or False for none."
        )
    screen = None
    if progress is None and not _BUSY.get():
        screen = _screen(name)
    token = _BUSY.set(_BUSY.get() or progress is not None or screen is not None)
    try:
        if screen is None:
            given: Any = progress or None
            yield given
            return
        with _Bar(screen) as bar:
            yield bar.report
    finally:
        _BUSY.reset(token)


@runtime_checkable
class _Screen(Protocol):
    """A place where a bar is drawn."""

    def show(self, done: int, total: int | None, seconds: float) -> None:
        """Draw the bar, for the first time or again."""
        ...

    def close(self) -> None:
        """Leave the last state in view."""
        ...


class _Bar:
    """A bar that a thread draws, so that it also moves while a program compiles."""

    def __init__(self, screen: _Screen):
        self._screen = screen
        self._state: tuple[int, int | None] = (0, None)
        self._ended = threading.Event()
        self._begun = time.monotonic()
        # A notebook shows output in the cell that the context names.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._draw,), daemon=True
        )

    def __enter__(self) -> "_Bar":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, done: int, total: int) -> None:
        """Note the work that is done."""
        self._state = (done, total)

    def _draw(self) -> None:
        if self._ended.wait(PATIENCE):
            return
        # A terminal may be gone; the work goes on without it.
        with contextlib.suppress(OSError, ValueError):
            while True:
                last = self._ended.wait(PERIOD)
                self._screen.show(*self._state, time.monotonic() - self._begun)
                if last:
                    break
            self._screen.close()


def _screen(name: str) -> _Screen | None:
    """Return where a bar is drawn, or `None` without a terminal and a notebook."""
    if os.environ.get("MIJAX_PROGRESS") == "0":
        return None
    if _in_notebook():
        return _Notebook(name)
    return _Terminal(name) if _on_terminal() else None


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no stderr, or a closed one
        return False


def _in_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class _Terminal:
    """A bar on standard error."""

    def __init__(self, name: str):
        self._name = name
        self._bars: Any = None

    def show(self, done: int, total: int | None, seconds: float) -> None:
        if self._bars is None:
            self._bars = terminal_bars(auto_refresh=False)
            self._bars.start()
            self._task = self._bars.add_task(self._name, total=total)
            # Time counts from the start of the work, not of the bar.
            self._bars.tasks[0].start_time -= seconds
        self._bars.update(self._task, completed=done, total=total, refresh=True)

    def close(self) -> None:
        self._bars.stop()


def terminal_bars(*columns: Any, **options: Any) -> Any:
    """Return a `rich.progress.Progress` on standard error, legible on any background.

    Args:
        *columns: further columns, at the right.
        **options: of `Progress`.
    """
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.theme import Theme  # noqa: PLC0415

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *columns,
        console=Console(
            stderr=True, markup=False, highlight=False, emoji=False, theme=Theme(STYLES)
        ),
        # Lines for a pipe stay out of the terminal.
        redirect_stdout=bool(sys.stdout) and sys.stdout.isatty(),
        **options,
    )


class _Notebook:
    """A bar of plain HTML, which needs no widgets."""

    def __init__(self, name: str):
        self._name = name
        self._handle: Any = None

    def show(self, done: int, total: int | None, seconds: float) -> None:
        from IPython.display import display  # noqa: PLC0415  # pyright: ignore

        shown = _Shown(self._name, done, total, seconds)
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def close(self) -> None:
        pass


class _Shown:
    """One state of a bar in a notebook."""

    def __init__(self, name: str, done: int, total: int | None, seconds: float):
        self._name, self._share = name, done / total if total else None
        count = f"{done:,}/{total:,} " if total else ""
        left = ""
        if total and 0 < done < total:
            left = f", {_clock(seconds * (total - done) / done)} left"
        self._text = f"{count}{_clock(seconds)}{left}"

    def __repr__(self) -> str:
        return f"{self._name} {self._text}"

    def _repr_html_(self) -> str:
        value = "" if self._share is None else f' value="{self._share:.4f}"'
        return (
            f"<div>{escape(self._name)} <progress{value}></progress> {self._text}</div>"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
