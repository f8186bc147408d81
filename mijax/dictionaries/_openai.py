"""Files of OpenAI's sparse_autoencoder: a state dict with the activation's name."""

from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import OutputError
from mijax.dictionaries._plain import Plain, plain_of, unwritable
from mijax.dictionaries._reading import Reading, Settings
from mijax.dictionaries._relu import ReLU
from mijax.dictionaries._stored import Found
from mijax.dictionaries._topk import TopK
from mijax.dictionaries._torch_file import TorchFile, save_torch
from mijax.dictionaries._wiring import SAE

WEIGHTS = "autoencoder.pt"
STATISTICS = (
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)


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
    settings = Settings(file.values, file.path)
    reading = Reading(file)
    kind = settings.only("activation", "ReLU", "TopK")
    architecture: Any = ReLU()
    if kind == "TopK":
        settings.only("activation_state_dict.postact_fn", "ReLU")
        k = settings.get("activation_state_dict.k", None)
        if k is None:
            k = reading.take("activation_state_dict.k")
        architecture = TopK(int(k))
        # The library's own state dicts say it twice.
        settings.only("activation.k", int(k))
        settings.only("activation.postact_fn", "ReLU")
    plain = Plain(
        architecture,
        reading.take("encoder.weight", "latent", "in"),
        reading.take("latent_bias", "latent"),
        reading.take("decoder.weight", "in", "latent").T,
        reading.take("pre_bias", "in"),
        centred=True,
    )
    found = {name: reading.maybe(name, "latent") for name in STATISTICS}
    settings.close()
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
