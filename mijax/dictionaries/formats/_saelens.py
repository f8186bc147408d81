"""Folders of SAELens: cfg.json and sae_weights.safetensors."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mijax._errors import LoadError
from mijax.dictionaries._wiring import SAE
from mijax.dictionaries.architectures._batch_topk import BatchTopK
from mijax.dictionaries.architectures._gated import Gated
from mijax.dictionaries.architectures._jump_relu import JumpReLU
from mijax.dictionaries.architectures._matryoshka import Matryoshka
from mijax.dictionaries.architectures._relu import ReLU
from mijax.dictionaries.architectures._topk import TopK
from mijax.dictionaries.formats._hook_names import hook_of_site, site_of_hook
from mijax.dictionaries.formats._plain import (
    Gates,
    Plain,
    plain_of,
    thresholds,
    unwritable,
)
from mijax.dictionaries.formats._processing import arguments_of, processing_in
from mijax.dictionaries.formats._reading import Reading, read_settings
from mijax.dictionaries.formats._stored import Found
from mijax.io import Index, Only, SafeTensors, Size, read_json, save_safetensors
from mijax.io.internal import keys_of

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
VERSION = "6.0.0"
RENAMED = {"constant_norm": "constant_norm_rescale"}
AUTOENCODERS = ("standard", "gated", "topk", "jumprelu")
# Of folders that the trainer writes; inference folders have them as jumprelu.
AUTOENCODERS += ("batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder")
TRANSCODERS += ("jumprelu_skip_transcoder",)
NORMALISATIONS = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": "none",
    # Of configs before version 6.
    None: "none",
    False: "none",
    True: "none",
}
# What configs say of model, data and training; nothing of it changes what is computed.
FREE_KEYS = """
act_store_device activation_fn_kwargs adam_beta1 adam_beta2 autocast autocast_lm
aux_loss_coefficient decoder_init_norm jumprelu_sparsity_loss_mode jumprelu_ste_to_input
jumprelu_tanh_scale l0_coefficient l0_warm_up_steps pre_act_loss_coefficient target_l0
topk_threshold_lr use_matryoshka_aux_loss use_sparse_activations
b_dec_init_method buffer_size_gb cached_activations_path checkpoint_path compile_llm
compile_sae context_size d_head dataset_path dataset_trust_remote_code
dead_feature_estimation_method dead_feature_threshold dead_feature_window
decoder_heuristic_init decoder_orthogonal_init device disable_concat_sequences dtype
eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens expansion_factor
feature_reinit_scale feature_sampling_method feature_sampling_window finetuning_method
finetuning_tokens from_pretrained_path ghost_grads_coefficient hook_eval hook_layer
hook_layer_out hook_point_layer hook_point_template init_encoder_as_decoder_transpose
is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold l0_lambda l1_coefficient
l1_warm_up_steps llm_compilation_mode log_optimizer_state_to_wandb log_to_wandb lp_norm
lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_class_name
model_from_pretrained_kwargs model_kwargs model_name mse_loss_normalization
n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id
noise_scale normalize_sae_decoder prepend_bos resample_batches run_name
sae_compilation_mode sae_lens_training_version sae_lens_version
scale_sparsity_penalty_by_decoder_norm seed seqpos_slice store_batch_size
store_batch_size_prompts streaming tokens_per_buffer total_training_steps
total_training_tokens train_batch_size train_batch_size_tokens training_tokens
use_cached_activations use_ghost_grads verbose wandb_entity wandb_id wandb_log_frequency
wandb_project
"""
FREE = frozenset(FREE_KEYS.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """Keys of cfg.json, or of its `metadata`, that name sites."""

    hook_name: str | None = None
    hook_point: str | None = None
    hook_head_index: Index | None = None
    hook_point_head_index: Index | None = None
    hook_name_out: str | None = None
    hook_head_index_out: Index | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeLensConfig(Hooks):
    """Keys of cfg.json."""

    architecture: Annotated[str, Only(*AUTOENCODERS, *TRANSCODERS)] = "standard"
    activation_fn: Annotated[str, Only("relu", "topk")] = "relu"
    activation_fn_str: Annotated[str, Only("relu", "topk")] = "relu"
    activation_fn_kwargs: dict[str, Any] | None = None
    apply_b_dec_to_input: bool | None = None
    d_in: Size
    d_sae: Size
    d_out: Size | None = None
    k: Size | None = None
    matryoshka_widths: list[Size] | None = None
    rescale_acts_by_decoder_norm: bool = False
    normalize_activations: Annotated[Any, Only(*NORMALISATIONS)] = "none"
    reshape_activations: Annotated[str, Only("none", "hook_z")] = "none"
    finetuning_scaling_factor: bool = False
    metadata: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an activation function."""

    k: Size | None = None


def read_saelens(path: Path, scale: float | None) -> Found:
    """Reads a folder of SAELens.

    Args:
        path: the folder.
        scale: by which activations are multiplied, where the config says that they
            are and not by how much.

    Raises:
        LoadError: something that a dictionary cannot represent, or broken files.
    """
    config = read_json(path / CONFIG)
    where = path / CONFIG
    said = read_settings(SaeLensConfig, config, where, FREE)
    details = said.metadata or {}
    known = {**config, **details}
    hooks = read_settings(
        Hooks, {k: known[k] for k in known.keys() & keys_of(Hooks)}, where
    )
    kind, k = architecture_of(said, where)
    centring = kind in AUTOENCODERS
    centred = (
        centring if said.apply_b_dec_to_input is None else (said.apply_b_dec_to_input)
    )
    if centred and not centring:
        raise LoadError(f"{where}: apply_b_dec_to_input=True of a transcoder.")
    if kind in TRANSCODERS and said.d_out is None:
        raise LoadError(f"{where}: key 'd_out' is missing; a transcoder needs it.")
    sizes = {"in": said.d_in, "latent": said.d_sae}
    sizes["out"] = said.d_out or said.d_in
    reading = Reading(SafeTensors(path / WEIGHTS), sizes)
    check_finetuning(reading)
    plain = read_arrays(reading, kind, k, said)._replace(
        centred=centred, transcoder=not centring, scale=scale_of(said, scale, where)
    )
    how = NORMALISATIONS[said.normalize_activations]
    if how != "none" and not centring:
        raise LoadError(f"{where}: transcoders with normalize_activations={how!r}.")
    reading.close()
    site = site_of_hook(
        hooks.hook_name or hooks.hook_point,
        hooks.hook_head_index
        if hooks.hook_head_index is not None
        else hooks.hook_point_head_index,
    )
    target = site_of_hook(hooks.hook_name_out, hooks.hook_head_index_out)
    return Found(
        *(plain, (path / CONFIG, path / WEIGHTS)),
        site=site,
        target=site if centring else target,
        normalisation=how,
        stated=stated_in(path, plain, details),
        metadata=config,
        processing=processing_in(known.get("model_from_pretrained_kwargs")),
    )


def architecture_of(said: SaeLensConfig, where: Path) -> tuple[str, int | None]:
    """Returns the architecture and `k`, also of configs before version 6."""
    kind, k = said.architecture, said.k
    names = (said.activation_fn, said.activation_fn_str)
    if kind in ("standard", "topk") and "topk" in names:
        options = said.activation_fn_kwargs or {}
        kind = "topk"
        k = (
            k
            or read_settings(
                Options, {x: options[x] for x in {"k"} & {*options}}, where
            ).k
        )
    if "topk" in kind and k is None:
        raise LoadError(
            f"{where}: key 'k' is missing; this dictionary cannot be built."
        )
    return kind, k


def read_arrays(
    reading: Reading, kind: str, k: int | None, said: SaeLensConfig
) -> Plain:
    """Reads the arrays of an architecture."""
    encoder = reading.take("W_enc", "in", "latent").T
    decoder = reading.take("W_dec", "latent", "out")
    centre = reading.take("b_dec", "out")
    if kind == "gated":
        bias = reading.take("b_gate", "latent")
        sizes: Any = (reading.take("r_mag", "latent"), reading.take("b_mag", "latent"))
        extra = Gates(*sizes)
        return Plain(Gated(), encoder, bias, decoder, centre, extra=extra)
    plain = Plain(ReLU(), encoder, reading.take("b_enc", "latent"), decoder, centre)
    if "topk" in kind and k is not None:
        plain = largest(plain, reading, kind, k, said.matryoshka_widths)
        if said.rescale_acts_by_decoder_norm:
            plain = normed(plain)
    if kind.startswith("jumprelu"):
        found = reading.maybe("log_threshold", "latent")
        found = (
            reading.take("threshold", "latent")
            if found is None
            else np.exp(found.astype(np.float64))
        )
        plain = plain._replace(architecture=JumpReLU(), extra=found)
    if kind.endswith("skip_transcoder"):
        plain = plain._replace(skip=reading.take("W_skip", "out", "in").T)
    return plain


def largest(
    plain: Plain, reading: Reading, kind: str, k: int, widths: list[int] | None
) -> Plain:
    """Return arrays of a dictionary that keeps the largest latents."""
    if kind == "topk":
        return plain._replace(architecture=TopK(k))
    plain = plain._replace(running=float(reading.take("topk_threshold")))
    if kind == "batchtopk":
        return plain._replace(architecture=BatchTopK(k))
    if widths is None:
        raise LoadError(
            f"{reading.path}: the config has no key 'matryoshka_widths', which this "
            "dictionary needs."
        )
    shares = np.diff([0, *widths]) / len(plain.bias)
    architecture = Matryoshka(tuple(float(share) for share in shares), k)
    return plain._replace(architecture=architecture)


def normed(plain: Plain) -> Plain:
    """Gives the decoder rows of length 1, whose length latents then have."""
    lengths = np.linalg.norm(plain.decoder.astype(np.float64), axis=1)
    times = lambda a, b: (a.astype(np.float64) * b).astype(a.dtype)  # noqa: E731
    return plain._replace(
        encoder=times(plain.encoder, lengths[:, None]),
        bias=times(plain.bias, lengths),
        decoder=times(plain.decoder, 1 / lengths[:, None]),
    )


def scale_of(said: SaeLensConfig, scale: float | None, where: Path) -> float:
    """Returns the factor of the activations.

    Raises:
        LoadError: it is not known, or it is given where the config has none.
    """
    scaled = said.normalize_activations in ("expected_average_only_in", True)
    if not scaled and scale is not None:
        raise LoadError(f"{where} does not multiply activations: leave scale out.")
    if scaled and scale is None:
        raise LoadError(
            f"{where}: normalize_activations='expected_average_only_in' means that "
            "activations were multiplied so that their mean length is the root of "
            "their size, and the file does not have the factor: give scale=."
        )
    return 1.0 if scale is None else float(scale)


def check_finetuning(reading: Reading) -> None:
    """Refuses factors of finetuning that are not 1, which files have without them."""
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = reading.maybe(name, "latent")
        if factor is not None and np.any(factor != 1):
            raise LoadError(
                f"{reading.path}: tensor '{name}' is not 1 everywhere: finetuned "
                "factors cannot be represented."
            )


def stated_in(path: Path, plain: Plain, said: Any) -> dict[str, float]:
    """Returns the L0 that the frequencies of the latents add up to, or `k`.

    Those of BatchTopK are saved as JumpReLU; how they were trained says their `k`.
    """
    sparsity = path / SPARSITY
    if sparsity.is_file():
        reading = Reading(SafeTensors(sparsity), {"latent": len(plain.bias)})
        logs = reading.take("sparsity", "latent").astype(np.float64)
        reading.close()
        return {"l0": float((10**logs).sum())}
    details = said.get("training_architecture_details")
    k = details.get("k") if isinstance(details, dict) else None
    k = getattr(plain.architecture, "k", k)
    return {"l0": float(k)} if isinstance(k, int | float) else {}


def write_saelens(dictionary: Any, path: Path, note: Any) -> None:
    """Writes a folder of SAELens into an empty folder.

    Dictionaries of `BatchTopK` and `Matryoshka` become JumpReLU, as SAELens does.

    Args:
        dictionary: an autoencoder or transcoder.
        path: the folder.
        note: where it reads and writes, and everything else to say.

    Raises:
        OutputError: a dictionary or a site that SAELens does not have.
    """
    is_sae = isinstance(dictionary.wiring, SAE)
    plain = plain_of(dictionary, centred=is_sae, name="saelens")
    kind, arrays, more = kind_of(plain)
    dtype = np.dtype(note.dtype)
    arrays = {
        "W_enc": plain.encoder.T,
        "W_dec": plain.decoder,
        "b_dec": plain.centre,
        **arrays,
    }
    save_safetensors(
        {k: np.ascontiguousarray(a).astype(dtype) for k, a in arrays.items()},
        path / WEIGHTS,
    )
    config = {
        "architecture": kind,
        "d_in": plain.encoder.shape[1],
        "d_sae": plain.encoder.shape[0],
        "dtype": dtype.name,
        "device": "cpu",
        "apply_b_dec_to_input": is_sae,
        "normalize_activations": RENAMED.get(note.normalisation, note.normalisation),
        "reshape_activations": "hook_z" if is_z(note.site) else "none",
        **more,
        "metadata": {
            "sae_lens_version": VERSION,
            **hooks_of(note.site, ""),
            **hooks_of(note.target, "_out"),
            **({} if note.processing is None else processed(note.processing)),
            **note.metadata,
        },
    }
    (path / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def processed(processing: tuple[str, ...]) -> dict[str, Any]:
    """Return the key by which SAELens says how weights are processed."""
    return {"model_from_pretrained_kwargs": arguments_of(processing)}


def kind_of(plain: Plain) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Returns SAELens' architecture, its own arrays and its own settings."""
    architecture = plain.architecture
    more = {"d_out": plain.decoder.shape[1]} if plain.transcoder else {}
    bias = {"b_enc": plain.bias}
    kinds = ("standard", "jumprelu")
    if plain.transcoder:
        kinds = ("transcoder", "jumprelu_transcoder")
    if plain.skip is not None:
        kinds = ("skip_transcoder", "jumprelu_skip_transcoder")
        bias["W_skip"] = plain.skip.T
    if isinstance(architecture, ReLU):
        return kinds[0], bias, more
    if isinstance(architecture, JumpReLU | BatchTopK | Matryoshka):
        return kinds[1], {**bias, "threshold": thresholds(plain, "saelens")}, more
    if plain.transcoder:
        raise unwritable(architecture, "saelens", "transcoders of ReLU and JumpReLU")
    if isinstance(architecture, TopK):
        return "topk", bias, {"k": int(architecture.k)}
    if isinstance(architecture, Gated):
        extra = plain.extra
        arrays = {"b_gate": plain.bias, "r_mag": extra.scale, "b_mag": extra.bias}
        return "gated", arrays, more
    raise unwritable(architecture, "saelens", "the architectures of mijax")


def hooks_of(site: Any, suffix: str) -> dict[str, Any]:
    """Returns what a config says of a site: its hook, and its head if it has one."""
    if site is None:
        return {}
    head = {} if site.head is None else {f"hook_head_index{suffix}": int(site.head)}
    return {f"hook_name{suffix}": hook_of_site(site), **head}


def is_z(site: Any) -> bool:
    """True if activations have heads, which SAELens joins."""
    return site is not None and site.name == "z" and site.head is None
