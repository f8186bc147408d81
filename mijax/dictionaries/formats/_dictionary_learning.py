"""Folders of dictionary_learning: ae.pt and config.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import LoadError, OutputError
from mijax.dictionaries._wiring import SAE
from mijax.dictionaries.architectures._batch_topk import BatchTopK
from mijax.dictionaries.architectures._gated import Gated
from mijax.dictionaries.architectures._jump_relu import JumpReLU
from mijax.dictionaries.architectures._matryoshka import Matryoshka
from mijax.dictionaries.architectures._relu import ReLU
from mijax.dictionaries.architectures._topk import TopK
from mijax.dictionaries.formats._hook_names import site_of_submodule, submodule_of_site
from mijax.dictionaries.formats._plain import (
    Gates,
    Plain,
    known_threshold,
    plain_of,
    unwritable,
)
from mijax.dictionaries.formats._reading import Reading, read_settings
from mijax.dictionaries.formats._stored import Found
from mijax.io import Index, Size, TorchFile, read_json, save_torch
from mijax.io.internal import keys_of

CONFIG, WEIGHTS, RESULTS = "config.json", "ae.pt", "eval_results.json"
NAME = "dictionary_learning"
# What configs say of model, data and training; nothing of it changes what is computed.
FREE_KEYS = """
anneal_end anneal_start auxk_alpha bandwidth decay_start device group_fractions
group_weights initial_sparsity_penalty k_anneal_steps l1_penalty layer lm_name lr
n_sparsity_updates p_end p_start resample_steps seed sparsity_function sparsity_penalty
sparsity_queue_length sparsity_warmup_steps steps target_l0 threshold_beta
threshold_start_step top_k_aux trainer_class wandb_name warmup_steps
"""
FREE = frozenset(FREE_KEYS.split())
CLASSES = (
    *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"),
    *("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Keys of config.json."""

    trainer: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Keys of `trainer` in config.json."""

    dict_class: str
    activation_dim: Index = 0
    dict_size: Index = 0
    submodule_name: str | None = None
    k: Size | None = None
    group_sizes: list[Size] | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """Keys of eval_results.json that describe quality."""

    l0: float | None = None
    frac_variance_explained: float | None = None


def read_dictionary_learning(path: Path, scale: float | None) -> Found:
    """Reads a folder of dictionary_learning.

    Weights are as they were trained: `AutoEncoder.from_pretrained` there also gives the
    decoder rows of length 1, by which its latents differ.

    Args:
        path: the folder, or its `ae.pt`.
        scale: refused by the caller.

    Raises:
        LoadError: something that a dictionary cannot represent, or broken files.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / CONFIG)
    where = folder / CONFIG
    outer = read_settings(RunConfig, config, where, ("buffer",))
    said = read_settings(TrainerConfig, outer.trainer, where, FREE)
    kind = said.dict_class.rpartition(".")[2].removesuffix("'>")
    if kind not in CLASSES:
        raise LoadError(
            f"{where}: dict_class {kind!r} is not known, only {', '.join(CLASSES)}."
        )
    given = {"in": said.activation_dim, "latent": said.dict_size}
    sizes = {axis: size for axis, size in given.items() if size}
    file = TorchFile(folder / WEIGHTS)
    reading = Reading(file, sizes)
    plain = read_arrays(reading, said.k, where, kind)
    reading.close()
    for key in file.values:
        raise LoadError(f"{file.path}: '{key}' is no tensor of a {kind}.")
    site = site_of_submodule(said.submodule_name)
    return Found(
        *(plain, (folder / CONFIG, file.path)),
        site=site,
        target=site,
        stated=stated_in(folder, plain),
        metadata=config,
    )


def read_arrays(
    reading: Reading, stated_k: int | None, where: Path, kind: str
) -> Plain:
    """Reads the arrays of a class."""
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        encoder = reading.take("W_enc", "in", "latent").T
        bias = reading.take("b_enc", "latent")
        decoder = reading.take("W_dec", "latent", "in")
    else:
        encoder = reading.take("encoder.weight", "latent", "in")
        gate = "gate_bias" if kind == "GatedAutoEncoder" else "encoder.bias"
        bias = reading.take(gate, "latent")
        decoder = reading.take("decoder.weight", "in", "latent").T
    centres = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}
    centres["GatedAutoEncoder"] = "decoder_bias"
    centre = reading.take(centres.get(kind, "b_dec"), "in")
    plain = Plain(ReLU(), encoder, bias, decoder, centre)
    plain = plain._replace(
        centred=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    )
    if kind == "GatedAutoEncoder":
        sizes: Any = (
            reading.take("r_mag", "latent"),
            reading.take("mag_bias", "latent"),
        )
        return plain._replace(architecture=Gated(), extra=Gates(*sizes))
    if kind == "JumpReluAutoEncoder":
        cut = reading.take("threshold", "latent")
        return plain._replace(architecture=JumpReLU(), extra=cut)
    if kind.startswith("AutoEncoder") and kind != "AutoEncoderTopK":
        return plain
    k, cut = k_of(reading, stated_k, where), reading.maybe("threshold")
    if kind == "AutoEncoderTopK":
        return plain._replace(architecture=TopK(k))
    running = -1.0 if cut is None else float(cut)
    if kind == "BatchTopKSAE":
        return plain._replace(architecture=BatchTopK(k), running=running)
    groups = reading.take("group_sizes", "group", whole=True)
    shares = tuple(float(n) / len(bias) for n in groups)
    return plain._replace(architecture=Matryoshka(shares, k), running=running)


def k_of(reading: Reading, stated: int | None, where: Path) -> int:
    """Returns how many latents are kept.

    Raises:
        LoadError: file and config disagree, or neither says.
    """
    found = reading.maybe("k", whole=True)
    k = stated if found is None else int(found)
    if k is None:
        raise LoadError(
            f"{where}: key 'k' is missing; this dictionary cannot be built."
        )
    if stated is not None and k != stated:
        raise LoadError(f"{reading.path} has k={k}, {where} k={stated}.")
    return k


def stated_in(folder: Path, plain: Plain) -> dict[str, float]:
    """Returns what an evaluation beside the weights says, or `k`."""
    if (folder / RESULTS).is_file():
        results, known = read_json(folder / RESULTS), keys_of(Results)
        said = read_settings(
            Results, {k: results[k] for k in results.keys() & known}, folder / RESULTS
        )
        explained = said.frac_variance_explained
        stated = {"l0": said.l0, "fvu": None if explained is None else 1 - explained}
        return {key: float(x) for key, x in stated.items() if x is not None}
    k = getattr(plain.architecture, "k", None)
    return {} if k is None else {"l0": float(k)}


def write_dictionary_learning(dictionary: Any, path: Path, note: Any) -> None:
    """Writes a folder of dictionary_learning into an empty folder.

    Args:
        dictionary: an autoencoder.
        path: the folder.
        note: precision of the arrays, where it reads, and everything else to say.

    Raises:
        OutputError: a transcoder, a normalisation or a site, which the format does not
            have.
    """
    jump = isinstance(dictionary.architecture, JumpReLU)
    if not isinstance(dictionary.wiring, SAE) or note.normalisation != "none":
        raise OutputError(
            f"The format '{NAME}' holds autoencoders of activations as they are: use "
            "'saelens' or 'mijax'."
        )
    plain = plain_of(dictionary, centred=not jump, name=NAME)
    kind, arrays = arrays_of(plain)
    dtype = np.dtype(note.dtype)
    kept = {
        name: array if array.dtype.kind == "i" else array.astype(dtype)
        for name, array in arrays.items()
    }
    trainer = {
        "dict_class": kind,
        "activation_dim": plain.encoder.shape[1],
        "dict_size": plain.encoder.shape[0],
    }
    if "k" in kept:
        trainer["k"] = int(kept["k"])
    if note.site is not None:
        name = submodule_of_site(note.site)
        trainer |= {"layer": int(note.site.layer), "submodule_name": name}
    save_torch(kept, path / WEIGHTS)
    content = {"trainer": {**trainer, **note.metadata}}
    (path / CONFIG).write_text(json.dumps(content, indent=1) + "\n")


def arrays_of(plain: Plain) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the class and the arrays of its state dict."""
    architecture = plain.architecture
    by_rows = {
        "W_enc": plain.encoder.T,
        "b_enc": plain.bias,
        "W_dec": plain.decoder,
        "b_dec": plain.centre,
    }
    linear = {"encoder.weight": plain.encoder, "decoder.weight": plain.decoder.T}
    if isinstance(architecture, JumpReLU):
        return "JumpReluAutoEncoder", {**by_rows, "threshold": plain.extra}
    if isinstance(architecture, Gated):
        extra = plain.extra
        arrays = {"r_mag": extra.scale, "mag_bias": extra.bias, "gate_bias": plain.bias}
        return "GatedAutoEncoder", {**linear, **arrays, "decoder_bias": plain.centre}
    linear["encoder.bias"] = plain.bias
    if isinstance(architecture, ReLU):
        return "AutoEncoder", {**linear, "bias": plain.centre}
    linear["b_dec"] = plain.centre
    if not isinstance(architecture, TopK | BatchTopK | Matryoshka):
        raise unwritable(architecture, NAME, "the architectures of mijax")
    k = np.int32(architecture.k)
    if isinstance(architecture, TopK):
        whole = {"k": np.asarray(k), "threshold": np.asarray(-1, np.float32)}
        return "AutoEncoderTopK", {**linear, **whole}
    cut = np.asarray(known_threshold(plain, NAME), np.float32)
    whole = {"k": np.asarray(k), "threshold": cut}
    if isinstance(architecture, BatchTopK):
        return "BatchTopKSAE", {**linear, **whole}
    ends = architecture.ends(len(plain.bias))
    groups = np.diff([0, *ends]).astype(np.int64)
    return "MatryoshkaBatchTopKSAE", {**by_rows, **whole, "group_sizes": groups}
