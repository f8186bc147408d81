"""Distributed alignment search at all places at once beside PyTorch, one by one.

The same perceptron (trained on hierarchical equality here), interventions, order of
batches, Adam and cosine, from rotations drawn at random. PyTorch fits a rotation after
another under its orthogonal parametrisation, with activations computed beforehand and
read from memory; mijax runs the model on bases and sources at every update. Printed are
seconds with and without compile time, those of PyTorch, the ratios, and
interchange-intervention accuracies of both by layer.

PyTorch runs in an environment of its own: see `_peers/torch_das.py`.
"""

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _interleave import Worker, compiling, interleave, options, ratios, timed, write
from jaxtyping import Array, Int

import mijax
import mijax.experiment
from mijax import causal, train
from mijax.causal import DAS, MLP, Counterfactuals, Drawn, Search
from mijax.data import AbstractSource

EXAMPLE = """example:
  python experiments/benchmarks/das.py --peer PEER/bin/python
  python experiments/benchmarks/das.py --lanes 9 --steps 200
"""
POOL, RATE = 16384, 1e-2


class Pool(AbstractSource):
    """Batches of a pool, in a given order."""

    pool: Counterfactuals
    order: Int[Array, "step batch"]

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Counterfactuals]:
        """Returns the next batch."""
        return state + 1, take(self.pool, self.order, state)


@jax.jit
def take(pool: Counterfactuals, order: Array, step: Array) -> Counterfactuals:
    """Returns the examples of an update."""
    return jax.tree.map(lambda leaf: leaf[order[step % len(order)]], pool)


def main() -> None:
    """Runs both and prints one JSON line."""
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--object", type=int, default=4, help="numbers of an object")
    parser.add_argument("--lanes", type=int, default=27, help="rotations")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--trained", type=int, default=4000, help="of the perceptron")
    arguments = parser.parse_args()
    result = case(arguments)
    print(json.dumps(result), flush=True)
    write(arguments.out, [result])


def case(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times the search here and in the peer."""
    model, pool = given(arguments)
    width = 4 * arguments.object
    rng = np.random.default_rng(0)
    shape = (arguments.steps, arguments.batch)
    source = Pool(pool, jnp.asarray(rng.integers(POOL, size=shape), jnp.int32))
    layers = [lane % 3 for lane in range(arguments.lanes)]
    sites = [mijax.Site("mlp_post", layer=i, position=0) for i in layers]
    searches = [Search(DAS((width // 2,) * 2), site) for site in sites]
    fit = lambda: search(model, searches, source, arguments)  # noqa: E731
    sides = {"with_compile": compiling(timed(fit)), "mijax": timed(fit)}
    with tempfile.TemporaryDirectory() as scratch:
        worker = None
        if arguments.peer:
            file = Path(scratch) / "data.npz"
            data = exported(model, pool, source, layers)
            np.savez(file, allow_pickle=False, **data)
            words = ["--data", file, "--size", width // 2, "--rate", RATE]
            worker = Worker(arguments.peer, "torch_das.py", *words)
            sides["peer"] = worker.seconds
        found = interleave(sides, rounds=arguments.rounds)
    accuracy = np.asarray(causal.agreement(model, fit(), pool)).mean(-1)
    found |= {
        "rotations": len(searches),
        "width": width,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "accuracy": by_layer(accuracy, layers),
    }
    if worker is None:
        return found
    worker.close()
    return found | {
        "torch": worker.last["version"],
        "torch_threads": worker.last["threads"],
        "ratio": ratios(found, "peer", "mijax"),
        "ratio_with_compile": ratios(found, "peer", "with_compile"),
        "torch_accuracy": by_layer(np.asarray(worker.last["accuracy"]), layers),
    }


def search(
    model: MLP, searches: list[Search], source: Pool, arguments: argparse.Namespace
) -> causal.Alignment:
    """Fits every rotation."""
    return causal.align(
        *(model, searches, source),
        steps=arguments.steps,
        learning_rate=RATE,
        report=arguments.steps,
    )


def given(arguments: argparse.Namespace) -> tuple[MLP, Counterfactuals]:
    """Trains a perceptron and draws interventions."""
    package = mijax.experiment.load("hierarchical-equality").function.__module__
    task = importlib.import_module(f"{package}._task")
    network = importlib.import_module(f"{package}._network")
    size = arguments.object
    (model,) = network.learned(
        Drawn(lambda key: task.examples(key, size), batch=512),
        width=4 * size,
        seeds=1,
        steps=arguments.trained,
        learning_rate=5e-3,
        sink=train.Memory(),
    )
    drawn = Drawn(lambda key: task.questions(key, size)[0], batch=POOL)
    return model, drawn.batch(jnp.int32(0))[1]


def exported(
    model: MLP, pool: Counterfactuals, source: Pool, layers: list[int]
) -> dict[str, np.ndarray]:
    """Returns what the peer needs."""
    acts = eqx.filter_jit(jax.vmap(lambda x: model(x)[1].blocks.mlp_post[:, 0]))
    inputs = [pool.base, *jnp.moveaxis(pool.sources, 1, 0)]
    width = model.weights[0].shape[0]
    rng = np.random.default_rng(1)
    turns = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in layers]
    data = {
        "acts": np.stack([np.asarray(acts(x)) for x in inputs]),
        "swapped": np.asarray(pool.swapped),
        "label": np.asarray(pool.label, np.int64),
        "order": np.asarray(source.order, np.int64),
        "layer": np.asarray(layers),
        "rotation": np.stack(turns).astype(np.float32),
    }
    for i, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        data |= {f"weight{i}": np.asarray(weight), f"bias{i}": np.asarray(bias)}
    return data


def by_layer(accuracy: np.ndarray, layers: list[int]) -> list[float]:
    """Returns the mean accuracy at each layer."""
    at = np.asarray(layers)
    return [round(float(accuracy[at == i].mean()), 3) for i in sorted(set(layers))]


if __name__ == "__main__":
    main()
