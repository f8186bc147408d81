"""Train JumpReLU dictionaries with SAELens or dictionary_learning.

Reads an npz with `rows` and `held` [example, embed], `order` [step, batch], and the
options of training; writes an npz with the decoder, and latents and output of `held`,
for each strength.

Environment of its own (Python 3.11): torch==2.13.0, sae-lens==6.54.12 and
dictionary-learning==0.1.0 (the latter without its dependencies; an empty module
`nnsight` with a class `LanguageModel` is enough for its import).
"""
# pyright: reportMissingImports=false
# ruff: noqa: PLC0415

import argparse
import importlib.metadata
import json
import sys
import types
from typing import Any

import numpy as np
import torch

EXAMPLE = """example:
  python jump_relu.py --library saelens --data data.npz --out found.npz
"""


def main() -> None:
    """Train one dictionary for each strength, print the version."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--library", choices=("saelens", "dictionary_learning"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--strengths", type=float, nargs="+", default=[])
    parser.add_argument("--targets", type=float, nargs="+", default=[])
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--decay", type=int, default=400)
    parser.add_argument("--sparsity-warmup", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with np.load(arguments.data) as file:
        data = {name: torch.from_numpy(file[name].copy()) for name in file.files}
    train = saelens if arguments.library == "saelens" else dictionary_learning
    found = {}
    runs = [("strength", s) for s in arguments.strengths]
    runs += [("target", t) for t in arguments.targets]
    for kind, value in runs:
        torch.manual_seed(arguments.seed)
        arrays = train(arguments, data, kind, value)
        for name, array in zip(("decoder", "latents", "output"), arrays, strict=True):
            found[f"{kind}_{value:g}_{name}"] = np.asarray(array.detach())
    np.savez(arguments.out, **found)
    package = {"saelens": "sae-lens"}.get(arguments.library, "dictionary-learning")
    print(json.dumps({"version": f"{package} {importlib.metadata.version(package)}"}))


def saelens(arguments: Any, data: dict[str, Any], kind: str, value: float) -> Any:
    """Train with SAELens' trainer: its defaults, but for the schedule."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rows, order = data["rows"], data["order"]
    steps, batch = order.shape
    mode = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": value}
    config = sae_lens.JumpReLUTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=arguments.latents,
        device="cpu",
        normalize_activations="expected_average_only_in",
        l0_warm_up_steps=arguments.sparsity_warmup,
        **({"l0_coefficient": value} if kind == "strength" else mode),
    )
    sae = sae_lens.JumpReLUTrainingSAE(config)
    trainer = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * batch,
        device="cpu",
        autocast=False,
        lr=arguments.rate,
        lr_end=arguments.rate / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=arguments.warmup,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=arguments.decay,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )

    def batches() -> Any:
        # The first ones also measure the scale.
        while True:
            for index in order:
                yield rows[index]

    sae = SAETrainer(cfg=trainer, sae=sae, data_provider=batches()).fit()
    with torch.no_grad():
        latents = sae.encode(data["held"])
        return sae.W_dec, latents, sae.decode(latents)


def dictionary_learning(
    arguments: Any, data: dict[str, Any], kind: str, value: float
) -> Any:
    """Train with dictionary_learning's trainer: its defaults, but for the schedule."""
    assert kind == "target", "dictionary_learning takes targets only"
    module: Any = types.ModuleType("nnsight")
    module.LanguageModel = object
    sys.modules.setdefault("nnsight", module)
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    rows, order = data["rows"], data["order"]
    steps = len(order)
    # As its `trainSAE(normalize_activations=True)`: mean squared norm 1.
    size = (rows**2).sum(1).mean().sqrt()
    trainer = JumpReluTrainer(
        steps=steps,
        activation_dim=rows.shape[1],
        dict_size=arguments.latents,
        layer=0,
        lm_name="none",
        seed=arguments.seed,
        lr=arguments.rate,
        warmup_steps=arguments.warmup,
        sparsity_warmup_steps=arguments.sparsity_warmup,
        decay_start=steps - arguments.decay,
        target_l0=value,
    )
    for step, index in enumerate(order):
        trainer.update(step, rows[index] / size)
    with torch.no_grad():
        latents = trainer.ae.encode(data["held"] / size)
        return trainer.ae.W_dec, latents, trainer.ae.decode(latents) * size


if __name__ == "__main__":
    main()
