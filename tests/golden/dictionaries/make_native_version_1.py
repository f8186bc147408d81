"""Writes `native/version_1` and the numbers it had, with mijax at commit 0907d97.

That commit wrote the first version of mijax's own format, in which JumpReLU kept the
logarithms of its thresholds.

Needs mijax at that commit: later ones write later versions.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from make_by_mijax import drawn

from mijax import Site
from mijax import dictionaries as d

FOLDER = Path(__file__).parent / "native" / "version_1"


def main() -> None:
    """Saves one dictionary, and what it computes of random inputs."""
    architecture, wiring = d.JumpReLU(0.2, bandwidth=0.5), d.SAE(8)
    dictionary = drawn(architecture, wiring, 7, latents=24, scale=0.7)
    d.save(dictionary, FOLDER, site=Site("resid_post", layer=3))
    x = np.random.default_rng(8).normal(size=(6, 8)).astype(np.float32)
    arrays = {"latents": dictionary.encode(jnp.asarray(x)), "output": dictionary(x)}
    np.savez(FOLDER.with_suffix(".npz"), x=x, **arrays)


if __name__ == "__main__":
    main()
