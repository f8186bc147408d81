"""A small network in which one channel of each layer carries each class."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mijax.io import save_safetensors
from mijax.models import CifarResNetSpec, ImageInput

COLORS = 3
SPEC = CifarResNetSpec(blocks=(1, 1), widths=(4, 8), classes=COLORS)
INPUT = ImageInput(mean=(0.5,) * 3, std=(0.25,) * 3)
SIDE = 12


class Planted(NamedTuple):
    """Files of the network and its images, and its truth.

    Attributes:
        weights: the weights.
        images: images whose classes are red, green and blue.
        channels: for some layers of `relu` the channel that carries each class.
    """

    weights: Path
    images: Path
    channels: dict[int, tuple[int, ...]]


def planted(folder: Path, *, images: int, seed: int) -> Planted:
    """Write the network and its images.

    The stem has one channel for each color, and shortcuts carry these channels to the
    last layer, where each is read by its class. All other weights are small and random,
    and no convolution of a block writes into these channels. The second stage has eight
    channels: its shortcut moves channel `i` to `i + 2`.

    Args:
        folder: where the files are written.
        images: number of images.
        seed: of weights and images.
    """
    draw = np.random.default_rng(seed)
    small = lambda *shape: 0.05 * draw.standard_normal(shape).astype("f4")  # noqa: E731
    arrays = {"linear.weight": small(COLORS, 8), "linear.bias": np.zeros(COLORS, "f4")}
    stem = small(4, 3, 3, 3)
    stem[:COLORS] = 0
    for i in range(COLORS):
        stem[i, i, 1, 1] = 1
        arrays["linear.weight"][:, i + 2] = 0
        arrays["linear.weight"][i, i + 2] = 2
    arrays["conv1.weight"] = stem
    norms = [("bn1", 4)]
    for name, inputs, width, first in (("layer1.0", 4, 4, 0), ("layer2.0", 4, 8, 2)):
        arrays[f"{name}.conv1.weight"] = small(width, inputs, 3, 3)
        arrays[f"{name}.conv2.weight"] = small(width, width, 3, 3)
        arrays[f"{name}.conv2.weight"][first : first + COLORS] = 0
        norms += [(f"{name}.bn1", width), (f"{name}.bn2", width)]
    for name, width in norms:
        for field in ("weight", "running_var"):
            arrays[f"{name}.{field}"] = np.ones(width, "f4")
        for field in ("bias", "running_mean"):
            arrays[f"{name}.{field}"] = np.zeros(width, "f4")
    weights = folder / "planted.safetensors"
    save_safetensors(arrays, weights)
    pixels = draw.integers(0, 190, (images, SIDE, SIDE, COLORS))
    labels = np.arange(images) % COLORS
    pixels[np.arange(images), 3:9, 3:9, labels] = 250
    file = folder / "planted.npz"
    names = np.array(["red", "green", "blue"])
    np.savez(file, images=pixels.astype(np.uint8), labels=labels, names=names)
    stem_and_block = {0: (0, 1, 2), 2: (0, 1, 2), 4: (2, 3, 4)}
    return Planted(weights, file, stem_and_block)
