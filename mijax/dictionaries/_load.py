"""Loading and saving dictionaries in the formats of all libraries."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mijax._errors import ConfigError, LoadError, NetworkError, nearest
from mijax.core import AbstractModel, Site
from mijax.dictionaries._continue import read_training, write_training
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries.evaluation._measure import measured, warn_of_difference
from mijax.dictionaries.formats._circuit_tracer import (
    read_circuit_tracer,
    read_cross_layer,
    write_circuit_tracer,
)
from mijax.dictionaries.formats._dictionary_learning import (
    read_dictionary_learning,
    write_dictionary_learning,
)
from mijax.dictionaries.formats._download import PLACE, download_dictionary
from mijax.dictionaries.formats._gemma_scope import read_gemma_scope, write_gemma_scope
from mijax.dictionaries.formats._native_file import read_native, write_native
from mijax.dictionaries.formats._openai import read_openai, write_openai
from mijax.dictionaries.formats._plain import Plain, dictionary_of
from mijax.dictionaries.formats._processing import check_processing
from mijax.dictionaries.formats._saelens import read_saelens, write_saelens
from mijax.dictionaries.formats._sparsify import read_sparsify, write_sparsify
from mijax.dictionaries.formats._stored import NORMALISATIONS, Found, Stored
from mijax.io import check_files, digest, is_checkpoint, replace_folder
from mijax.train import is_training_checkpoint


class Format(NamedTuple):
    """One format: how it is recognised, read and written."""

    fits: Callable[[Path], bool]
    read: Callable[[Path, float | None], Found]
    write: Callable[[Dictionary, Path, Any], None]


class Note(NamedTuple):
    """What is said of a dictionary when it is saved."""

    site: Site | None
    target: Site | None
    normalisation: str
    metadata: Mapping[str, Any]
    dtype: Any
    processing: tuple[str, ...] | None


def load(
    name_or_path: str | os.PathLike[str],
    *,
    format: str | None = None,
    scale: float | None = None,
    normalised: bool = False,
    dtype: DTypeLike = jnp.float32,
    check: Any = None,
    tolerance: float = 0.1,
    model: AbstractModel | None = None,
) -> Stored:
    """Loads a dictionary, which computes exactly what its own library computes.

    Every array of the files is used exactly once and every key of the config is
    understood, or loading refuses. No pickle is run.

    Args:
        name_or_path: a folder or file, or a hub id with the folder in it,
            `"google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"`.
        format: `"mijax"`, `"saelens"`, `"gemma_scope"`, `"dictionary_learning"`,
            `"sparsify"`, `"openai"`, `"circuit_tracer"`, `"cross_layer"`, or
            `"checkpoint"`, one of `train`; found by the names of the files by default.
        scale: by which activations were multiplied in training, where the file says
            that they were and not by how much.
        normalised: whether activations will be normalised one by one before they are
            given to the dictionary (`normalise`); without it, files that ask for
            that are refused.
        dtype: precision of the weights.
        check: activations on which L0 and FVU are measured and compared with what the
            file says, `[n, *reads]`; for a transcoder a pair of inputs and outputs.
        tolerance: how much they may differ, as a share of the number in the file.
        model: model that the dictionary will be used on: its weight processing has to
            be the one that the file says. Without a model, a file that says any warns.

    Returns:
        The dictionary and what its file says.

    Raises:
        LoadError: no such file, one that is broken or unsafe, or one of a dictionary
            that cannot be represented.
        ConfigError: a format that does not exist.
        FrameError: a model whose weights are processed in another way.
        NetworkError: no such file, and the hub cannot be reached.
    """
    path, name = Path(name_or_path), os.fspath(name_or_path)
    if not path.exists():
        if PLACE.fullmatch(name) is None:
            raise LoadError(f"There is no folder or file '{name}', nor is it a hub id.")
        try:
            path = download_dictionary(name)
        except (LoadError, NetworkError) as error:
            here = f"There is no folder or file '{name}' here; taken as a hub id: "
            raise type(error)(here + str(error)) from error
    kind = detect(path) if format is None else known_format(format)
    if path.is_dir():
        check_files(path)
    else:
        check_files(path.parent, [path.name])
    if scale is not None and kind != "saelens":
        raise LoadError(f"The format '{kind}' does not multiply activations: no scale.")
    found = FORMATS[kind].read(path, scale)
    if found.normalisation != "none" and not normalised:
        raise LoadError(
            f"{path} is of activations that were normalised one by one "
            f"('{found.normalisation}'): give normalised=True, and give the dictionary "
            f"mijax.dictionaries.normalise(x, '{found.normalisation}')."
        )
    check_processing(found.processing, model, found.site, path)
    content = found.content
    if isinstance(content, Plain):
        dictionary = dictionary_of(content, path, dtype)
    else:
        cast = lambda a: a.astype(dtype)  # noqa: E731
        whole = jax.tree.map(cast, content.weights)
        dictionary = eqx.tree_at(lambda d: d.weights, content, whole)
    warn_without_threshold(dictionary, path)
    numbers = {} if check is None else measured(dictionary, check)
    warn_of_difference(path, found.stated, numbers, tolerance)
    return Stored(
        *(dictionary, kind, found.site, found.target, found.normalisation),
        *(dict(found.stated), numbers, dict(found.metadata)),
        *(name, digest(found.files), found.processing),
    )


def save(
    dictionary: Dictionary,
    path: str | os.PathLike[str],
    *,
    format: str = "mijax",
    site: Site | None = None,
    target: Site | None = None,
    normalisation: str = "none",
    metadata: Mapping[str, Any] | None = None,
    dtype: DTypeLike = jnp.float32,
    processing: Sequence[str] | None = None,
) -> None:
    """Saves a dictionary as a folder that its format's own library reads.

    `"mijax"` keeps everything. The other formats keep what is computed: hyperparameters
    of training are lost, and `scale` is folded into the weights.

    Args:
        dictionary: the dictionary.
        path: the folder; an older one is replaced if mijax wrote everything in it.
        format: as in `load`; `"cross_layer"` is `"circuit_tracer"`.
        site: what it reads.
        target: what it writes, where that is another site.
        normalisation: how each activation is to be normalised first.
        metadata: JSON to keep, where the format has room for it.
        dtype: precision of the arrays in the file, except of `"mijax"`.
        processing: weight processing of the model it was trained on, `model.frame`;
            kept by `"mijax"` and `"saelens"`.

    Raises:
        ConfigError: a format or normalisation that does not exist.
        OutputError: the format cannot hold this dictionary, or the folder cannot be
            written or holds anything that mijax did not write.

    Examples:
        >>> import jax, tempfile
        >>> from mijax import dictionaries as d
        >>> sae = d.untrained(d.TopK(4), d.SAE(16), latents=64, key=jax.random.key(0))
        >>> folder = f"{tempfile.mkdtemp()}/sae"
        >>> d.save(sae, folder, format="saelens", site=Site("resid_post", layer=3))
        >>> d.load(folder).site
        Site(name='resid_post', layer=3)
    """
    kind = known_format(format)
    if normalisation not in NORMALISATIONS:
        close = nearest(normalisation, NORMALISATIONS)
        raise ConfigError(f"There is no normalisation {normalisation!r}.{close}")
    steps = None if processing is None else tuple(processing)
    note = Note(site, target, normalisation, metadata or {}, jnp.dtype(dtype), steps)
    replace_folder(path, lambda folder: FORMATS[kind].write(dictionary, folder, note))


def detect(path: Path) -> str:
    """Finds the format of a folder or file by the names of files.

    Raises:
        LoadError: none fits, or several.
    """
    fitting = [kind for kind, format in FORMATS.items() if format.fits(path)]
    if len(fitting) == 1:
        return fitting[0]
    what = "several formats fit" if fitting else "it fits no format"
    raise LoadError(
        f"{path}: {what} (known: {', '.join(fitting or FORMATS)}). Name the folder or "
        "file of one dictionary, or give format=."
    )


def known_format(name: str) -> str:
    """Returns a format's name, or refuses it."""
    if name not in FORMATS:
        raise ConfigError(f"There is no format {name!r}.{nearest(name, FORMATS)}")
    return name


def warn_without_threshold(dictionary: Dictionary, path: Path) -> None:
    """Warns of a dictionary that would run as a plain ReLU without saying so."""
    running = dictionary.running
    if running is not None and float(running) < 0:
        kind = type(dictionary.architecture).__name__
        warnings.warn(
            f"{path}: this {kind} has no threshold (it was saved before there was one) "
            "and computes what a plain ReLU does.",
            stacklevel=3,
        )


def has(*names: str) -> Callable[[Path], bool]:
    """Tells of a folder with such files."""
    return lambda path: all((path / name).is_file() for name in names)


def is_one_layer(path: Path) -> bool:
    """True if a file may be a transcoder of circuit-tracer."""
    whole = ("sae_weights.safetensors", "sae.safetensors")
    cross = path.name.startswith(("W_enc_", "W_dec_"))
    return path.suffix == ".safetensors" and path.name not in whole and not cross


FORMATS: Mapping[str, Format] = {
    "checkpoint": Format(is_training_checkpoint, read_training, write_training),
    "mijax": Format(is_checkpoint, read_native, write_native),
    "saelens": Format(
        has("cfg.json", "sae_weights.safetensors"), read_saelens, write_saelens
    ),
    "gemma_scope": Format(
        lambda path: path.suffix == ".npz" or (path / "params.npz").is_file(),
        read_gemma_scope,
        write_gemma_scope,
    ),
    "dictionary_learning": Format(
        lambda path: path.name == "ae.pt" or has("ae.pt", "config.json")(path),
        read_dictionary_learning,
        write_dictionary_learning,
    ),
    "sparsify": Format(
        has("cfg.json", "sae.safetensors"), read_sparsify, write_sparsify
    ),
    "openai": Format(
        lambda path: (
            (path.suffix in (".pt", ".pth") and path.name != "ae.pt")
            or (path / "autoencoder.pt").is_file()
        ),
        read_openai,
        write_openai,
    ),
    "circuit_tracer": Format(is_one_layer, read_circuit_tracer, write_circuit_tracer),
    "cross_layer": Format(
        has("W_enc_0.safetensors"), read_cross_layer, write_circuit_tracer
    ),
}
