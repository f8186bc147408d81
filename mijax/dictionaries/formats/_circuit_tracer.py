"""Transcoders of circuit-tracer: one layer to a file, or across layers in a folder."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import yaml
from jax.typing import DTypeLike

from mijax._errors import LoadError, OutputError
from mijax.core import Site
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import CrossLayer, Weights
from mijax.dictionaries.architectures._jump_relu import JumpReLU
from mijax.dictionaries.architectures._relu import ReLU
from mijax.dictionaries.formats._hook_names import IN_BLOCK
from mijax.dictionaries.formats._plain import Plain, plain_of, unwritable
from mijax.dictionaries.formats._reading import AGAIN, Reading, read_settings
from mijax.dictionaries.formats._stored import Found
from mijax.io import SafeTensors, save_safetensors
from mijax.io.internal import keys_of

LAYER = re.compile(r"(?:.*\D)?(\d+)")
CONFIG = "config.yaml"
NAME = "circuit_tracer"
THRESHOLD = "activation_function.threshold"


def read_circuit_tracer(path: Path, scale: float | None) -> Found:
    """Reads the transcoder of one layer, `layer_3.safetensors`.

    The number in the file's name is its layer, and `config.yaml` beside it names where
    it reads and writes.

    Args:
        path: the file.
        scale: refused by the caller.

    Raises:
        LoadError: something that a dictionary cannot represent, or a broken file.
    """
    reading = Reading(SafeTensors(path))
    skip = reading.maybe("W_skip", "out", "in")
    cut = reading.maybe(THRESHOLD, "latent")
    plain = Plain(
        ReLU() if cut is None else JumpReLU(),
        reading.take("W_enc", "latent", "in"),
        reading.take("b_enc", "latent"),
        reading.take("W_dec", "latent", "out"),
        reading.take("b_dec", "out"),
        skip=None if skip is None else skip.T,
        transcoder=True,
        extra=positive(cut, THRESHOLD, path),
    )
    reading.close()
    found = LAYER.fullmatch(path.stem)
    config, site, target = hooks_in(path.parent, int(found[1]) if found else None)
    return Found(plain, (path,), site=site, target=target, metadata=config)


def positive(cut: np.ndarray | None, name: str, path: Path) -> np.ndarray | None:
    """Refuses thresholds below 0, under which negative latents would be active."""
    if cut is not None and np.any(cut < 0):
        raise LoadError(
            f"{path}: tensor '{name}' is negative, so that latents below 0 would be "
            "active, which a dictionary cannot represent."
        )
    return cut


@dataclasses.dataclass(frozen=True)
class HookConfig:
    """Keys of config.yaml that name hooks."""

    feature_input_hook: str | None = None
    feature_output_hook: str | None = None


def hooks_in(
    folder: Path, layer: int | None
) -> tuple[dict[str, Any], Site | None, Site | None]:
    """Reads what `config.yaml` says of a folder's transcoders."""
    file = folder / CONFIG
    if not file.is_file():
        return {}, None, None
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise LoadError(f"{file} cannot be read as YAML. {AGAIN}") from error
    if not isinstance(config, dict):
        raise LoadError(f"{file} has no keys and values. {AGAIN}")
    known = {k: v for k, v in config.items() if k in keys_of(HookConfig)}
    said = read_settings(HookConfig, known, file)

    def site(hook: str | None) -> Site | None:
        name = IN_BLOCK.get(hook or "")
        return None if name is None else Site(name, layer=layer)

    return config, site(said.feature_input_hook), site(said.feature_output_hook)


def read_cross_layer(path: Path, scale: float | None) -> Found:
    """Reads a transcoder across layers: `W_enc_0.safetensors`, `W_dec_0.safetensors`...

    Latent `j` of layer `l` becomes latent `j * layers + l`.

    Args:
        path: the folder.
        scale: refused by the caller.

    Raises:
        LoadError: something that a dictionary cannot represent, or broken files.
    """
    files = sorted(path.glob("W_enc_*.safetensors"))
    layers = len(files)
    sizes: dict[str, int] = {}
    parts: list[list[np.ndarray]] = []
    cuts: list[np.ndarray] = []
    for layer in range(layers):
        one = Reading(SafeTensors(path / f"W_enc_{layer}.safetensors"), sizes)
        if one.has(f"W_skip_{layer}"):
            raise LoadError(
                f"{one.path}: tensor 'W_skip_{layer}' is a linear path across layers, "
                "which a dictionary cannot represent."
            )
        encoder = one.take(f"W_enc_{layer}", "latent", "in")
        bias = one.take(f"b_enc_{layer}", "latent")
        centre = one.take(f"b_dec_{layer}", "in")
        name = f"threshold_{layer}"
        cut = positive(one.maybe(name, "latent"), name, one.path)
        if (cut is None) != (len(cuts) == 0) and layer:
            raise LoadError(f"{one.path}: only some layers have a threshold.")
        cuts += [] if cut is None else [cut]
        one.close()
        other = Reading(SafeTensors(path / f"W_dec_{layer}.safetensors"), one.sizes)
        writes = other.take(f"W_dec_{layer}", "latent", layers - layer, "in")
        other.close()
        sizes = {"in": one.sizes["in"], "latent": one.sizes["latent"]}
        parts.append(
            [encoder, bias, np.pad(writes, ((0, 0), (layer, 0), (0, 0))), centre]
        )
    config, site, target = hooks_in(path, None)
    decoders = tuple(path / f"W_dec_{layer}.safetensors" for layer in range(layers))
    return Found(
        *(joined(parts, cuts), (*files, *decoders)),
        site=site,
        target=target,
        metadata=config,
    )


def joined(parts: list[list[np.ndarray]], cuts: list[np.ndarray]) -> Dictionary:
    """Puts the layers of a transcoder together, latents of a number side by side."""
    encoder, bias, decoder, centre = (np.stack(a) for a in zip(*parts, strict=True))
    layers, latents, embed = encoder.shape
    swap = lambda a: a.swapaxes(0, 1).reshape(layers * latents, *a.shape[2:])  # noqa: E731
    array = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    weights = Weights(
        array(swap(encoder)),
        array(swap(bias)),
        array(swap(decoder).reshape(layers * latents, -1)),
        array(centre.reshape(-1)),
    )
    extra = None
    if cuts:
        extra = array(swap(np.stack(cuts)))
    return Dictionary(
        *(JumpReLU() if cuts else ReLU(), CrossLayer(layers, embed), weights),
        *(extra, None, jnp.float32(1)),
    )


def write_circuit_tracer(dictionary: Any, path: Path, note: Any) -> None:
    """Writes a transcoder into an empty folder.

    Those of one layer become `layer_<n>.safetensors`, those across layers two files to
    a layer.

    Args:
        dictionary: a transcoder; across layers also one of `JumpReLU`.
        path: the folder.
        note: precision of the arrays, and the layer of the site.

    Raises:
        OutputError: another dictionary.
    """
    dtype = np.dtype(note.dtype)
    if isinstance(dictionary.wiring, CrossLayer):
        write_cross_layer(dictionary, path, dtype)
        return
    plain = plain_of(dictionary, centred=False, name=NAME)
    if not isinstance(plain.architecture, ReLU):
        raise unwritable(plain.architecture, NAME, "ReLU (JumpReLU as 'gemma_scope')")
    if note.normalisation != "none":
        raise OutputError(f"The format '{NAME}' cannot say how x is normalised.")
    arrays = {
        "W_enc": plain.encoder,
        "b_enc": plain.bias,
        "W_dec": plain.decoder,
        "b_dec": plain.centre,
    }
    if plain.skip is not None:
        arrays["W_skip"] = plain.skip.T
    place = note.target or note.site
    layer = 0 if place is None or place.layer is None else int(place.layer)
    save(arrays, path / f"layer_{layer}.safetensors", dtype)


def write_cross_layer(dictionary: Any, path: Path, dtype: DTypeLike) -> None:
    """Writes a transcoder across layers."""
    architecture, layers = dictionary.architecture, dictionary.wiring.layers
    if not isinstance(architecture, ReLU | JumpReLU):
        raise unwritable(architecture, NAME, "ReLU and JumpReLU")
    if np.any(np.asarray(dictionary.scale) != 1):
        raise OutputError(f"The format '{NAME}' has no scale of activations.")
    weights, embed = dictionary.weights, dictionary.wiring.embed
    part = lambda a, *shape: np.asarray(a).reshape(-1, layers, *shape)  # noqa: E731
    encoder, bias = part(weights.encoder, embed), part(weights.bias)
    decoder = part(dictionary.wiring.rows(weights), layers, embed)
    centre = np.asarray(weights.centre).reshape(layers, embed)
    for layer in range(layers):
        arrays = {
            f"W_enc_{layer}": encoder[:, layer],
            f"b_enc_{layer}": bias[:, layer],
            f"b_dec_{layer}": centre[layer],
        }
        if isinstance(architecture, JumpReLU):
            cut = part(dictionary.extra)
            arrays[f"threshold_{layer}"] = cut[:, layer]
        save(arrays, path / f"W_enc_{layer}.safetensors", dtype)
        writes = {f"W_dec_{layer}": decoder[:, layer, layer:]}
        save(writes, path / f"W_dec_{layer}.safetensors", dtype)


def save(arrays: dict[str, np.ndarray], path: Path, dtype: DTypeLike) -> None:
    """Writes arrays in a precision."""
    ready = {
        name: np.ascontiguousarray(array).astype(dtype)
        for name, array in arrays.items()
    }
    save_safetensors(ready, path)
