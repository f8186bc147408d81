"""Heatmaps in the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.style import Style
from rich.text import Text

from mijax._errors import ShapeError
from mijax.viz._heatmap import finite, limits
from mijax.viz._labels import readable
from mijax.viz._style import Grid

_POSITIVE = (178, 24, 43)
_NEGATIVE = (33, 102, 172)


@dataclass(frozen=True)
class TerminalHeatmap:
    """A grid of coloured numbers that rich can print.

    Columns that do not fit the terminal go into further blocks below. Without colour
    the numbers remain.

    Attributes:
        values: the grid `[row, column]`.
        row_labels: one per row.
        col_labels: one per column.
        title: printed above.
    """

    values: Float[np.ndarray, "row column"]
    row_labels: tuple[str, ...]
    col_labels: tuple[str, ...]
    title: str

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Text]:
        """Yields the lines."""
        if self.title:
            yield Text(self.title, style="bold")
        texts = [[_number(value) for value in row] for row in self.values]
        margin = max(cell_len(label) for label in self.row_labels)
        widths = [
            max(min(cell_len(label), 8), *(len(row[j]) for row in texts)) + 1
            for j, label in enumerate(self.col_labels)
        ]
        reach = limits([self.values], 0.0)[1]
        for index, (first, last) in enumerate(
            _blocks(widths, options.max_width - margin - 1)
        ):
            if index:
                yield Text("")
            head = Text(" " * (margin + 1))
            for j in range(first, last):
                head.append(_right(self.col_labels[j], widths[j]))
            yield head
            for i, row in enumerate(texts):
                out = Text(_right(self.row_labels[i], margin + 1)[1:] + " ")
                for j in range(first, last):
                    style = _colour(float(self.values[i, j]), reach)
                    out.append(_right(row[j], widths[j]), style=style)
                yield out


def terminal_heatmap(
    values: Grid,
    *,
    row_labels: Sequence[object] | None = None,
    col_labels: Sequence[object] | None = None,
    title: str = "",
) -> TerminalHeatmap:
    """Makes a heatmap for the terminal: red above zero, blue below.

    Args:
        values: the grid `[row, column]`.
        row_labels: one per row; indices without them.
        col_labels: one per column; indices without them.
        title: printed above.

    Returns:
        Something for `rich.print` or `Console.print`.

    Raises:
        ShapeError: when labels do not fit or the grid is empty.

    Examples:
        >>> import numpy as np
        >>> from rich.console import Console
        >>> Console(color_system=None).print(terminal_heatmap(np.eye(2)))
              0    1
        0  1.00 0.00
        1  0.00 1.00
    """
    grid = finite(values)
    rows, columns = grid.shape
    if not grid.size:
        raise ShapeError(f"a grid of shape {grid.shape}; expected at least one cell.")
    row_texts = tuple(readable(str(v)) for v in row_labels or range(rows))
    col_texts = tuple(readable(str(v)) for v in col_labels or range(columns))
    if (len(row_texts), len(col_texts)) != grid.shape:
        raise ShapeError(
            f"{len(row_texts)} row labels and {len(col_texts)} column labels for a "
            f"grid of shape {grid.shape}; give one each."
        )
    return TerminalHeatmap(grid, row_texts, col_texts, title)


def _number(value: float) -> str:
    if np.isnan(value):
        return "nan"
    if abs(value) >= 1e4:
        return f"{value:.1e}"
    text = f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
    return text.removeprefix("-") if text == "-0.00" else text


def _right(text: str, width: int) -> str:
    if cell_len(text) >= width:  # one column stays free between neighbours
        return " " + set_cell_size(text, width - 2) + "…"
    return " " * (width - cell_len(text)) + text


def _blocks(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns that fit the room side by side; at least one each."""
    first, used = 0, 0
    for j, width in enumerate(widths):
        if j > first and used + width > room:
            yield first, j
            first, used = j, 0
        used += width
    yield first, len(widths)


def _colour(value: float, reach: float) -> Style:
    """Ink and paper are both set, so that the cell reads on any terminal."""
    if np.isnan(value):
        return Style(color="#000000", bgcolor="#9a9a9a")
    share = min(abs(value) / reach, 1.0)
    end = _POSITIVE if value > 0 else _NEGATIVE
    red, green, blue = (round(247 + (part - 247) * share) for part in end)
    ink = "#000000" if share < 0.55 else "#ffffff"
    return Style(color=ink, bgcolor=f"#{red:02x}{green:02x}{blue:02x}")
