"""Preprocessing of a detector as a value: a whole image in a square, and back."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError
from mijax.models._pixels import BYTE, bytes_of, pixels_of, resized


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """Pixels to the input of a detector, and boxes back to the image.

    The image is resized so that its longer side fills the square (bilinear without
    antialiasing, rounded to 8 bits), centered, and surrounded by gray. Pixels are
    scaled to 0 to 1.

    Attributes:
        size: side of the square, in pixels.
        pad: value of the pixels around the image, 0 to 255.

    Raises:
        ConfigError: a size that is not a positive multiple of 32, or a pad that is not
            an 8-bit value.

    Examples:
        >>> import numpy as np
        >>> to_input = Letterbox(size=64)
        >>> image = np.zeros((30, 20, 3), np.uint8)
        >>> to_input(image).shape
        (3, 64, 64)
        >>> x = np.array([[10.0, 0.0, 52.7, 64.0]])
        >>> to_input.to_image(x, image.shape).round(1).tolist()
        [[0.0, 0.0, 20.0, 30.0]]
    """

    size: int = 640
    pad: int = 114

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 32:
            raise ConfigError(f"size is {self.size}; give a positive multiple of 32.")
        if not 0 <= self.pad <= BYTE:
            raise ConfigError(f"pad is {self.pad}; give a value from 0 to 255.")

    def __call__(self, image: Any) -> Float[Array, "channel row column"]:
        """Turn one image into the input of the model.

        Args:
            image: 8-bit pixels from 0 to 255 or floats from 0 to 1, `[row, column,
                channel]`, the path of a picture, or a Pillow image.

        Returns:
            Red, green and blue from 0 to 1, `[channel, row, column]`.

        Raises:
            LoadError: no picture, or a broken one.
            ShapeError: an array of another rank or number of channels.
        """
        array = pixels_of(image)
        pixels = bytes_of(array)
        height, width, top, left = self._placed(array.shape)
        if (height, width) != array.shape[:2]:
            pixels = resized(pixels, height, width, antialias=False)
        square = jnp.full((self.size, self.size, 3), float(self.pad))
        square = square.at[top : top + height, left : left + width].set(pixels)
        return square.transpose(2, 0, 1) / BYTE

    def pixels(
        self, x: Float[Array | np.ndarray, "channel row column"]
    ) -> Float[np.ndarray, "row column channel"]:
        """Turn an input of the model back into a picture of the square, 0 to 1."""
        return np.clip(np.asarray(x).transpose(1, 2, 0), 0, 1)

    def to_image(
        self,
        boxes: Float[Array | np.ndarray, "*n 4"],
        shape: tuple[int, ...],
    ) -> Float[np.ndarray, "*n 4"]:
        """Turn boxes in the square into boxes in the image.

        Args:
            boxes: left, top, right, bottom in pixels of the square.
            shape: shape of the image, rows and columns first.

        Returns:
            Boxes in pixels of the image, cut off at its borders.
        """
        _, _, top, left = self._placed(shape)
        rows, columns = shape[:2]
        scale = self.size / max(rows, columns)
        shifted = np.asarray(boxes) - np.array([left, top, left, top], np.float32)
        most = np.array([columns, rows, columns, rows], np.float32)
        return np.clip(shifted / np.float32(scale), 0, most)

    def to_input(
        self,
        boxes: Float[Array | np.ndarray, "*n 4"],
        shape: tuple[int, ...],
    ) -> Float[np.ndarray, "*n 4"]:
        """Turn boxes in the image into boxes in the square.

        Args:
            boxes: left, top, right, bottom in pixels of the image.
            shape: shape of the image, rows and columns first.

        Returns:
            Boxes in pixels of the square.
        """
        _, _, top, left = self._placed(shape)
        scale = np.float32(self.size / max(shape[:2]))
        corner = np.array([left, top, left, top], np.float32)
        return np.asarray(boxes, np.float32) * scale + corner

    def _placed(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return height, width, top and left of the image in the square."""
        rows, columns = shape[:2]
        scale = self.size / max(rows, columns)
        height, width = round(rows * scale), round(columns * scale)
        # Halves round down, as in Ultralytics.
        top, left = (round((self.size - n) / 2 - 0.1) for n in (height, width))
        return height, width, top, left
