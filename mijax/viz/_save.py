"""Pictures as files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mijax.io import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", stem: str | Path) -> tuple[Path, Path]:
    """Writes a figure as PNG (150 dots per inch) and SVG, by atomic rename.

    The bytes depend on the figure alone: no dates, identifiers from a fixed salt,
    letters as outlines.

    Args:
        figure: a matplotlib figure.
        stem: path without a suffix; a dot in it is kept.

    Returns:
        The PNG and the SVG file.

    Raises:
        OutputError: when a file cannot be written.

    Examples:
        >>> import numpy as np, pathlib, tempfile
        >>> from mijax.viz import heatmap
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> [file.name for file in save(heatmap(np.eye(2)), folder / "identity")]
        ['identity.png', 'identity.svg']
    """
    stem = Path(stem)
    png = stem.with_name(f"{stem.name}.png")
    svg = stem.with_name(f"{stem.name}.svg")
    save_png(figure, png)
    _write(svg, _drawn(figure, "svg", {"Date": None, "Creator": None}))
    return png, svg


def save_png(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure as PNG (150 dots per inch), by atomic rename.

    Args:
        figure: a matplotlib figure.
        path: the file.

    Returns:
        The file.

    Raises:
        OutputError: when it cannot be written.

    Examples:
        >>> import numpy as np, tempfile
        >>> from mijax.viz import heatmap
        >>> save_png(heatmap(np.eye(2)), f"{tempfile.mkdtemp()}/a.png").name
        'a.png'
    """
    return _write(Path(path), _drawn(figure, "png", {"Software": None}))


def save_page(page: str, path: str | Path) -> Path:
    """Writes a page, by atomic rename.

    Args:
        page: HTML, such as `attention_page`, `circuit_page` or `feature_pages` give.
        path: the file.

    Returns:
        The file.

    Raises:
        OutputError: when it cannot be written.

    Examples:
        >>> import tempfile
        >>> save_page("<!doctype html>", f"{tempfile.mkdtemp()}/index.html").name
        'index.html'
    """
    return _write(Path(path), page.encode("utf-8"))


def _drawn(figure: "Figure", kind: str, metadata: dict[str, None]) -> bytes:
    import matplotlib  # noqa: PLC0415

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mijax", "svg.fonttype": "path"}):
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)
    return file.getvalue()


def _write(path: Path, data: bytes) -> Path:
    def fill(scratch: Path) -> None:
        scratch.write_bytes(data)

    replace_file(path, fill)
    return path
