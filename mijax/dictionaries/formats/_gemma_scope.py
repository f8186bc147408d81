"""Files of Gemma Scope: params.npz."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import OutputError
from mijax.core import Site
from mijax.dictionaries.architectures._jump_relu import JumpReLU
from mijax.dictionaries.formats._plain import Plain, plain_of, thresholds
from mijax.dictionaries.formats._reading import Npz, Reading
from mijax.dictionaries.formats._stored import Found

WEIGHTS = "params.npz"
# Folders are called gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71.
LAYER, L0 = re.compile(r"layer_(\d+)"), re.compile(r"average_l0_(\d+)")
PLACES = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}


def read_gemma_scope(path: Path, scale: float | None) -> Found:
    """Reads `params.npz`: latents of `x @ W_enc + b_enc` above their threshold.

    Site and L0 are in the names of the folders, and taken from them where they are.

    Args:
        path: the file, or its folder.
        scale: refused by the caller.

    Raises:
        LoadError: arrays that are missing, unknown or of another shape.
    """
    file = path / WEIGHTS if path.is_dir() else path
    reading = Reading(Npz(file))
    encoder = reading.take("W_enc", "in", "latent").T
    plain = Plain(
        *(JumpReLU(), encoder, reading.take("b_enc", "latent")),
        *(reading.take("W_dec", "latent", "out"), reading.take("b_dec", "out")),
        extra=reading.take("threshold", "latent"),
        transcoder="transcoders" in str(file),
    )
    reading.close()
    parts = file.absolute().parts
    layer = first(LAYER, parts)
    release = next((p for p in parts if "gemma-scope" in p), "")
    kind = release.rpartition("-")[2]
    site = (
        Site(PLACES[kind], layer=layer)
        if kind in PLACES and layer is not None
        else None
    )
    target = site
    if plain.transcoder and layer is not None:
        target = Site("mlp_out", layer=layer)
    l0 = first(L0, parts)
    return Found(
        *(plain, (file,)),
        site=site,
        target=target,
        stated={} if l0 is None else {"l0": float(l0)},
    )


def first(pattern: re.Pattern[str], parts: Any) -> int | None:
    """Returns the number in the last folder that has one."""
    found = [match for match in map(pattern.fullmatch, parts) if match]
    return int(found[-1][1]) if found else None


def write_gemma_scope(dictionary: Any, path: Path, note: Any) -> None:
    """Writes `params.npz` into an empty folder.

    Args:
        dictionary: one that cuts at a threshold.
        path: the folder.
        note: precision of the arrays; the rest cannot be said in this format.

    Raises:
        OutputError: a dictionary without thresholds, or with a linear path.
    """
    plain = plain_of(dictionary, centred=False, name="gemma_scope")
    if plain.skip is not None:
        raise OutputError("The format 'gemma_scope' has no linear path: use 'saelens'.")
    if note.normalisation != "none":
        raise OutputError("The format 'gemma_scope' cannot say how x is normalised.")
    dtype = np.dtype(note.dtype)
    if dtype.kind != "f":
        raise OutputError(f"The format 'gemma_scope' has no {dtype.name}: use float32.")
    arrays = {
        "W_enc": plain.encoder.T,
        "W_dec": plain.decoder,
        "b_enc": plain.bias,
        "b_dec": plain.centre,
        "threshold": thresholds(plain, "gemma_scope"),
    }
    np.savez(path / WEIGHTS, **{k: a.astype(dtype) for k, a in arrays.items()})  # pyright: ignore
