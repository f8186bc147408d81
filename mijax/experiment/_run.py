"""The notebook that an experiment writes its results into."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, final, runtime_checkable

import numpy as np

from mijax._errors import ConfigError, OutputError, ShapeError
from mijax.experiment._config import Expected, Value
from mijax.experiment._files import writable, write
from mijax.experiment._observer import Cell, Number, Observer, Progress, Silent, Table

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from matplotlib.figure import Figure


@runtime_checkable
class IntervalLike(Protocol):
    """An estimate with a confidence interval, such as `mijax.core.Interval`."""

    mean: Any
    low: Any
    high: Any


Scalar = Any
"""A number, a 0-d array, an `IntervalLike`, a word or a list of words."""


@dataclass(frozen=True)
class Picture:
    """A picture or a page in the run folder: its files, best one first."""

    name: str
    files: tuple[str, ...]
    caption: str = ""


@dataclass
class Notes:
    """Everything that a run has reported so far."""

    numbers: list[Number] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    pages: list[Picture] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


@final
class Run:
    """What `run(config, run)` of an experiment reports to.

    Attributes:
        folder: the folder for files of the run. It is renamed at the end, so keep no
            path into it.
        expected: the published numbers of the config, by name.
        notes: everything reported so far.

    Examples:
        >>> import pathlib, tempfile
        >>> run = Run(pathlib.Path(tempfile.mkdtemp()))
        >>> run.number("accuracy", 0.75)
        >>> run.notes.numbers[0].text
        '0.75'
    """

    folder: Path
    expected: Mapping[str, Expected]
    notes: Notes

    def __init__(
        self,
        folder: Path,
        *,
        expected: Mapping[str, Expected] | None = None,
        observer: Observer | None = None,
        scratch: Path | None = None,
    ):
        self.folder = folder
        self._scratch = folder / "scratch" if scratch is None else scratch
        self.expected = dict(expected or {})
        self.notes = Notes()
        self._observer: Observer = observer or Silent()

    @property
    def scratch(self) -> Path:
        """Folder for files to resume a killed run from, removed when the run ends."""
        with writable(self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    @property
    def mesh(self) -> "Mesh | None":
        """All devices of all processes along an axis `data`; `None` if there is one."""
        import jax  # noqa: PLC0415  (`mijax list` must not wait for it)

        devices = np.array(jax.devices())
        return jax.sharding.Mesh(devices, ("data",)) if len(devices) > 1 else None

    @contextmanager
    def progress(self, name: str) -> Iterator[Progress]:
        """A timed stage of work, drawn as a progress bar.

        Args:
            name: what the stage does.

        Yields:
            A callable that takes (done, total), as `sweep(..., progress=)` wants it.
        """
        start = time.perf_counter()
        try:
            with self._observer.stage(name) as advance:
                yield advance
        finally:
            spent = time.perf_counter() - start
            self.notes.stages[name] = self.notes.stages.get(name, 0.0) + spent

    def number(self, name: str, value: Scalar, *, note: str = "") -> None:
        """Reports a number, which `expected:` of the config is compared with.

        Args:
            name: its name, the key under `expected:`.
            value: a number, a 0-d array, an interval with `mean`, `low` and `high`, a
                word, or a list of words.
            note: a remark for the tables.

        Raises:
            ConfigError: when the name was reported before.
            ShapeError: when the value is not a scalar.
        """
        if any(number.name == name for number in self.notes.numbers):
            raise ConfigError(f"the number {name!r} is reported twice. Use two names.")
        if isinstance(value, IntervalLike):
            samples = getattr(value, "n", None)
            number = Number(
                name,
                _float(name, value.mean),
                low=_float(name, value.low),
                high=_float(name, value.high),
                count=None if samples is None else int(_float(name, samples)),
                note=note,
            )
        else:
            number = Number(name, _value(name, value), note=note)
        self.notes.numbers.append(number)
        self._observer.number(number)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]
    ) -> None:
        """Reports a table.

        Args:
            title: its title.
            columns: names of the columns.
            rows: cells: words, numbers, 0-d arrays, intervals or None.

        Raises:
            ShapeError: when a row has not one cell per column.
        """
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise ShapeError(
                    f"row {index} of the table {title!r} has {len(row)} cells; "
                    f"expected {len(columns)}, one per column."
                )
        cells = tuple(tuple(_cell(title, cell) for cell in row) for row in rows)
        table = Table(title, tuple(columns), cells)
        self.notes.tables.append(table)
        self._observer.table(table)

    def figure(self, name: str, figure: "Figure", *, caption: str = "") -> None:
        """Keeps a matplotlib figure as `name.png` and `name.svg`.

        Args:
            name: stem of the files.
            figure: the figure.
            caption: one or two sentences for the report.

        Raises:
            OutputError: when the name is taken or is no file name, or on a full disk.
        """
        from mijax import viz  # noqa: PLC0415  (imports matplotlib)

        self._claim(name)
        with writable(self.folder / name):
            files = viz.save(figure, self.folder / name)
        picture = Picture(name, tuple(file.name for file in files), caption)
        self.notes.pictures.append(picture)

    def page(self, name: str, html: str, *, caption: str = "") -> None:
        """Keeps a self-contained HTML page as `name.html`.

        Args:
            name: stem of the file.
            html: the page, without links to anything outside it.
            caption: one or two sentences for the report.

        Raises:
            OutputError: when the name is taken or is no file name, or on a full disk.
        """
        self._claim(name)
        file = write(self.folder / f"{name}.html", html)
        self.notes.pages.append(Picture(name, (file.name,), caption))

    def weights(self, name: str, digest: str) -> None:
        """Records which weights were used."""
        self.notes.weights[name] = digest

    def data(self, name: str, digest: str) -> None:
        """Records which data were used."""
        self.notes.data[name] = digest

    def seed(self, name: str, value: int) -> None:
        """Records a seed."""
        self.notes.seeds[name] = int(value)

    def _claim(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise OutputError(
                f"{name!r} is no name for a picture or page; use letters, digits, "
                "'.', '_' and '-'."
            )
        taken = {p.name for p in (*self.notes.pictures, *self.notes.pages)}
        if name in taken | {"report", "config", "record", "result", "scratch"}:
            raise OutputError(f"the name {name!r} is taken. Use another one.")


def _cell(title: str, value: Scalar) -> Cell:
    if value is None:
        return None
    if isinstance(value, IntervalLike):
        low, high = _float(title, value.low), _float(title, value.high)
        return Number(title, _float(title, value.mean), low=low, high=high).text
    plain = _value(title, value)
    return ", ".join(plain) if isinstance(plain, tuple) else plain


def _value(name: str, value: Scalar) -> Value:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(str(item) for item in value)
    # Arrays of JAX and NumPy: `item` gives the Python number of a single element.
    item = cast("Callable[[], Any] | None", getattr(value, "item", None))
    if item is None or getattr(value, "size", 1) != 1:
        shape = getattr(value, "shape", None)
        what = type(value).__name__ if shape is None else f"an array of shape {shape}"
        raise ShapeError(
            f"{name!r} is {what}; expected one number, an interval, a word or a list "
            "of words. Reduce it to a scalar."
        )
    return item()


def _float(name: str, value: Scalar) -> float:
    plain = _value(name, value)
    if isinstance(plain, str | tuple):
        raise ShapeError(f"{name!r} is {plain!r}; expected a number.")
    return float(plain)
