"""Files of OpenAI's sparse_autoencoder: a state dict with the activation's name."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mijax._errors import LoadError, OutputError
from mijax.dictionaries._wiring import SAE
from mijax.dictionaries.architectures._relu import ReLU
from mijax.dictionaries.architectures._topk import TopK
from mijax.dictionaries.formats._plain import Plain, plain_of, unwritable
from mijax.dictionaries.formats._reading import Reading, read_settings
from mijax.dictionaries.formats._stored import Found
from mijax.io import Key, Only, Size, TorchFile, save_torch

WEIGHTS = "autoencoder.pt"
STATISTICS = (
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)


@dataclasses.dataclass(frozen=True)
class OpenAIValues:
    """Plain values of a state dict."""

    activation: Annotated[str, Only("ReLU", "TopK")] = "ReLU"
    k: Annotated[Size | None, Key("activation_state_dict.k")] = None
    postact: Annotated[str, Key("activation_state_dict.postact_fn"), Only("ReLU")] = (
        "ReLU"
    )
    again: Annotated[Size | None, Key("activation.k")] = None
    postact_again: Annotated[str, Key("activation.postact_fn"), Only("ReLU")] = "ReLU"


def read_openai(path: Path, scale: float | None) -> Found:
    """Reads a state dict: latents of `encoder @ (x - pre_bias) + latent_bias`.

    Those of TopK (the published version 5) normalise each activation first.

    Args:
        path: the file.
        scale: refused by the caller.

    Raises:
        LoadError: something that a dictionary cannot represent, or a broken file.
    """
    file = TorchFile(path / WEIGHTS if path.is_dir() else path)
    said = read_settings(OpenAIValues, file.values, file.path)
    reading = Reading(file)
    kind = said.activation
    architecture: Any = ReLU()
    if kind == "TopK":
        k = said.k
        if k is None:
            k = int(reading.take("activation_state_dict.k", whole=True))
        # The library's own state dicts give it twice.
        if said.again not in (None, k):
            raise LoadError(f"{file.path} has k={k} and activation.k={said.again}.")
        architecture = TopK(k)
    plain = Plain(
        architecture,
        reading.take("encoder.weight", "latent", "in"),
        reading.take("latent_bias", "latent"),
        reading.take("decoder.weight", "in", "latent").T,
        reading.take("pre_bias", "in"),
        centred=True,
    )
    found = {name: reading.maybe(name, "latent", whole=None) for name in STATISTICS}
    reading.close()
    return Found(
        *(plain, (file.path,)),
        normalisation="layer_norm" if kind == "TopK" else "none",
        stated={"l0": float(architecture.k)} if kind == "TopK" else {},
        metadata={k: v for k, v in found.items() if v is not None},
    )


def write_openai(dictionary: Any, path: Path, note: Any) -> None:
    """Writes a state dict, `autoencoder.pt`, into an empty folder.

    Args:
        dictionary: an autoencoder of `ReLU`, or of `TopK` and normalised activations.
        path: the folder.
        note: precision of the arrays and how activations are normalised.

    Raises:
        OutputError: another dictionary.
    """
    architecture, name = dictionary.architecture, "openai"
    if not isinstance(dictionary.wiring, SAE):
        raise OutputError(f"The format '{name}' holds autoencoders: use 'saelens'.")
    expected = "layer_norm" if isinstance(architecture, TopK) else "none"
    if note.normalisation != expected:
        raise OutputError(
            f"The format '{name}' is read with normalisation={expected!r} where the "
            f"architecture is {type(architecture).__name__}, not "
            f"{note.normalisation!r}: use 'saelens' or 'mijax'."
        )
    plain = plain_of(dictionary, centred=True, name=name)
    latents, dtype = plain.encoder.shape[0], np.dtype(note.dtype)
    arrays = {
        "pre_bias": plain.centre,
        "latent_bias": plain.bias,
        "encoder.weight": plain.encoder,
        "decoder.weight": plain.decoder.T,
    }
    content: dict[str, Any] = {k: a.astype(dtype) for k, a in arrays.items()}
    content[STATISTICS[0]] = np.zeros(latents, np.int64)
    content[STATISTICS[1]] = np.ones(latents, np.float32)
    content[STATISTICS[2]] = np.zeros(latents, np.float32)
    if isinstance(architecture, TopK):
        content["activation"] = "TopK"
        content["activation_state_dict"] = {
            "k": int(architecture.k),
            "postact_fn": "ReLU",
        }
    elif isinstance(architecture, ReLU):
        content["activation"] = "ReLU"
        content["activation_state_dict"] = {}
    else:
        raise unwritable(architecture, name, "ReLU and TopK")
    save_torch(content, path / WEIGHTS)
