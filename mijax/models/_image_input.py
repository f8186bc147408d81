"""Preprocessing of images as a value: pixels to the input of a model."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, ShapeError
from mijax.models._pixels import BYTE, bytes_of, pixels_of, resized

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
METHODS = ("linear", "cubic")
AXES = ("channel", "row", "column")


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """Pixels to the input of an image model; belongs to its weights.

    The image is resized, its center is cut out, pixels are scaled to 0 to 1, and each
    channel is normalized: `(x - mean) / std`.

    Attributes:
        mean: one number per channel, in pixels from 0 to 1.
        std: one number per channel.
        resize: length of the shorter side afterwards (antialiased, rounded
            to 8 bits as Pillow does), or rows and columns; `None` keeps the size.
        crop: side of the central square that is cut out; `None` keeps everything.
        layout: axes of the result in order.
        method: resizing, `linear` (bilinear) or `cubic` (bicubic).

    Raises:
        ConfigError: a layout that does not name each axis once, or `mean` and `std` of
            different lengths.

    Examples:
        >>> import numpy as np
        >>> to_input = ImageInput(resize=8, crop=4)
        >>> to_input(np.zeros((20, 30, 3), np.uint8)).shape
        (3, 4, 4)
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    layout: str = "channel row column"
    method: str = "linear"

    def __post_init__(self) -> None:
        if sorted(self.layout.split()) != sorted(AXES):
            raise ConfigError(
                f"layout is {self.layout!r}; name {', '.join(AXES)} in the order of "
                "the model's input."
            )
        if self.method not in METHODS:
            raise ConfigError(
                f"method is {self.method!r}; give one of {', '.join(METHODS)}."
            )
        if len(self.mean) != len(self.std):
            raise ConfigError(
                f"mean has {len(self.mean)} numbers, std has {len(self.std)}: give one "
                "of each per channel."
            )

    def __call__(self, image: Any) -> Float[Array, "..."]:
        """Turn one image into the input of the model.

        Args:
            image: 8-bit pixels from 0 to 255 or floats from 0 to 1, `[row, column,
                channel]`, the path of a picture, or a Pillow image.

        Returns:
            float32, axes in the order of `layout`.

        Raises:
            LoadError: no picture, or a broken one.
            ShapeError: an array of another rank or number of channels, or an image that
                is smaller than `crop`.
        """
        image = pixels_of(image, len(self.mean))
        pixels = self._cropped(self._resized(bytes_of(image))) / BYTE
        x = (pixels - jnp.array(self.mean)) / jnp.array(self.std)
        return x.transpose([_PIXELS.index(axis) for axis in self.layout.split()])

    def pixels(
        self, x: Float[Array | np.ndarray, "..."]
    ) -> Float[np.ndarray, "row column channel"]:
        """Turn an input of the model back into an image, floats from 0 to 1."""
        order = [self.layout.split().index(axis) for axis in _PIXELS]
        image = np.asarray(x).transpose(order) * np.array(self.std)
        return np.clip(image + np.array(self.mean), 0, 1)

    def _resized(self, pixels: Float[Array, "row column channel"]) -> Array:
        if self.resize is None:
            return pixels
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            short = min(pixels.shape[:2])
            height, width = (self.resize * side // short for side in pixels.shape[:2])
        return resized(pixels, height, width, method=self.method)

    def _cropped(self, pixels: Float[Array, "row column channel"]) -> Array:
        if self.crop is None:
            return pixels
        rows, columns, _ = pixels.shape
        if min(rows, columns) < self.crop:
            raise ShapeError(
                f"The image has {rows} rows and {columns} columns, but crop is "
                f"{self.crop}: give a larger image, or a smaller crop."
            )
        top, left = (round((side - self.crop) / 2) for side in (rows, columns))
        return pixels[top : top + self.crop, left : left + self.crop]


_PIXELS = ("row", "column", "channel")
