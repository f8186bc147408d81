"""Steps of a dictionary by SAELens or dictionary_learning, timed.

Weights and batches come from an npz with `encoder`, `decoder` [latent, embed] and
`batches` [step, batch, embed]. Both libraries train the same objective with the same
Adam (betas .9, .999), no clipping, no warm-up and no dead-latent loss.

Environment of its own (Python 3.11): torch==2.13.0, transformer-lens==2.16.1,
"datasets<4", "pyarrow<19", sae-lens==6.54.12 and dictionary-learning==0.1.0 (both
without their dependencies).
"""
# pyright: reportMissingImports=false
# ruff: noqa: PLC0415

import argparse
import importlib.metadata
import time
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer

EXAMPLE = """example:
  python dictionary_step.py --library saelens --architecture topk --start start.npz
"""


def main() -> None:
    """Run the steps, print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--library", choices=("saelens", "dictionary_learning"))
    parser.add_argument("--architecture", choices=("topk", "relu"))
    parser.add_argument("--start", required=True, help="npz with weights and batches")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--sparsity", type=float, default=0.01)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with np.load(arguments.start) as file:
        start = {name: torch.from_numpy(file[name].copy()) for name in file.files}
    answer(lambda: stepped(arguments, start), alive=arguments.alive)


def stepped(arguments: Any, start: dict[str, Any]) -> dict[str, Any]:
    """Take the steps from the start; returns seconds of one and all losses."""
    make = saelens if arguments.library == "saelens" else dictionary_learning
    loss_of, parameters = make(arguments, start)
    optimiser = torch.optim.Adam(parameters, lr=arguments.rate, betas=(0.9, 0.999))
    marks, losses = [], []
    for batch in start["batches"]:
        began = time.perf_counter()
        loss = loss_of(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        marks.append(time.perf_counter() - began)
    package = {"saelens": "sae-lens"}.get(arguments.library, "dictionary-learning")
    return {
        "version": f"{package} {importlib.metadata.version(package)}",
        "seconds": float(np.median(marks[1:])),
        "losses": losses,
    }


def dictionary_learning(arguments: Any, start: dict[str, Any]) -> Any:
    """Returns the loss and the parameters of dictionary_learning."""
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    latents, embed = start["encoder"].shape
    if arguments.architecture == "topk":
        model: Any = AutoEncoderTopK(embed, latents, arguments.k)
    else:
        model = AutoEncoder(embed, latents)
    with torch.no_grad():
        model.encoder.weight.copy_(start["encoder"])
        model.encoder.bias.zero_()
        model.decoder.weight.copy_(start["decoder"].T)

    def loss_of(x: Any) -> Any:
        if arguments.architecture == "topk":
            latents = model.encode(x)
            return ((x - model.decode(latents)) ** 2).sum(1).mean()
        restored, latents = model(x, output_features=True)
        norms = model.decoder.weight.norm(dim=0)
        penalty = (latents * norms).sum(1).mean()
        return ((x - restored) ** 2).sum(1).mean() + arguments.sparsity * penalty

    return loss_of, model.parameters()


def saelens(arguments: Any, start: dict[str, Any]) -> Any:
    """Returns the loss and the parameters of SAELens."""
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    latents, embed = start["encoder"].shape
    common = {"d_in": embed, "d_sae": latents, "dtype": "float32", "device": "cpu"}
    common |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
    if arguments.architecture == "topk":
        config: Any = sae_lens.TopKTrainingSAEConfig(
            k=arguments.k,
            aux_loss_coefficient=0.0,
            rescale_acts_by_decoder_norm=False,
            **common,
        )
        model: Any = sae_lens.TopKTrainingSAE(config)
    else:
        config = sae_lens.StandardTrainingSAEConfig(
            l1_coefficient=arguments.sparsity, **common
        )
        model = sae_lens.StandardTrainingSAE(config)
    with torch.no_grad():
        model.W_enc.copy_(start["encoder"].T)
        model.W_dec.copy_(start["decoder"])
        model.b_enc.zero_()
        model.b_dec.zero_()
    coefficients = {"l1": arguments.sparsity}

    def loss_of(x: Any) -> Any:
        given = {
            "sae_in": x,
            "coefficients": coefficients,
            "dead_neuron_mask": None,
            "n_training_steps": 0,
        }
        fields = TrainStepInput.__dataclass_fields__
        given = {name: given.get(name) for name in fields}
        return model.training_forward_pass(TrainStepInput(**given)).loss

    return loss_of, model.parameters()


if __name__ == "__main__":
    main()
