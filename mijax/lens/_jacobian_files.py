"""Jacobian lens files: published torch files, and safetensors."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mijax._errors import LoadError, OutputError
from mijax.core import AbstractModel
from mijax.core.internal import checked
from mijax.io import SafeTensors, TorchFile, save_safetensors, save_torch
from mijax.lens._jacobian import JacobianLens, check_raw
from mijax.lens._tuned import unembedding_hash

TORCH, OWN = ".pt", ".safetensors"
COUNT, HASH = "n_prompts", "unembed_hash"


@checked
def load_jacobian_lens(
    path: str | os.PathLike[str], model: AbstractModel | None = None
) -> JacobianLens:
    """Load a Jacobian lens.

    Supports files from `save_jacobian_lens`, artifacts of the reference implementation
    and of TransformerLens (`J`, `n_prompts`, `source_layers`, `d_model`; such as those
    in `neuronpedia/jacobian-lens`), and checkpoints of their fits (`jacobian_sum`,
    `n_done`). Torch files are read without running their pickle code.

    Args:
        path: a `.safetensors` or `.pt` file.
        model: the model for the lens, to check its size and, if the file has a hash,
            its unembedding.

    Returns:
        The lens, in float32.

    Raises:
        LoadError: the file is missing, damaged, not a Jacobian lens for all layers, or
            for a model of a different size.
        FrameError: a model with processed weights.

    Warns:
        UserWarning: the lens was fitted with a different unembedding.
    """
    path = Path(path)
    reader = _read_own if path.suffix == OWN else _read_torch
    layers, prompts, expected = reader(path)
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise LoadError(
            f"{path} has Jacobians for layers {sorted(layers)}, expected every layer "
            "but the last, starting at 0."
        )
    matrices = [layers[i] for i in range(len(layers))]
    shapes = {a.shape for a in matrices}
    width = matrices[0].shape[-1]
    if shapes != {(width, width)}:
        raise LoadError(f"{path} has Jacobians with shapes {sorted(shapes)}.")
    if prompts < 1:
        raise LoadError(f"{path} averages {prompts} prompts, expected 1 or more.")
    if model is not None:
        _compare(path, (len(matrices) + 1, width), model, expected)
    stacked = np.stack([np.asarray(a, np.float32) for a in matrices])
    if not np.isfinite(stacked).all():
        raise LoadError(f"{path} has Jacobians that are not finite.")
    return JacobianLens(jnp.asarray(stacked), prompts=prompts)


@checked
def save_jacobian_lens(
    lens: JacobianLens,
    path: str | os.PathLike[str],
    *,
    model: AbstractModel | None = None,
    metadata: Mapping[str, str] | None = None,
    dtype: Any = None,
) -> None:
    """Save a Jacobian lens atomically to one file.

    Args:
        lens: the lens.
        path: `.safetensors`, or `.pt` for the reference and TransformerLens.
        model: the model that it was fitted on, to store a hash of its unembedding.
        metadata: further metadata by name, such as the corpus.
        dtype: dtype in the file; by default float16 in `.pt`, like published lenses,
            and float32 otherwise.

    Raises:
        OutputError: a different suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (TORCH, OWN):
        raise OutputError(f"Expected a .safetensors or .pt file, got {path}.")
    note = dict(metadata or {})
    known = {} if model is None else {HASH: unembedding_hash(model)}
    usual = np.float16 if path.suffix == TORCH else np.float32
    stored = np.asarray(lens.jacobian).astype(usual if dtype is None else dtype)
    if path.suffix == OWN:
        arrays = {f"J.{i}": np.ascontiguousarray(a) for i, a in enumerate(stored)}
        arrays[COUNT] = np.asarray(lens.prompts, np.int64)
        for name, text in known.items():
            arrays[name] = np.frombuffer(text.encode(), np.uint8)
        save_safetensors(arrays, path, metadata=note)
        return
    note |= known
    content: dict[str, Any] = {
        "J": dict(enumerate(stored)),
        COUNT: lens.prompts,
        "source_layers": list(range(len(stored))),
        "d_model": stored.shape[-1],
    }
    save_torch(content | ({"metadata": note} if note else {}), path)


Parts = tuple[dict[int, np.ndarray], int, str | None]


def _read_own(path: Path) -> Parts:
    """Read a safetensors file."""
    file = SafeTensors(path)
    if COUNT not in file.shapes or file.shapes[COUNT] != ():
        raise LoadError(f"{path} is not a Jacobian lens: it has no number {COUNT!r}.")
    names = [name for name in file.shapes if name not in (COUNT, HASH)]
    layers = {_layer(path, name, "J."): file.read(name) for name in names}
    expected = None
    if HASH in file.shapes:
        expected = file.read(HASH).tobytes().decode("ascii", "replace")
    return layers, int(file.read(COUNT)), expected


def _read_torch(path: Path) -> Parts:
    """Read an artifact, or a fit's checkpoint, converting its sums to means."""
    file = TorchFile(path)
    values = file.values
    sums = any(name.startswith("jacobian_sum.") for name in file.shapes)
    prefix, count = ("jacobian_sum.", "n_done") if sums else ("J.", COUNT)
    prompts = values.get(count)
    if not isinstance(prompts, int):
        raise LoadError(f"{path} is not a Jacobian lens: it has no '{count}'.")
    layers = {_layer(path, name, prefix): file.read(name) for name in file.shapes}
    listed = values.get("source_layers")
    target = values.get("target_layer", values.get("metadata.target_layer"))
    width = values.get("d_model", next(iter(layers.values())).shape[-1])
    facts = {
        "source_layers": (listed, listed is None or sorted(listed) == sorted(layers)),
        "target_layer": (target, target in (None, max(layers) + 1)),
        "d_model": (width, all(a.shape[-1] == width for a in layers.values())),
    }
    for name, (value, fine) in facts.items():
        if not fine:
            raise LoadError(f"{path} has {name} {value}, unlike its Jacobians.")
    if sums:
        layers = {i: a.astype(np.float32) / max(prompts, 1) for i, a in layers.items()}
    return layers, prompts, values.get(f"metadata.{HASH}")


def _layer(path: Path, name: str, prefix: str) -> int:
    """Return the layer in a tensor's name."""
    layer = name.removeprefix(prefix)
    if layer == name or not layer.isdigit():
        raise LoadError(f"{path} has the tensor {name!r}, expected {prefix}0, ...")
    return int(layer)


def _compare(
    path: Path, sizes: tuple[int, int], model: AbstractModel, expected: str | None
) -> None:
    """Raise if the lens does not fit the model; warn if the unembedding differs."""
    check_raw(model)
    found = (model.n_layers, model.readout.width)
    if sizes != found:
        raise LoadError(
            f"The lens in {path} is for {sizes[0]} layers of width {sizes[1]}, but the "
            f"model has {found[0]} of width {found[1]}."
        )
    if expected and expected != unembedding_hash(model):
        warnings.warn(
            f"The lens in {path} was fitted with a different unembedding than this "
            "model's.",
            UserWarning,
            stacklevel=3,
        )
