"""The library's own folders: a checkpoint that says what it is of."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import LoadError, MijaxError, OutputError, nearest
from mijax.core import Site
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import SAE, Crosscoder, CrossLayer, Transcoder, Weights
from mijax.dictionaries.architectures._batch_topk import BatchTopK
from mijax.dictionaries.architectures._gated import Gated
from mijax.dictionaries.architectures._jump_relu import JumpReLU
from mijax.dictionaries.architectures._matryoshka import Matryoshka
from mijax.dictionaries.architectures._relu import ReLU
from mijax.dictionaries.architectures._topk import TopK
from mijax.dictionaries.formats._reading import read_settings
from mijax.dictionaries.formats._stored import NORMALISATIONS, Found
from mijax.io import Index, Only, Size, checkpoint_metadata, load_checkpoint
from mijax.io.internal import check_weights, fill_checkpoint, flatten

# Version 1 keeps the logarithms of the thresholds of JumpReLU.
VERSION, LOGARITHMS = 2, 1
WEIGHTS = ("encoder", "bias", "decoder", "centre", "skip", "scale")
ARCHITECTURES = {
    c.__name__: c for c in (ReLU, Gated, JumpReLU, TopK, BatchTopK, Matryoshka)
}
WIRINGS = {c.__name__: c for c in (SAE, Transcoder, Crosscoder, CrossLayer)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeNote:
    """Keys of the metadata."""

    mijax_dictionary: Annotated[int, Only(VERSION, LOGARITHMS)]
    architecture: dict[str, Any]
    wiring: dict[str, Any]
    latents: Size
    skip: bool
    site: dict[str, Any] | None
    target: dict[str, Any] | None
    normalisation: Annotated[str, Only(*NORMALISATIONS)]
    metadata: dict[str, Any]
    # One scale per site of a crosscoder, and the model's weights, since version 2.
    scales: Size | None = None
    processing: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """Name and fields of an architecture or wiring."""

    name: str
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SiteNote:
    """Keys of a site."""

    name: str
    layer: Index | None = None
    head: Index | None = None


def write_native(dictionary: Dictionary, path: Path, note: Any) -> None:
    """Writes a checkpoint in which nothing is lost.

    Args:
        dictionary: any, of an architecture and a wiring of this package.
        path: the folder.
        note: where it reads and writes, and everything else to say.

    Raises:
        OutputError: an architecture or wiring of one's own, or several dictionaries.
    """
    weights = dictionary.weights
    if weights.encoder.ndim != 2:
        raise OutputError(
            "These are several dictionaries in one: save them one by one."
        )
    metadata = {
        "mijax_dictionary": VERSION,
        "architecture": described(dictionary.architecture, ARCHITECTURES),
        "wiring": described(dictionary.wiring, WIRINGS),
        "latents": int(dictionary.latents),
        "skip": weights.skip is not None,
        "site": site_as_json(note.site),
        "target": site_as_json(note.target),
        "normalisation": note.normalisation,
        "metadata": dict(note.metadata),
        "scales": dictionary.scale.size if dictionary.scale.ndim else None,
        "processing": None if note.processing is None else list(note.processing),
    }
    arrays = {
        "encoder": weights.encoder,
        "bias": weights.bias,
        "decoder": weights.decoder,
        "centre": weights.centre,
        "skip": weights.skip,
        "extra": dictionary.extra,
        "running": dictionary.running,
        "scale": dictionary.scale,
    }
    fill_checkpoint(path, flatten(arrays), metadata)


def described(value: Any, known: dict[str, type]) -> dict[str, Any]:
    """Writes a frozen value as its name and fields."""
    name = type(value).__name__
    if known.get(name) is not type(value):
        raise OutputError(
            f"{name} is not of this package, so a file of it could not be read: use "
            "mijax.io.save_checkpoint and load_checkpoint."
        )
    fields = {
        field.name: as_json(getattr(value, field.name))
        for field in dataclasses.fields(value)
    }
    return {"name": name, "fields": fields}


def as_json(value: Any) -> Any:
    """Turns numbers of arrays into plain ones."""
    return np.asarray(value).item() if eqx.is_array(value) else value


def site_as_json(site: Site | None) -> dict[str, Any] | None:
    """Writes a site."""
    if site is None:
        return None
    fields = (site.layer, site.head)
    layer, head = (None if index is None else int(index) for index in fields)
    if site.position is not None or site.feature is not None:
        raise OutputError(f"A dictionary reads a whole site, got {site}.")
    return {"name": site.name, "layer": layer, "head": head}


def read_native(path: Path, scale: float | None) -> Found:
    """Reads what `write_native` wrote.

    Args:
        path: the folder.
        scale: refused by the caller.

    Raises:
        LoadError: not a checkpoint of a dictionary, or a broken one.
    """
    said = checkpoint_metadata(path)
    version = said.get("mijax_dictionary")
    if version not in (LOGARITHMS, VERSION):
        raise LoadError(
            f"{path} is a checkpoint, but not of a dictionary in format {VERSION}. "
            "Load models with mijax.models.load, others with mijax.io.load_checkpoint."
        )
    note = read_settings(NativeNote, said, path)
    architecture = rebuilt(note.architecture, ARCHITECTURES, path)
    wiring = rebuilt(note.wiring, WIRINGS, path)
    of_scale = () if note.scales is None else (note.scales,)
    like = shapes_of(architecture, wiring, note.latents, note.skip, of_scale)
    found = load_checkpoint(like, path)
    for name, array in found.items():
        if name in WEIGHTS and array is not None:
            check_weights(np.asarray(array), name, path)
    names = ("encoder", "bias", "decoder", "centre", "skip")
    weights = Weights(*(found[name] for name in names))
    extra = found["extra"]
    if version == LOGARITHMS and isinstance(architecture, JumpReLU):
        extra = jnp.exp(extra)
    others = (extra, found["running"], found["scale"])
    whole = Dictionary(architecture, wiring, weights, *others)
    files = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    return Found(
        *(whole, files),
        site=site_of_json(note.site, path),
        target=site_of_json(note.target, path),
        normalisation=note.normalisation,
        metadata=note.metadata,
        processing=None if note.processing is None else tuple(note.processing),
    )


def rebuilt(said: Any, known: dict[str, type], path: Path) -> Any:
    """Builds a frozen value of its name and fields."""
    part = read_settings(Part, said, path)
    name = part.name
    if name not in known:
        raise LoadError(f"{path}: there is no {name!r}.{nearest(name, known)}")
    fields = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in part.fields.items()
    }
    try:
        return known[name](**fields)
    except (TypeError, ValueError, MijaxError) as error:
        raise LoadError(f"{path}: {name} cannot be built: {error}") from error


def shapes_of(
    architecture: Any,
    wiring: Any,
    latents: int,
    skip: bool,
    scale: tuple[int, ...],
) -> dict[str, Any]:
    """Returns the shapes of a dictionary's arrays."""
    reads, writes = wiring.widths(latents)
    read, written = math.prod(wiring.reads), math.prod(wiring.writes)
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
    return {
        "encoder": shape(latents, reads),
        "bias": shape(latents),
        "decoder": shape(latents, writes),
        "centre": shape(written),
        "skip": shape(read, written) if skip else None,
        "extra": eqx.filter_eval_shape(architecture.extra, latents),
        "running": eqx.filter_eval_shape(architecture.running, latents),
        "scale": shape(*scale),
    }


def site_of_json(said: dict[str, Any] | None, path: Path) -> Site | None:
    """Reads a site."""
    if said is None:
        return None
    found = read_settings(SiteNote, said, path)
    return Site(found.name, layer=found.layer, head=found.head)
