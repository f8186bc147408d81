"""Pictures as files."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mijax._errors import OutputError

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

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> from mijax.viz import heatmap
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> [file.name for file in save(heatmap(np.eye(2)), folder / "identity")]
        ['identity.png', 'identity.svg']
    """
    import matplotlib  # noqa: PLC0415

    stem = Path(stem)
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mijax", "svg.fonttype": "path"}):
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        nothing = {"Date": None, "Creator": None}
        figure.savefig(svg, format="svg", metadata=nothing)
    return (
        _write(stem.with_name(f"{stem.name}.png"), png.getvalue()),
        _write(stem.with_name(f"{stem.name}.svg"), svg.getvalue()),
    )


def _write(path: Path, data: bytes) -> Path:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            beside.write_bytes(data)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}. Choose another place."
        ) from error
    return path
