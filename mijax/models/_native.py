"""The library's own folders: a spec, the frame, and every leaf under its tree path."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mijax._errors import LoadError, nearest
from mijax.data import Tokenizer
from mijax.io import (
    Only,
    Tensors,
    load_checkpoint,
    read_record,
    replace_folder,
    save_safetensors,
)
from mijax.io.internal import check_weights
from mijax.models._config import TokenIds, check_heads
from mijax.models._families import family_named, family_of
from mijax.models._family import Family, fill_tree, leaf_shapes
from mijax.models._parts import Placing
from mijax.models._vision_language import VisionLanguage
from mijax.nn import FRAMES, AbstractEncoderDecoder, Encoder, Transformer

Saved = Transformer | Encoder | AbstractEncoderDecoder | VisionLanguage

VERSION = 1


def save(
    model: Saved,
    spec: Any,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Save a model as config.json, model.safetensors and tokenizer.json.

    The folder appears complete or not at all. It lists its files with their SHA-256,
    which `load` verifies.

    Args:
        model: a model of one of the families, in any frame.
        spec: its spec.
        folder: where to save; an older folder is replaced if mijax wrote everything in
            it.
        tokenizer: its tokenizer, if it has one.

    Raises:
        LoadError: the model is not what the spec describes.
        OutputError: the folder cannot be written, or it holds anything that mijax did
            not write.

    Examples:
        >>> import jax, mijax.models, tempfile
        >>> spec = mijax.models.AttentionOnlySpec(layers=1, embed=16, vocab=50)
        >>> folder = f"{tempfile.mkdtemp()}/model"
        >>> mijax.models.save(mijax.models.init(spec, jax.random.key(0)), spec, folder)
        >>> mijax.models.load(folder).spec == spec
        True
    """
    config = describe(model, spec)
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))
    name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")  # noqa: E731
    arrays = {name_of(path): np.asarray(leaf) for path, leaf in leaves}

    def fill(scratch: Path) -> None:
        (scratch / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_safetensors(arrays, scratch / "model.safetensors")
        if tokenizer is not None:
            tokenizer.backend.save(str(scratch / "tokenizer.json"))

    replace_folder(folder, fill)


def describe(model: Saved, spec: Any) -> dict[str, Any]:
    """Writes as JSON what `load` needs to build a model, all but the weights.

    Args:
        model: the model.
        spec: its spec.

    Returns:
        Version of the format, family, spec and frame; the metadata to give to
        `mijax.io.save_checkpoint`.

    Raises:
        LoadError: the model is not what the spec describes.
    """
    family = family_of(spec)
    skeleton = framed(family, spec, model.frame, jnp.float32)
    expected, given = leaf_shapes(skeleton), leaf_shapes(model)
    for name in sorted(expected.keys() | given.keys()):
        shapes = [getattr(x.get(name), "shape", None) for x in (given, expected)]
        if shapes[0] != shapes[1]:
            raise LoadError(
                f"The model is not what its spec describes: '{name}' has shape "
                f"{shapes[0]}, the spec says {shapes[1]}. Give its own spec."
            )
    if jax.tree.structure(model) != jax.tree.structure(skeleton):
        raise LoadError(
            "The model is not what its spec describes: they differ in a setting, such "
            "as eps or activation. Give its own spec."
        )
    return {
        "mijax": VERSION,
        "model_type": family.name,
        "spec": dataclasses.asdict(spec),
        "frame": list(model.frame),
    }


def build(
    spec: Any, weights: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32
) -> Any:
    """Builds a model of arrays by their path in the tree.

    Args:
        spec: the spec.
        weights: an array for each leaf, `{"blocks.attention.w_q": ...}`; leaves that
            follow from the spec (rotary frequencies) may be left out.
        dtype: precision of the weights.

    Returns:
        The model.

    Raises:
        LoadError: an array is missing, unknown or of the wrong shape.
    """
    family = family_of(spec)
    arrays = {**family.computed(spec), **weights}
    return fill_tree(family.skeleton(spec, dtype), arrays, f"{family.name} weights")


def read_native(
    config: Mapping[str, Any],
    path: str,
    tensors: Tensors,
    dtype: DTypeLike,
    place: Placing | None,
) -> tuple[Any, Any]:
    """Builds the model of a folder that `save` wrote."""
    family, spec, frame = read_description(config, path)
    check_sizes(spec, tensors.shapes, str(tensors.path))
    skeleton = framed(family, spec, frame, dtype)
    arrays = Lazy(tensors, whole(skeleton))
    return fill_tree(skeleton, arrays, str(tensors.path), place=place), spec


def read_checkpoint(
    folder: Path, metadata: Mapping[str, Any], dtype: DTypeLike
) -> tuple[Any, Any]:
    """Builds the model of a checkpoint that has a description."""
    if "mijax" not in metadata:
        raise LoadError(
            f"{folder} is a checkpoint without a description of its model. Save it "
            "with metadata=mijax.models.describe(model, spec), or use load_checkpoint."
        )
    family, spec, frame = read_description(metadata, str(folder))
    skeleton = framed(family, spec, frame, dtype)
    model = load_checkpoint(skeleton, folder)
    for name, array in leaf_shapes(model).items():
        if name not in whole(skeleton):
            check_weights(np.asarray(array), name, folder)
    return model, spec


def whole(skeleton: Any) -> frozenset[str]:
    """Names the leaves that hold integers, such as the windows of attention."""
    leaves = leaf_shapes(skeleton).items()
    return frozenset(n for n, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.integer))


class Lazy(Mapping[str, np.ndarray]):
    """A weight file as a mapping that reads an array when it is asked for.

    Args:
        tensors: the file.
        integers: names of arrays that hold integers.
    """

    def __init__(self, tensors: Tensors, integers: frozenset[str]) -> None:
        self.tensors = tensors
        self.integers = integers

    def __getitem__(self, name: str) -> np.ndarray:
        array = self.tensors.read(name)
        if name in self.integers and array.dtype.kind == "i":
            return array
        return check_weights(array, name, self.tensors.path)

    def __iter__(self) -> Any:
        return iter(self.tensors.shapes)

    def __len__(self) -> int:
        return len(self.tensors.shapes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Keys of a native config.json, as `describe` and `save` write them."""

    mijax: Annotated[int, Only(VERSION)]
    model_type: str
    spec: dict[str, Any]
    frame: list[str] = dataclasses.field(default_factory=list)
    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None


def read_description(
    config: Mapping[str, Any], path: str
) -> tuple[Family, Any, list[str]]:
    """The family, spec and frame of a description."""
    found = read_record(Description, config, path)
    family = family_named(found.model_type, path)
    spec = read_record(family.spec, found.spec, f"{path}: spec")
    check_heads(spec, path)
    return family, spec, found.frame


def check_sizes(spec: Any, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses a spec that asks for more numbers than the file has.

    Raises:
        LoadError: before anything of that size exists.
    """
    spec = getattr(spec, "text", spec)
    held = sum(math.prod(shape) for shape in shapes.values())
    heads = getattr(spec, "heads", 0) * getattr(spec, "head_dim", 1)
    width = heads or spec.channels
    token_embed = getattr(spec, "token_embed", spec.embed)
    asked = token_embed * spec.vocab + spec.embed * spec.layers * width
    if asked > held:
        raise LoadError(
            f"{where}: the spec asks for at least {asked} numbers, the file has "
            f"{held}. Use the spec that belongs to the weights."
        )


def framed(family: Family, spec: Any, frame: Any, dtype: DTypeLike) -> Any:
    """The skeleton of a model after weight processing."""
    skeleton = family.skeleton(spec, dtype)
    for name in frame:
        if name not in FRAMES:
            raise LoadError(
                f"There is no weight processing '{name}'.{nearest(name, FRAMES)}"
            )
        skeleton = eqx.filter_eval_shape(FRAMES[name], skeleton)
    return skeleton
