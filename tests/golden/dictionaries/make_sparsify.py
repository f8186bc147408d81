"""Writes `sparsify/`: folders that EleutherAI's sparsify saved, and what it computes.

Reads what mijax wrote (`by_mijax/sparsify_*`) with sparsify, too.

Needs torch 2.13.0 (CPU) and eai-sparsify 1.3.3.
"""

import shutil

import torch
from common import BY_MIJAX, HERE, IN, LATENTS, K, inputs, keep, randomise
from sparsify import SparseCoder, SparseCoderConfig

FOLDER = HERE / "sparsify"


def record(path, coder):
    """Keeps what a dictionary computes."""
    x = inputs()
    with torch.no_grad():
        values, index, _ = coder.encode(x)
        latents = torch.zeros(len(x), coder.num_latents).scatter_(1, index, values)
        keep(path, x=x, latents=latents, output=coder(x).sae_out)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for seed, (name, options) in enumerate(
        {
            "layers.3": {"num_latents": LATENTS},
            "layers.3.mlp": {"expansion_factor": 3, "transcode": True},
            "skip/layers.3.mlp": {
                "num_latents": LATENTS,
                "transcode": True,
                "skip_connection": True,
            },
            "skip_sae": {"num_latents": LATENTS, "skip_connection": True},
        }.items()
    ):
        config = SparseCoderConfig(k=K, **options)
        coder = randomise(SparseCoder(IN, config), seed)
        coder.save_to_disk(FOLDER / name)
        record(FOLDER / name, coder)
    for path in sorted(BY_MIJAX.glob("sparsify_*")):
        if path.is_dir():
            record(path, SparseCoder.load_from_disk(path))


if __name__ == "__main__":
    main()
