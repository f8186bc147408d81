"""Labeled images from a file."""

import dataclasses
import io
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from mijax._errors import ConfigError, LoadError
from mijax.io import digest

CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# A number, which is the class, and the words after the last identifier.
MEMBER = re.compile(r"(\d+)_(?:n\d+_)?(\w+)\.(?:jpe?g|png)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Images:
    """Labeled images.

    Attributes:
        pixels: each `[row, column, channel]`, 8 bits.
        labels: class of each.
        names: name of each class that occurs.
        digest: of the file.
    """

    pixels: list[UInt8[np.ndarray, "row column channel"]]
    labels: np.ndarray
    names: dict[int, str]
    digest: str

    def some(self, index: Iterable[int]) -> "Images":
        """Return some of them."""
        index = list(index)
        pixels = [self.pixels[i] for i in index]
        return Images(pixels, self.labels[index], self.names, self.digest)


def read_images(path: str) -> Images:
    """Read images and their classes.

    Args:
        path: an `.npz` file with `images [image, row, column, channel]`, `labels`, and
            perhaps `names` of the classes (those of CIFAR-10 where there are ten), or a
            zip file of pictures called `CLASS_name.jpg`, where CLASS is a number.

    Returns:
        The images.

    Raises:
        LoadError: neither kind of file, or one without these entries.
    """
    file = Path(path)
    if file.suffix not in (".npz", ".zip") or not file.is_file():
        raise LoadError(
            f"{path} is not an .npz or .zip file of images. Give --data: images and "
            "labels in an .npz file, or a zip of pictures named CLASS_name.jpg."
        )
    return _arrays(file) if file.suffix == ".npz" else _pictures(file)


def _arrays(file: Path) -> Images:
    """Read an `.npz` file."""
    with np.load(file, allow_pickle=False) as arrays:
        if not {"images", "labels"} <= {*arrays.files}:
            raise LoadError(
                f"{file} holds {', '.join(arrays.files)}; expected images and labels."
            )
        pixels, labels = arrays["images"], arrays["labels"].astype(int)
        given = arrays["names"].tolist() if "names" in arrays.files else CIFAR10
    known = dict(enumerate(given if len(given) == labels.max() + 1 else ()))
    names = {i: known.get(i, f"class {i}") for i in sorted({*labels.tolist()})}
    return Images(list(pixels), labels, names, digest([file]))


def _pictures(file: Path) -> Images:
    """Read a zip file of pictures."""
    pixels, labels, names = [], [], {}
    with zipfile.ZipFile(file) as archive:
        for member in sorted(archive.namelist()):
            found = MEMBER.fullmatch(Path(member).name)
            if found is None:
                continue
            picture = Image.open(io.BytesIO(archive.read(member))).convert("RGB")
            pixels.append(np.asarray(picture))
            labels.append(int(found[1]))
            names[labels[-1]] = found[2].replace("_", " ")
    if not pixels:
        raise LoadError(f"{file} has no pictures named CLASS_name.jpg.")
    return Images(pixels, np.array(labels), names, digest([file]))


def prepared(
    images: Images, to_input: Callable[[np.ndarray], Array]
) -> Float[np.ndarray, "image ..."]:
    """Preprocess images, each shape compiled once."""
    program = jax.jit(to_input)
    return np.stack([np.asarray(program(pixels)) for pixels in images.pixels])


def chosen(
    images: Images, right: np.ndarray, *, classes: tuple[str, ...], per_class: int
) -> list[int]:
    """Return the first images of each class that the model classifies correctly.

    Args:
        images: the images.
        right: for each image, whether the model's class is its label.
        classes: names of classes, none for all.
        per_class: number of images of each class; fewer where there are fewer.

    Raises:
        ConfigError: a class that no image has, or no image that is right.
    """
    known = {name: label for label, name in images.names.items()}
    for name in classes:
        if name not in known:
            raise ConfigError(
                f"There are no images of the class {name!r}; there are "
                f"{', '.join(list(known)[:12])}."
            )
    labels = [known[name] for name in classes or known]
    where = [np.flatnonzero((images.labels == one) & right) for one in labels]
    index = [int(i) for one in where for i in one[:per_class]]
    if not index:
        raise ConfigError("The model classifies no image of these classes correctly.")
    return index
