"""Image models with published weights, and loading them."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError, nearest
from mijax.io import OnnxFile, SafeTensors, Tensors, TorchFile, digest
from mijax.models._cifar_resnet import CIFAR_RESNET
from mijax.models._clip import CLIP_FAMILY
from mijax.models._convnext import CONVNEXT
from mijax.models._efficientnet_lite import EFFICIENTNET_LITE
from mijax.models._family import Family, Preset, assemble
from mijax.models._image_input import ImageInput
from mijax.models._inception_v3 import INCEPTION_V3
from mijax.models._init import check_dtype
from mijax.models._letterbox import Letterbox
from mijax.models._mobilenet_v2 import MOBILENET_V2
from mijax.models._resnet import RESNET
from mijax.models._siglip import SIGLIP
from mijax.models._vit_family import VIT
from mijax.models._yolo11 import YOLO11
from mijax.models._yolo26 import YOLO26

TORCH = (".pt", ".pth", ".bin")
IMAGE_FAMILIES: tuple[Family, ...] = (
    CIFAR_RESNET,
    CLIP_FAMILY,
    CONVNEXT,
    EFFICIENTNET_LITE,
    INCEPTION_V3,
    MOBILENET_V2,
    RESNET,
    SIGLIP,
    VIT,
    YOLO11,
    YOLO26,
)


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """An image model and what belongs to it.

    Attributes:
        model: the model; it takes one preprocessed image.
        input: preprocessing of one image, `ImageInput` or `Letterbox`.
        spec: its sizes.
        source: the file that it came from.
        digest: `"sha256:..."` of that file.
    """

    model: Any
    input: Any
    spec: Any
    source: str
    digest: str


def image_presets() -> Mapping[str, Preset]:
    """Return every named spec of an image model, by name.

    Examples:
        >>> image_presets()["cifar-resnet20"].spec.widths
        (16, 32, 64)
    """
    return {n: p for family in IMAGE_FAMILIES for n, p in family.presets.items()}


def init_image_model(
    spec: Any, key: PRNGKeyArray, *, dtype: DTypeLike = jnp.float32
) -> Any:
    """Return an image model with random weights.

    Args:
        spec: a name of `image_presets`, or a spec.
        key: random key.
        dtype: precision of the weights.

    Returns:
        The model.

    Raises:
        LoadError: no such name, or not a spec of an image model.

    Examples:
        >>> import jax
        >>> from mijax.models import CifarResNetSpec
        >>> spec = CifarResNetSpec(blocks=(1, 1), widths=(4, 8))
        >>> model = init_image_model(spec, jax.random.key(0))
        >>> model(jnp.ones((3, 16, 16))).shape
        (10,)
    """
    check_dtype(dtype)
    family, preset = _family_of(spec)
    return family.init(preset.spec, key, dtype)


def load_image_model(
    spec: Any,
    path: str | os.PathLike[str],
    *,
    input: ImageInput | Letterbox | None = None,
    dtype: DTypeLike = jnp.float32,
    ignore: tuple[str, ...] = (),
) -> ImageModel:
    """Load an image model from a file of weights.

    Args:
        spec: a name of `image_presets`, such as `"yolo26n"` or `"mobilenet-v2"`, or a
            spec.
        path: a `.safetensors` file, or one that torch wrote of a dictionary of tensors
            (`.pt`, `.pth`, `.bin`; no pickle is run), or an `.onnx` file, with names as
            the model's page describes them.
        input: preprocessing; that of the name by default.
        dtype: precision of the weights.
        ignore: starts of the names of tensors that belong to another model in the file,
            such as `("decoder.",)`.

    Returns:
        The model, its preprocessing, spec, source and digest.

    Raises:
        LoadError: no such name, a file that is broken, or a tensor that is missing,
            unused or of another shape, or a start that no name has.
    """
    check_dtype(dtype)
    family, preset = _family_of(spec)
    tensors = _opened(Path(path))
    if ignore:
        tensors = _Without(tensors, ignore)
    if family.renamed is not None:
        tensors = family.renamed(tensors)
    if family.build is not None:
        model = family.build(preset.spec, tensors, dtype, None)
    else:
        assert family.table is not None
        table = family.table(preset.spec)
        model = assemble(family, preset.spec, tensors, table, dtype)
    source = os.fspath(path)
    given = preset.input if input is None else input
    return ImageModel(model, given, preset.spec, source, digest(tensors.files))


def _opened(file: Path) -> Tensors:
    """Open a file of weights by its ending."""
    if file.suffix == ".onnx":
        return OnnxFile(file)
    return TorchFile(file) if file.suffix in TORCH else SafeTensors(file)


class _Without:
    """Tensors of a file whose names do not have certain starts."""

    def __init__(self, source: Tensors, starts: tuple[str, ...]) -> None:
        self.path, self.files, self.read = source.path, source.files, source.read
        for start in starts:
            if not any(name.startswith(start) for name in source.shapes):
                raise LoadError(
                    f"{source.path}: no tensor begins with '{start}'. Leave it out of "
                    "ignore."
                )
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape
            for name, shape in source.shapes.items()
            if not name.startswith(starts)
        }


def _family_of(spec: Any) -> tuple[Family, Preset]:
    """Return the family of a name or spec, and its preset."""
    for family in IMAGE_FAMILIES:
        if isinstance(spec, str) and spec in family.presets:
            return family, family.presets[spec]
        if isinstance(spec, family.spec):
            return family, Preset(spec, input=ImageInput())
    if isinstance(spec, str):
        hint = nearest(spec, image_presets())
        raise LoadError(f"There is no image model {spec!r}.{hint}")
    kinds = ", ".join(family.spec.__name__ for family in IMAGE_FAMILIES)
    raise LoadError(f"{type(spec).__name__} is not a spec, expected one of {kinds}.")
