"""Images split into tiles for an image tower (Idefics3, SmolVLM)."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.data import ReadImage
from mijax.models._pixels import BYTE, bytes_of, pixels_of, resized

# No side is longer than this after resizing.
LONGEST = 4096
METHOD = "lanczos3"


@dataclasses.dataclass(frozen=True)
class TiledImage:
    """Preprocessing of an image into tiles plus the whole image, with their text.

    The longer side is resized to `longest`, then both sides to multiples of `tile`. The
    tiles come in row-major order, followed by the whole image resized to one tile. An
    image that fits into one tile is used once. Pixels become `(x - 0.5) / 0.5`.

    Attributes:
        longest: the longer side after resizing, in pixels.
        tile: side of a tile, in pixels.
        token: id of the token of a feature.
        count: number of features of a tile.
        placeholder: text of that token, which also stands for a whole image in a
            prompt.
        around: text of the token before each tile and after the last.
        whole: text before the features of the whole image.

    Examples:
        >>> import numpy as np
        >>> reader = TiledImage(longest=8, tile=4, token=30, count=1)
        >>> read = reader(np.zeros((2, 4, 3), np.uint8))
        >>> read.crops.shape  # one row of two tiles, and the whole image
        (3, 3, 4, 4)
        >>> read.text.count("<image>"), "<row_1_col_2>" in read.text
        (3, True)
    """

    longest: int
    tile: int
    token: int
    count: int
    placeholder: str = "<image>"
    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    def __call__(self, image: Any) -> ReadImage:
        """Preprocess one image: a path, a Pillow image or an array of pixels."""
        pixels = bytes_of(pixels_of(image))
        size = self._longer(*pixels.shape[:2])
        pixels = resized(pixels, *size, method=METHOD)
        size = self._tiled(*size)
        pixels = resized(pixels, *size, method=METHOD)
        rows, columns = (side // self.tile for side in size)
        cut = [(r, c) for r in range(rows) for c in range(columns)]
        side = self.tile
        crops = [
            pixels[r * side : (r + 1) * side, c * side : (c + 1) * side] for r, c in cut
        ]
        if len(cut) == 1:
            return ReadImage(_normal(crops), self._text(0, 0))
        crops.append(resized(pixels, side, side, method=METHOD))
        return ReadImage(_normal(crops), self._text(rows, columns))

    def _longer(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the size whose longer side is `longest`; the other one is even."""
        ratio = columns / rows
        longest = self.longest
        if columns >= rows:
            short = int(longest / ratio)
            rows, columns = short + short % 2, longest
        else:
            short = int(longest * ratio)
            rows, columns = longest, short + short % 2
        rows, columns = max(rows, 1), max(columns, 1)
        ratio = columns / rows
        if columns >= rows and columns > LONGEST:
            rows, columns = int(LONGEST / ratio), LONGEST
        elif rows > columns and rows > LONGEST:
            rows, columns = LONGEST, int(LONGEST * ratio)
        return max(rows, 1), max(columns, 1)

    def _tiled(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the size of whole tiles."""
        up = lambda side: math.ceil(side / self.tile) * self.tile  # noqa: E731
        ratio = columns / rows
        if columns >= rows:
            columns = up(columns)
            return up(int(columns / ratio)), columns
        rows = up(rows)
        return rows, up(int(rows * ratio))

    def _text(self, rows: int, columns: int) -> str:
        """Return the text for the tiles and the whole image."""
        features = self.placeholder * self.count
        found = ""
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                found += f"{self.around}<row_{row}_col_{column}>{features}"
            found += "\n"
        found += "\n" if rows else ""
        return f"{found}{self.around}{self.whole}{features}{self.around}"


def _normal(
    crops: list[Float[Array, "row column channel"]],
) -> Float[Array, "crop channel row column"]:
    """Return crops of bytes as inputs of the tower."""
    return (jnp.stack(crops).transpose(0, 3, 1, 2) / BYTE - 0.5) / 0.5
