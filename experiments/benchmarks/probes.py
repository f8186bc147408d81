"""All-layer logistic probes in mijax beside scikit-learn, one probe at a time.

The same standardised inputs, labels, penalty and held-out examples; both stop where the
gradient is at most 1e-4 of that of no weights (scikit-learn at the loosest of its own
tolerances that meets this). Printed are seconds with and without compile time, those of
scikit-learn, the ratios, the largest gradients, and held-out accuracies.

`binary` and `several` (12 classes) fit one strength. `binary-chosen` and
`several-chosen` choose among four on a fifth of the examples that is set aside, then
fit again. Inputs are drawn at random, with a spectrum and directions of classes like
those of a small language model; with `--data`, they are SmolLM2's on the Brown corpus
(10 parts of speech; nouns against the rest).

scikit-learn runs in an environment of its own: see `_peers/sklearn_probes.py`.
"""

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _interleave import Worker, compiling, interleave, options, ratios, timed, write

import mijax
import mijax.experiment
from mijax.probes import Logistic, fit

EXAMPLE = """example:
  python experiments/benchmarks/probes.py --peer PEER/bin/python
  python experiments/benchmarks/probes.py --data brown.zip --only binary --layers 4
"""
STRENGTHS = {"fixed": (1e-2,), "chosen": (1e-3, 1e-2, 1e-1, 1.0)}
CASES = ("binary", "several", "binary-chosen", "several-chosen")
TOLERANCE, CLASSES, HELD_OUT = 1e-4, 12, 2000


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--data", help="the Brown corpus, for activations of SmolLM2")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layers", type=int, default=31)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--embed", type=int, default=576, help="of inputs drawn")
    arguments = parser.parse_args()
    data = smollm2(arguments) if arguments.data else drawn(arguments)
    results = []
    for name in arguments.only:
        results.append({"case": name, **case(name, data, arguments)})
        print(json.dumps(results[-1]), flush=True)
    write(arguments.out, results)


def drawn(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Draws inputs; classes are told apart the better the later the layer."""
    rng = np.random.default_rng(0)
    n, d = arguments.examples + HELD_OUT, arguments.embed
    y = rng.integers(CLASSES, size=n)
    spectrum = np.arange(1, d + 1) ** -0.5
    layers = []
    for layer in range(arguments.layers):
        means = rng.normal(size=(CLASSES, d)) * spectrum
        noise = rng.normal(size=(n, d)) * spectrum
        turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
        strength = 0.05 + 0.2 * layer / arguments.layers
        layers.append(((strength * means[y] + noise) @ turn).astype(np.float32))
    return split(np.stack(layers), y, arguments.examples)


def smollm2(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Reads words of the Brown corpus with SmolLM2."""
    package = mijax.experiment.load("probe-pos").function.__module__
    experiment = importlib.import_module(package)
    corpus = importlib.import_module(f"{package}._brown")
    loaded = mijax.models.load("smollm2-135m-instruct")
    size = (arguments.examples, HELD_OUT)
    parts = corpus.brown(arguments.data, loaded.tokenizer, size, 0)[:2]
    x = [experiment.activations(loaded.model, words) for words in parts]
    y = np.concatenate([words.tags for words in parts])
    # The first layer is the embedding of words.
    x = np.concatenate(x, axis=1)[: arguments.layers]
    return split(x, y, arguments.examples)


def split(x: np.ndarray, y: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Standardises over the examples to learn from."""
    mean = x[:, :n].mean(1, keepdims=True)
    x = (x - mean) / x[:, :n].std(1, keepdims=True)
    return {"x": x[:, :n], "y": y[:n], "x_held": x[:, n:], "y_held": y[n:]}


def case(
    name: str, data: dict[str, np.ndarray], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Times one case here and in the peer."""
    labels, _, chosen = name.partition("-")
    strengths = STRENGTHS[chosen or "fixed"]
    if labels == "binary":
        data = data | {key: (data[key] == 0) * 1 for key in ("y", "y_held")}
    probe = Logistic(strengths, tolerance=TOLERANCE)
    given = [jax.numpy.asarray(data["x"]), data["y"]]
    given += [jax.numpy.asarray(data["x_held"]), data["y_held"]]
    fitted = lambda: fit(probe, *given)  # noqa: E731
    sides = {"with_compile": compiling(timed(fitted)), "mijax": timed(fitted)}
    with tempfile.TemporaryDirectory() as scratch:
        worker = None
        if arguments.peer:
            file = Path(scratch) / "data.npz"
            np.savez(file, allow_pickle=False, **data)
            words = ["--data", file, "--goal", TOLERANCE, "--l2", *strengths]
            worker = Worker(arguments.peer, "sklearn_probes.py", *words)
            sides["peer"] = worker.seconds
        times = interleave(sides, rounds=arguments.rounds)
    found = fitted()
    accuracy = np.asarray(found.held_out.mean)
    times |= {
        "probes": len(accuracy),
        "examples": len(data["y"]),
        "features": data["x"].shape[-1],
        "classes": len(found.classes),
        "steps": float(np.mean(found.steps)),
        "gradient": float(f"{float(found.gradient.max()):.1e}"),
        "accuracy": round(float(accuracy.mean()), 4),
    }
    if worker is None:
        return times
    worker.close()
    return times | beside(times, worker.last, accuracy)


def beside(
    times: dict[str, Any], theirs: dict[str, Any], accuracy: np.ndarray
) -> dict[str, Any]:
    """Compares with scikit-learn on the same inputs."""
    off = np.abs(accuracy - np.array(theirs["accuracy"]))
    return {
        "sklearn": theirs["version"],
        "ratio": ratios(times, "peer", "mijax"),
        "ratio_with_compile": ratios(times, "peer", "with_compile"),
        "sklearn_steps": theirs["steps"],
        "sklearn_gradient": float(f"{theirs['gradient']:.1e}"),
        "sklearn_tolerance": theirs["tolerance"],
        "sklearn_dtype": theirs["dtype"],
        "sklearn_accuracy": round(float(np.mean(theirs["accuracy"])), 4),
        "largest_accuracy_difference": round(float(off.max()), 4),
    }


if __name__ == "__main__":
    main()
