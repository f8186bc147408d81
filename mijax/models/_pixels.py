"""Images as arrays: from a file, from Pillow, from NumPy."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from mijax._errors import LoadError, ShapeError, quoted

Pixels = Num[Array | np.ndarray, "row column channel"]
BYTE = 255
MODES = {1: "L", 3: "RGB"}


def pixels_of(image: Any, channels: int = 3) -> Pixels:
    """Return the pixels of an image.

    Args:
        image: an array `[row, column, channel]`, 8-bit pixels from 0 to 255 or floats
            from 0 to 1 (`[row, column]` too where there is one channel), the path of a
            picture, or a Pillow image. Pictures are converted to the colors of the
            model, red, green and blue, or gray.
        channels: number of channels, 1 or 3 for pictures.

    Returns:
        The array.

    Raises:
        LoadError: no picture, or a broken one.
        ShapeError: an array of another rank or number of channels, or neither an array
            nor a picture.
    """
    if isinstance(image, str | os.PathLike):
        image = _opened(image)
    if hasattr(image, "convert"):
        if channels not in MODES:
            raise ShapeError(
                f"A picture has 1 or 3 channels, the model takes {channels}: give an "
                f"array [row, column, {channels}]."
            )
        image = np.asarray(image.convert(MODES[channels]))
    if not isinstance(image, np.ndarray | jax.Array):
        raise ShapeError(
            f"Expected an image, got {quoted(image)}: give an array [row, column, "
            "channel], the path of a picture, or a Pillow image."
        )
    if channels == 1 and image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] != channels:
        raise ShapeError(
            f"The image has shape {list(image.shape)}, expected [row, column, "
            f"{channels}]. Map over a batch with jax.vmap."
        )
    return image


def bytes_of(image: Pixels) -> Float[Array, "row column channel"]:
    """Return pixels as floats from 0 to 255."""
    pixels = jnp.asarray(image, jnp.float32)
    return pixels if image.dtype == np.uint8 else BYTE * pixels


def resized(
    pixels: Float[Array, "row column channel"],
    rows: int,
    columns: int,
    *,
    method: str = "linear",
    antialias: bool = True,
) -> Float[Array, "row_2 column_2 channel"]:
    """Resize along columns, then rows, rounding to 8 bits after each as Pillow does."""
    for shape in ((pixels.shape[0], columns), (rows, columns)):
        size = (*shape, pixels.shape[-1])
        pixels = jax.image.resize(pixels, size, method, antialias=antialias)
        pixels = jnp.clip(jnp.floor(pixels + 0.5), 0, BYTE)
    return pixels


def _opened(path: str | os.PathLike[str]) -> Any:
    """Open a picture with Pillow."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - slow to import

    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, UnidentifiedImageError) as error:
        raise LoadError(f"{os.fspath(path)} is not a picture: {error}.") from error
