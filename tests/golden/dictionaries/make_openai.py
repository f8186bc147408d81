"""Writes `openai/`: state dicts of OpenAI's sparse_autoencoder, and what it computes.

Reads what mijax wrote (`by_mijax/openai_*`) with that library, too.

Needs torch 2.13.0 (CPU), and `sparse_autoencoder/model.py` of the public repository
openai/sparse_autoencoder, commit 4965b94 (it is not on the package index), on the path
as `openai_model.py`.
"""

import shutil

import torch
from common import BY_MIJAX, HERE, IN, LATENTS, K, inputs, keep, randomise
from openai_model import Autoencoder, TopK

FOLDER = HERE / "openai"


def record(path, ae):
    """Keeps what a dictionary computes."""
    x = inputs()
    with torch.no_grad():
        latents, info = ae.encode(x)
        keep(path, x=x, latents=latents, output=ae.decode(latents, info))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for seed, (name, options) in enumerate(
        {"relu": {}, "topk": {"activation": TopK(K), "normalize": True}}.items()
    ):
        ae = randomise(Autoencoder(LATENTS, IN, **options), seed)
        ae.forward(inputs())
        # A parent's state dict has the numbers of its TopK twice, and its own reader
        # refuses the second ones, which published files do not have either.
        state = ae.state_dict()
        torch.save(state, FOLDER / f"{name}_twice.pt")
        record(FOLDER / f"{name}_twice", ae)
        state = {k: v for k, v in state.items() if not k.startswith("activation.")}
        torch.save(state, FOLDER / f"{name}.pt")
        record(FOLDER / name, Autoencoder.from_state_dict(state))
    for path in sorted(BY_MIJAX.glob("openai_*")):
        if path.is_dir():
            state = torch.load(path / "autoencoder.pt", weights_only=True)
            record(path, Autoencoder.from_state_dict(state))


if __name__ == "__main__":
    main()
