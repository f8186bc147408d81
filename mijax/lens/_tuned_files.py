"""Tuned lens files, in the format of the package `tuned-lens`."""

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from mijax._errors import LoadError
from mijax.core import AbstractModel
from mijax.core.internal import checked
from mijax.io import (
    Only,
    Size,
    TorchFile,
    check_files,
    read_json,
    read_record,
    replace_folder,
    save_torch,
)
from mijax.lens._tuned import TunedLens, unembedding_hash

CONFIG, PARAMS = "config.json", "params.pt"


@dataclasses.dataclass(frozen=True)
class TunedLensConfig:
    """Keys in `config.json` (tuned-lens 0.2.0)."""

    base_model_name_or_path: str
    d_model: Size
    num_hidden_layers: Size
    bias: bool = True
    base_model_revision: str | None = None
    unembed_hash: str | None = None
    lens_type: Annotated[str, Only("linear_tuned_lens")] = "linear_tuned_lens"


@checked
def load_tuned_lens(
    folder: str | os.PathLike[str], model: AbstractModel | None = None
) -> TunedLens:
    """Load a tuned lens from a folder with `config.json` and `params.pt`.

    Published lenses are in `lens/<model>` in the Hugging Face space
    `AlignmentResearch/tuned-lens`. The torch file is read without running its pickle
    code. Config keys that `tuned-lens` 0.2.0 does not have are ignored with a warning.

    Args:
        folder: the folder.
        model: the model for the lens, to check its size and unembedding.

    Returns:
        The lens, in float32.

    Raises:
        LoadError: a file is missing or damaged, its tensors do not match the config,
            or it is for a model of a different size.

    Warns:
        UserWarning: the lens was trained with a different unembedding.

    Examples:
        >>> import jax, jax.numpy as jnp, tempfile, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> lens = mijax.lens.TunedLens(jnp.ones((3, 32, 32)), jnp.ones((3, 32)))
        >>> folder = tempfile.mkdtemp() + "/lens"
        >>> mijax.lens.save_tuned_lens(lens, folder, model, name="tiny")
        >>> load_tuned_lens(folder, model).weight.shape
        (3, 32, 32)
    """
    folder = Path(folder)
    check_files(folder)
    config = _config(folder)
    file = TorchFile(folder / PARAMS)
    layers, width = config.num_hidden_layers, config.d_model
    shapes = {"weight": (width, width)} | ({"bias": (width,)} if config.bias else {})
    needs = {f"{i}.{k}": shape for i in range(layers) for k, shape in shapes.items()}
    if dict(file.shapes) != needs or file.values:
        wrong = sorted({*file.shapes.items()} ^ {*needs.items()}) or [*file.values]
        raise LoadError(
            f"{file.path} does not contain one map for each of {layers} layers of "
            f"width {width}: {wrong[0]} differs. Use the files of one lens."
        )
    if model is not None:
        _compare(config, model, folder)

    def stacked(name: str) -> np.ndarray:
        arrays = [file.read(f"{i}.{name}") for i in range(layers)]
        return np.stack(arrays).astype(np.float32)

    bias = jnp.asarray(stacked("bias")) if config.bias else None
    return TunedLens(jnp.asarray(stacked("weight")), bias)


@checked
def save_tuned_lens(
    lens: TunedLens,
    folder: str | os.PathLike[str],
    model: AbstractModel,
    *,
    name: str,
    revision: str | None = None,
) -> None:
    """Save a tuned lens in the format of `tuned-lens`.

    Args:
        lens: the lens.
        folder: the folder, written atomically.
        model: the model that it was trained on.
        name: name of the model, such as `"gpt2"`.
        revision: revision of the model.

    Raises:
        ShapeError: the lens does not fit the model.
        OutputError: the folder cannot be written.
    """
    layers, width = lens.weight.shape[:2]
    lens.check(model, model.n_layers, width)
    config = TunedLensConfig(
        base_model_name_or_path=name,
        d_model=width,
        num_hidden_layers=layers,
        bias=lens.bias is not None,
        base_model_revision=revision,
        unembed_hash=unembedding_hash(model),
    )
    arrays = {}
    for i in range(layers):
        arrays[f"{i}.weight"] = np.asarray(lens.weight[i], np.float32)
        if lens.bias is not None:
            arrays[f"{i}.bias"] = np.asarray(lens.bias[i], np.float32)

    def fill(scratch: Path) -> None:
        save_torch(arrays, scratch / PARAMS)
        text = json.dumps(dataclasses.asdict(config), indent=1) + "\n"
        (scratch / CONFIG).write_text(text, encoding="utf-8")

    replace_folder(folder, fill)


def _config(folder: Path) -> TunedLensConfig:
    """Read the config, ignoring keys from other versions."""
    content = read_json(folder / CONFIG)
    known = {field.name for field in dataclasses.fields(TunedLensConfig)}
    strange = sorted(content.keys() - known)
    if strange:
        warnings.warn(
            f"{folder / CONFIG} has unknown keys, ignored: {', '.join(strange)}.",
            UserWarning,
            stacklevel=3,
        )
    kept = {key: value for key, value in content.items() if key in known}
    return read_record(TunedLensConfig, kept, folder / CONFIG, thing="tuned lens")


def _compare(config: TunedLensConfig, model: AbstractModel, folder: Path) -> None:
    """Raise if the lens does not fit the model; warn if the unembedding differs."""
    width = model.readout.width
    if (config.num_hidden_layers, config.d_model) != (model.n_layers, width):
        raise LoadError(
            f"The lens in {folder} is for {config.num_hidden_layers} layers of width "
            f"{config.d_model}, but the model has {model.n_layers} of width {width}."
        )
    if config.unembed_hash and config.unembed_hash != unembedding_hash(model):
        warnings.warn(
            f"The lens in {folder} was trained with a different unembedding "
            f"({config.base_model_name_or_path}) than this model's.",
            UserWarning,
            stacklevel=3,
        )
