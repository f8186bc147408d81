"""What a model loader needs of a weight file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Tensors(Protocol):
    """Named arrays that are read one at a time.

    Attributes:
        path: what error messages name.
        files: every file that holds weights.
        shapes: name of each array, and its shape.
    """

    path: Path
    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """Reads one array in the precision that the file has (raises LoadError)."""
        ...
