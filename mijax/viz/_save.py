"""Pictures as files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mijax.io import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Entries that are left out, so that equal figures make equal files.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def save(figure: "Figure", path: str | Path) -> tuple[Path, ...]:
    """Write a figure as PNG and SVG, or in the format that the name gives.

    Files appear by atomic rename, and PNG has 150 dots per inch. The bytes depend only
    on the figure: no dates, identifiers from a fixed salt, letters as outlines.

    Args:
        figure: a matplotlib figure.
        path: `"fig"` writes `fig.png` and `fig.svg`; `"fig.png"`, `"fig.svg"` or
            `"fig.pdf"` write only that file. Other dots are part of the name.

    Returns:
        The files that were written.

    Raises:
        OutputError: if a file cannot be written.

    Examples:
        >>> import numpy as np, pathlib, tempfile
        >>> from mijax.viz import heatmap
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> [file.name for file in save(heatmap(np.eye(2)), folder / "identity")]
        ['identity.png', 'identity.svg']
        >>> [file.name for file in save(heatmap(np.eye(2)), folder / "one.png")]
        ['one.png']
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind in _METADATA:
        return (_write(path, drawn(figure, kind)),)
    names = {kind: path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")}
    return tuple(_write(name, drawn(figure, kind)) for kind, name in names.items())


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
    return _write(Path(path), drawn(figure, "png"))


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


def drawn(figure: "Figure", kind: str) -> bytes:
    """Return the bytes of a picture file."""
    import matplotlib  # noqa: PLC0415

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mijax", "svg.fonttype": "path"}):
        figure.savefig(file, format=kind, dpi=150, metadata=_METADATA[kind])
    return file.getvalue()


def _write(path: Path, data: bytes) -> Path:
    def fill(scratch: Path) -> None:
        scratch.write_bytes(data)

    replace_file(path, fill)
    return path
