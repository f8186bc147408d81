"""Compare preprocessor_config.json with a family's preprocessing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mijax._errors import LoadError
from mijax.io import read_json
from mijax.models._image_text import ImageText
from mijax.models._tiles import TiledImage

# What these keys have to be where a file has them, for every model.
FLAGS: dict[str, Any] = {
    "do_normalize": True,
    "do_pad": (False, None),
    "do_pan_and_scan": (False, None),
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
}
# Numbers of Pillow.
RESAMPLE = {"linear": 2, "cubic": 3, "lanczos3": 1}


def check_preprocessing(reader: Any, folder: Path) -> None:
    """Raise if a folder specifies different image preprocessing.

    Args:
        reader: preprocessing of the family; of anything but images nothing is compared.
        folder: the folder; without preprocessor_config.json nothing is compared.

    Raises:
        LoadError: a key with another value.
    """
    path = folder / "preprocessor_config.json"
    images = isinstance(reader, ImageText | TiledImage)
    if not images or not path.is_file():
        return
    config = read_json(path)
    for key, value in expected(reader).items():
        allowed = value if isinstance(value, tuple) else (value,)
        if key in config and not any(_same(config[key], one) for one in allowed):
            raise LoadError(
                f"{path}: '{key}' is {config[key]!r:.60}, but the preprocessing of "
                f"this model has {allowed[0]!r:.60}. Remove the file to use that one."
            )


def expected(reader: ImageText | TiledImage) -> Mapping[str, Any]:
    """Return the keys that describe a reader's preprocessing."""
    if isinstance(reader, TiledImage):
        return FLAGS | {
            "do_image_splitting": True,
            # Tiles are whole, so that nothing is padded.
            "do_pad": (True, False),
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "max_image_size": {"longest_edge": reader.tile},
            "resample": RESAMPLE["lanczos3"],
            "size": {"longest_edge": reader.longest},
        }
    pixels = reader.input
    size = pixels.resize
    sides = size if isinstance(size, tuple) else (pixels.crop, pixels.crop)
    found = FLAGS | {
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "resample": RESAMPLE[pixels.method],
        "size": {"height": sides[0], "width": sides[1]},
    }
    if isinstance(size, tuple):
        return found
    shorter = {"shortest_edge": size}
    return found | {
        # A number is the shorter edge too, in older files.
        "size": (shorter, size),
        "crop_size": ({"height": sides[0], "width": sides[1]}, sides[0]),
        "do_center_crop": True,
    }


def _same(found: Any, wanted: Any) -> bool:
    """Return True if a value equals the expected one, up to rounding."""
    if isinstance(found, list) and isinstance(wanted, list):
        pairs = len(found) == len(wanted)
        return pairs and all(map(_same, found, wanted))
    if isinstance(found, float) and isinstance(wanted, float):
        return abs(found - wanted) < 1e-6
    return bool(found == wanted)
