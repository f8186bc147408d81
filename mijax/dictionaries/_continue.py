"""Dictionaries of checkpoints, and dictionaries to start from."""

import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from mijax._errors import ConfigError, LoadError, OutputError
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import Weights
from mijax.dictionaries.architectures._gated import Gated
from mijax.dictionaries.formats._native_file import (
    ARCHITECTURES,
    WIRINGS,
    described,
    rebuilt,
    shapes_of,
)
from mijax.dictionaries.formats._stored import Found
from mijax.train import read_checkpoint


def about_training(training: Any) -> Any:
    """Return JSON by which a checkpoint of a training is read as a dictionary.

    `None` for a custom architecture or dictionary kind, which no file can name.
    """
    try:
        return {
            "architecture": described(training.architecture, ARCHITECTURES),
            "wiring": described(training.wiring, WIRINGS),
            "latents": training.latents,
            "scale": jnp.asarray(training.scale, jnp.float32).tolist(),
        }
    except OutputError:
        return None


def from_checkpoint(
    folder: str | os.PathLike[str], *, step: int | None = None
) -> Dictionary | list[Dictionary]:
    """Read the dictionary of a checkpoint of `train`, also of one that still runs.

    Args:
        folder: folder of checkpoints, or of one of them.
        step: which of them, by updates done; the last by default.

    Returns:
        The dictionary, or a list of those that were trained together.

    Raises:
        LoadError: no such checkpoint, a damaged one, or one of something else than
            dictionaries of this package.

    Examples:
        >>> import tempfile
        >>> from mijax import dictionaries as d
        >>> source = mijax.data.Examples(jax.numpy.ones((32, 8)), batch=16)
        >>> training = d.Training(d.TopK(2), d.SAE(8), latents=16, steps=4)
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> sae = d.train(training, source, checkpoint=folder, every=2)
        >>> half = from_checkpoint(folder, step=2)
        >>> half.latents
        16
    """
    found = read_checkpoint(folder, step=step)
    several = isinstance(found.about, list)
    each = found.about if several else [found.about]
    if not all(isinstance(one, dict) and "architecture" in one for one in each):
        raise LoadError(
            f"{folder} holds a checkpoint of something else than dictionaries: read "
            "it with mijax.train.read_checkpoint."
        )
    arrays = found.arrays
    if not several:
        return dictionary_in(arrays, each[0], Path(folder))
    return [
        dictionary_in({k: a[i] for k, a in arrays.items() if a.ndim}, one, Path(folder))
        for i, one in enumerate(each)
    ]


def dictionary_in(arrays: Any, about: Any, path: Path) -> Dictionary:
    """Build a dictionary from the arrays of a training's state."""
    architecture = rebuilt(about["architecture"], ARCHITECTURES, path)
    wiring = rebuilt(about["wiring"], WIRINGS, path)
    skip = "params.weights.skip" in arrays
    like = shapes_of(architecture, wiring, about["latents"], skip, ())
    weights = Weights(
        arrays["params.weights.encoder"],
        arrays["params.weights.bias"],
        arrays["params.weights.decoder"],
        arrays["params.weights.centre"],
        arrays.get("params.weights.skip"),
    )
    extra, running = (
        jax.tree_util.tree_map_with_path(
            lambda at, _, prefix=prefix: arrays[prefix + jax.tree_util.keystr(at)],
            like[name],
        )
        for name, prefix in (("extra", "params.extra"), ("running", "memory.running"))
    )
    scale = jnp.asarray(about["scale"], jnp.float32)
    weights, extra, running = jax.tree.map(jnp.asarray, (weights, extra, running))
    return Dictionary(architecture, wiring, weights, extra, running, scale)


def read_training(path: Path, scale: float | None) -> Found:
    """Read the dictionary of a checkpoint of `train`.

    Args:
        path: folder of checkpoints, or of one of them.
        scale: refused by the caller.

    Raises:
        LoadError: several dictionaries that were trained together.
    """
    found = from_checkpoint(path)
    if isinstance(found, list):
        raise LoadError(
            f"{path} holds {len(found)} dictionaries that were trained together: read "
            "them with mijax.dictionaries.from_checkpoint."
        )
    files = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    return Found(found, files)


def write_training(dictionary: Dictionary, path: Path, note: Any) -> None:
    """Refuse: checkpoints are written by `train`.

    Raises:
        OutputError: always.
    """
    raise OutputError(
        "Checkpoints are written by train(..., checkpoint=...): save a dictionary in "
        "the format 'mijax'."
    )


def given_start(training: Any, start: Dictionary) -> tuple[Any, Any, Any]:
    """Return weights, extra and running of a dictionary, in the scale of a training.

    Latents, biases and thresholds are in the units of the scaled activations, so that
    they are multiplied by the ratio of the scales; the rows stay as they are.

    Raises:
        ConfigError: a dictionary of another kind or size.
    """
    own = (type(training.architecture).__name__, training.wiring, training.latents)
    other = (type(start.architecture).__name__, start.wiring, start.latents)
    scale = jnp.asarray(training.scale, jnp.float32)
    if own != other or scale.shape != start.scale.shape:
        raise ConfigError(
            f"Training of {own[0]}, {own[1]} with {own[2]} latents cannot start from "
            f"{other[0]}, {other[1]} with {other[2]}: give a dictionary of the same "
            "architecture and sizes."
        )
    ratio = scale / start.scale
    if ratio.ndim and bool((ratio != 1).any()):
        raise ConfigError(
            f"Training with scale={scale.tolist()} cannot start from a dictionary of "
            f"scale {start.scale.tolist()}: give scale=dictionary.scale."
        )
    ratio = ratio if ratio.ndim == 0 else jnp.float32(1)
    weights = eqx.tree_at(
        lambda w: (w.bias, w.centre),
        start.weights,
        (start.weights.bias * ratio, start.weights.centre * ratio),
    )
    extra = start.extra
    if isinstance(start.architecture, Gated):
        extra = eqx.tree_at(lambda e: e.bias, extra, extra.bias * ratio)
    elif extra is not None:
        extra = extra * ratio
    running = None if start.running is None else start.running * ratio
    single = lambda a: a.astype(jnp.float32)  # noqa: E731
    return jax.tree.map(single, (weights, extra, running))
