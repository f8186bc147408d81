"""Writes `dictionary_learning/`: folders as that library's training leaves them.

Reads what mijax wrote (`by_mijax/dictionary_learning_*`) with the library, too.

Needs torch 2.13.0 (CPU) and dictionary-learning 0.1.0.
"""

import json
import shutil

import torch
from common import BY_MIJAX, HERE, IN, LATENTS, K, inputs, keep, randomise
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

FOLDER = HERE / "dictionary_learning"
CLASSES = {
    "AutoEncoder": (AutoEncoder, ()),
    "AutoEncoderNew": (AutoEncoderNew, ()),
    "GatedAutoEncoder": (GatedAutoEncoder, ()),
    "JumpReluAutoEncoder": (JumpReluAutoEncoder, ()),
    "AutoEncoderTopK": (AutoEncoderTopK, (K,)),
    "BatchTopKSAE": (BatchTopKSAE, (K,)),
    "MatryoshkaBatchTopKSAE": (MatryoshkaBatchTopKSAE, (K, [6, 6, 12])),
}


def record(path, ae):
    """Keeps what a dictionary computes."""
    x = inputs()
    with torch.no_grad():
        keep(path, x=x, latents=ae.encode(x), output=ae(x))


def read(path):
    """Reads a folder with the library, weights as they are."""
    kind = json.loads((path / "config.json").read_text())["trainer"]["dict_class"]
    cls, _ = CLASSES[kind]
    options = {"normalize_decoder": False} if kind == "AutoEncoder" else {}
    return cls.from_pretrained(str(path / "ae.pt"), **options)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for seed, (kind, (cls, options)) in enumerate(CLASSES.items()):
        ae = randomise(cls(IN, LATENTS, *options), seed)
        trainer = {
            "trainer_class": "Trainer",
            "dict_class": kind,
            "lr": 1e-4,
            "steps": 10,
            "seed": seed,
            "activation_dim": IN,
            "dict_size": LATENTS,
            "device": "cpu",
            "layer": 8,
            "lm_name": "tiny",
            "wandb_name": kind,
            "submodule_name": "resid_post_layer_8",
        }
        if hasattr(ae, "k"):
            trainer["k"] = ae.k.item()
            ae.threshold.fill_(1.1)
        path = FOLDER / kind
        path.mkdir(parents=True)
        torch.save(ae.state_dict(), path / "ae.pt")
        config = {"trainer": trainer, "buffer": {"d_submodule": IN, "io": "out"}}
        (path / "config.json").write_text(json.dumps(config, indent=4))
        record(path, read(path))
    for path in sorted(BY_MIJAX.glob("dictionary_learning_*")):
        if path.is_dir():
            record(path, read(path))


if __name__ == "__main__":
    main()
