"""Images in prompts: preprocessing, and the text that stands for an image."""

import dataclasses
from typing import Any

from mijax.data import ReadImage
from mijax.models._image_input import ImageInput


@dataclasses.dataclass(frozen=True)
class ImageText:
    """Preprocessing of one image, and the text that stands for it.

    Attributes:
        input: preprocessing of the pixels.
        token: id of the token of a feature.
        count: number of features of an image.
        placeholder: text that stands for an image in a prompt.
        feature: text of the token of a feature; the placeholder by default.
        before: text before the features.
        after: text after them.

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
    feature: str | None = None
    before: str = ""
    after: str = ""

    def __call__(self, image: Any) -> ReadImage:
        """Preprocess one image: a path, a Pillow image or an array of pixels."""
        features = (self.feature or self.placeholder) * self.count
        return ReadImage(self.input(image)[None], self.before + features + self.after)
