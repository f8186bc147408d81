"""Folders of EleutherAI's sparsify: cfg.json and sae.safetensors."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mijax._errors import OutputError
from mijax.dictionaries._wiring import Transcoder
from mijax.dictionaries.architectures._topk import TopK
from mijax.dictionaries.formats._hook_names import site_of_module
from mijax.dictionaries.formats._plain import Plain, plain_of, unwritable
from mijax.dictionaries.formats._reading import Reading, read_settings
from mijax.dictionaries.formats._stored import Found
from mijax.io import (
    Index,
    Only,
    SafeTensors,
    Size,
    read_json,
    save_safetensors,
)

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsifyConfig:
    """Keys of cfg.json."""

    activation: Annotated[str, Only("topk")] = "topk"
    signed: Annotated[bool, Only(False)] = False
    d_in: Size
    expansion_factor: Index = 32
    num_latents: Index = 0
    transcode: bool = False
    skip_connection: bool = False
    k: Size


def read_sparsify(path: Path, scale: float | None) -> Found:
    """Reads a folder of sparsify: TopK, centred unless it is a transcoder.

    The folder is called after the module whose output is read (`layers.10.mlp`).

    Args:
        path: the folder.
        scale: refused by the caller.

    Raises:
        LoadError: something that a dictionary cannot represent, or broken files.
    """
    config = read_json(path / CONFIG)
    said = read_settings(
        SparsifyConfig, config, path / CONFIG, ("normalize_decoder", "multi_topk")
    )
    latents = said.num_latents or said.d_in * said.expansion_factor
    transcoder, k = said.transcode, said.k
    sizes = {"in": said.d_in, "latent": latents}
    reading = Reading(SafeTensors(path / WEIGHTS), sizes)
    plain = Plain(
        TopK(k),
        reading.take("encoder.weight", "latent", "in"),
        reading.take("encoder.bias", "latent"),
        reading.take("W_dec", "latent", "in"),
        reading.take("b_dec", "in"),
        skip=reading.take("W_skip", "in", "in").T if said.skip_connection else None,
        centred=not transcoder,
        transcoder=transcoder,
    )
    reading.close()
    site = site_of_module(path.absolute().name)
    return Found(
        *(plain, (path / CONFIG, path / WEIGHTS)),
        # A transcoder reads the input of the module, which is no site.
        site=None if transcoder else site,
        target=site,
        stated={"l0": float(k)},
        metadata=config,
    )


def write_sparsify(dictionary: Any, path: Path, note: Any) -> None:
    """Writes a folder of sparsify into an empty folder.

    Args:
        dictionary: one of `TopK` whose input and output have the same size.
        path: the folder.
        note: precision of the arrays; the rest cannot be said in this format.

    Raises:
        OutputError: another dictionary.
    """
    name = "sparsify"
    transcoder = isinstance(dictionary.wiring, Transcoder)
    plain = plain_of(dictionary, centred=not transcoder, name=name)
    if not isinstance(plain.architecture, TopK):
        raise unwritable(plain.architecture, name, "TopK")
    if plain.encoder.shape != plain.decoder.shape or note.normalisation != "none":
        raise OutputError(
            f"The format '{name}' has inputs and outputs of one size, as they are: use "
            "'saelens' or 'mijax'."
        )
    dtype = np.dtype(note.dtype)
    arrays = {
        "encoder.weight": plain.encoder,
        "encoder.bias": plain.bias,
        "W_dec": plain.decoder,
        "b_dec": plain.centre,
    }
    if plain.skip is not None:
        arrays["W_skip"] = plain.skip.T
    save_safetensors(
        {k: np.ascontiguousarray(a).astype(dtype) for k, a in arrays.items()},
        path / WEIGHTS,
    )
    config = {
        "activation": "topk",
        "expansion_factor": 0,
        "normalize_decoder": False,
        "num_latents": plain.encoder.shape[0],
        "k": int(plain.architecture.k),
        "multi_topk": False,
        "skip_connection": plain.skip is not None,
        "transcode": transcoder,
        "d_in": plain.encoder.shape[1],
    }
    (path / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
