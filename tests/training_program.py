"""Trains a small dictionary with checkpoints: a program that tests start and kill."""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mijax import dictionaries as d
from mijax import train
from mijax.data import Examples


class Slow(train.AbstractSink):
    def write(self, step, numbers):
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--process", type=int)
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    mesh = None
    if given.process is not None:
        if not given.alone:
            jax.distributed.initialize(f"localhost:{given.port}", 2, given.process)
        mesh = train.mesh(data=2, model=2)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(128, 8)), jnp.float32)
    training = d.Training(
        *(d.TopK(3), d.SAE(8)),
        latents=16,
        steps=60,
        learning_rate=1e-2,
        dead_after=64,
        resample=7,
    )
    found = d.train(
        training,
        Examples(x, batch=32),
        mesh=mesh,
        sinks=[Slow()] if given.slow else [],
        report=1,
        checkpoint=given.folder / "run",
        every=4,
    )
    weights = found.weights
    arrays = {"encoder": weights.encoder, "decoder": weights.decoder}
    if mesh is not None:
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        arrays = jax.jit(lambda tree: tree, out_shardings=whole)(arrays)
    if jax.process_index() == 0:
        part = given.folder / "part.npz"
        np.savez(part, **{name: np.asarray(a) for name, a in arrays.items()})
        part.rename(given.folder / "result.npz")


if __name__ == "__main__":
    main()
