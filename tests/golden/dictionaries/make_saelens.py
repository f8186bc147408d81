"""Writes `saelens/`: folders that SAELens saved, and what SAELens computes of them.

Reads what mijax wrote (`by_mijax/saelens_*`) with SAELens, too.

Needs torch 2.13.0 (CPU), sae-lens 6.54.12 and its dependencies.
"""

import shutil
import tempfile

import torch
from common import BY_MIJAX, HERE, IN, LATENTS, OUT, K, inputs, keep, randomise
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata, TrainStepInput

FOLDER = HERE / "saelens"
HOOK = "blocks.3.hook_resid_post"


def metadata(**more):
    return SAEMetadata(model_name="tiny", hook_name=HOOK, **more)


def inference(name, kind, seed, **options):
    """Saves one of the classes for inference."""
    cls, config = get_sae_class(kind)
    options = {"d_in": IN, "d_sae": LATENTS, "metadata": metadata()} | options
    sae = randomise(cls(config(**options)), seed)
    if "transcoder" in kind:
        sae.cfg.metadata.hook_name_out = "blocks.3.hook_mlp_out"
    sae.save_model(FOLDER / name)
    record(FOLDER / name, sae)


def training(name, kind, seed, **options):
    """Saves one of the classes for training, after two steps of its threshold."""
    cls, config = get_sae_training_class(kind)
    options = {"d_in": IN, "d_sae": LATENTS, "metadata": metadata()} | options
    sae = randomise(cls(config(**options)), seed)
    for step in range(2):
        x = inputs(64, IN, seed=step)
        sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients={"l0": 0.0, "l1": 0.0},
                dead_neuron_mask=None,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
    sae.save_inference_model(FOLDER / name)
    record(FOLDER / name, SAE.load_from_disk(str(FOLDER / name)))


def in_training(name, kind, seed, **options):
    """Saves one of the classes for training as its trainer does."""
    cls, config = get_sae_training_class(kind)
    options = {"d_in": IN, "d_sae": LATENTS, "metadata": metadata()} | options
    sae = randomise(cls(config(**options)), seed)
    for _, buffer in sae.named_buffers():
        buffer.fill_(0.8)
    sae.save_model(FOLDER / name)
    with tempfile.TemporaryDirectory() as folder:
        # SAE.load_from_disk has no classes of the BatchTopK kinds.
        sae.save_inference_model(folder)
        record(FOLDER / name, SAE.load_from_disk(folder))


def record(path, sae):
    """Keeps what a dictionary computes."""
    x = inputs()
    with torch.no_grad():
        keep(path, x=x, latents=sae.encode(x), output=sae(x))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    inference("standard", "standard", 0)
    inference("uncentred", "standard", 1, apply_b_dec_to_input=False)
    inference("gated", "gated", 2)
    inference("gated_uncentred", "gated", 3, apply_b_dec_to_input=False)
    inference("topk", "topk", 4, k=K)
    inference("topk_rescaled", "topk", 5, k=K, rescale_acts_by_decoder_norm=True)
    inference("jumprelu", "jumprelu", 6)
    inference("layer_norm", "standard", 7, normalize_activations="layer_norm")
    inference(
        "constant_norm", "standard", 8, normalize_activations="constant_norm_rescale"
    )
    scaled = "expected_average_only_in"
    inference("scaled", "standard", 9, normalize_activations=scaled)
    sae = SAE.load_from_disk(str(FOLDER / "scaled"))
    sae.fold_activation_norm_scaling_factor(0.7)
    record(FOLDER / "scaled", sae)
    wide = {"apply_b_dec_to_input": False, "d_out": OUT}
    inference("transcoder", "transcoder", 10, **wide)
    inference("skip_transcoder", "skip_transcoder", 11, **wide)
    inference("jumprelu_transcoder", "jumprelu_transcoder", 12, **wide)
    inference("jumprelu_skip", "jumprelu_skip_transcoder", 17, **wide)
    training("batchtopk", "batchtopk", 13, k=K)
    widths = [6, 12, 24]
    training("matryoshka", "matryoshka_batchtopk", 14, k=K, matryoshka_widths=widths)
    training("jumprelu_trained", "jumprelu", 15)
    in_training("training_standard", "standard", 20)
    in_training("training_gated", "gated", 21)
    in_training("training_topk", "topk", 22, k=K)
    in_training("training_jumprelu", "jumprelu", 23)
    in_training("training_batchtopk", "batchtopk", 24, k=K)
    widths = [6, 12, 24]
    in_training(
        "training_matryoshka", "matryoshka_batchtopk", 25, k=K, matryoshka_widths=widths
    )
    half = inputs(IN, LATENTS, seed=3).to(torch.bfloat16)
    cls, config = get_sae_class("standard")
    sae = randomise(cls(config(d_in=IN, d_sae=LATENTS, dtype="bfloat16")), 16)
    sae.W_enc.data = half
    sae.save_model(FOLDER / "bfloat16")
    record(FOLDER / "bfloat16", sae.to(torch.float32))
    for path in sorted(BY_MIJAX.glob("saelens_*")):
        if path.is_dir():
            record(path, SAE.load_from_disk(str(path)))


if __name__ == "__main__":
    main()
