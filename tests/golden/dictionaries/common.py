"""What the scripts of this folder share; needs torch and numpy."""

from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
BY_MIJAX = HERE / "by_mijax"
IN, OUT, LATENTS, K, EXAMPLES = 8, 6, 24, 4, 20


def randomise(module, seed):
    """Makes every parameter random, so that none can be forgotten."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if "threshold" in name:
                parameter.copy_(0.3 + 0.2 * noise.abs())
            else:
                parameter.copy_(0.5 * noise)
    return module


def inputs(*shape, seed=99):
    """Returns activations that are not centred."""
    return torch.from_numpy(
        np.random.default_rng(seed).normal(0.4, 1.3, shape or (EXAMPLES, IN))
    ).float()


def keep(path, **tensors):
    """Writes what the library computes beside its folder."""
    arrays = {name: np.asarray(t.detach().to_dense()) for name, t in tensors.items()}
    assert all(np.isfinite(a).all() for a in arrays.values())
    assert (arrays["latents"] > 0).any()
    np.savez(Path(path).with_name(Path(path).name + ".npz"), **arrays)
