"""Images in prompts: preprocessing, and the text that stands for an image."""

import dataclasses
from typing import Any

from mijax.data import ReadImage
from mijax.models._image_input import ImageInput


@dataclasses.dataclass(frozen=True)
class ImageText:
    """Preprocessing of one image, and the text that stands for it (LLaVA).

    Attributes:
        input: preprocessing of the pixels.
        token: id of the token of a feature.
        count: number of features of an image.
        placeholder: text of that token, which also stands for a whole image in a
            prompt.

    Examples:
        >>> import numpy as np
        >>> reader = ImageText(ImageInput(resize=8, crop=8), token=30, count=2)
        >>> read = reader(np.zeros((9, 12, 3), np.uint8))
        >>> read.crops.shape, read.text
        ((1, 3, 8, 8), '<image><image>')
    """

    input: ImageInput
    token: int
    count: int
    placeholder: str = "<image>"

    def __call__(self, image: Any) -> ReadImage:
        """Preprocess one image: a path, a Pillow image or an array of pixels."""
        return ReadImage(self.input(image)[None], self.placeholder * self.count)
