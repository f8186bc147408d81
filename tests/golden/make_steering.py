"""Directions from repeng and steering-vectors on fixed activations.

Environment: Python 3.11, CPU, `pip install --no-deps repeng==0.4.0
steering-vectors==0.12.2 gguf scikit-learn scipy joblib threadpoolctl narwhals` next to
torch, numpy and transformers. No network. Run from anywhere:

    python tests/golden/make_steering.py

Writes `steering/directions.npz`, which README.md of that folder describes, and
`steering/control.gguf`, a control vector that repeng exported.
"""

import types
from pathlib import Path

import numpy as np

# repeng 0.4.0 names a type that NumPy 2 does not have.
np.float64 = np.float64

import repeng  # noqa: E402
import torch  # noqa: E402
from repeng import extract  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from steering_vectors.aggregators import (  # noqa: E402
    logistic_aggregator,
    mean_aggregator,
    pca_aggregator,
)

HERE = Path(__file__).parent / "steering"
PAIRS, LAYERS, WIDTH = 9, 4, 12


def main():
    rng = np.random.default_rng(0)
    shape = (LAYERS, PAIRS, WIDTH)
    common = rng.normal(size=shape)
    shift = rng.normal(size=(LAYERS, 1, WIDTH))
    spread = rng.normal(size=(LAYERS, PAIRS, 1)) * rng.normal(size=(LAYERS, 1, WIDTH))
    positive = common + shift + 1.5 * spread + 0.3 * rng.normal(size=shape)
    negative = common - 0.2 * shift + 0.3 * rng.normal(size=shape)
    positive, negative = positive.astype(np.float32), negative.astype(np.float32)
    out = {"positive": positive, "negative": negative}
    for method in ("pca_diff", "pca_center"):
        found = by_repeng(positive, negative, method)
        out[method] = np.stack([found[layer] for layer in range(1, LAYERS)])
    makers = {
        "mean": mean_aggregator(),
        "pca": pca_aggregator(),
        "logistic": logistic_aggregator({"tol": 1e-10, "max_iter": 10_000}),
    }
    for name, make in makers.items():
        rows = zip(torch.tensor(positive), torch.tensor(negative), strict=True)
        out[name] = np.stack([make(p, n).numpy() for p, n in rows])
    out["logistic_float64"] = in_float64(positive, negative)
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(HERE / "directions.npz", **out)
    vector = repeng.ControlVector("tiny", by_repeng(positive, negative, "pca_diff"))
    vector.export_gguf(HERE / "control.gguf")


def in_float64(positive, negative):
    """Fit what steering-vectors fits in float64, which it casts to float32."""
    found = []
    for p, n in zip(*np.float64([positive, negative]), strict=True):
        half = (p - n) / 2
        x, y = np.concatenate([half, -half]), np.repeat([1, -1], PAIRS)
        options = {"fit_intercept": False, "tol": 1e-12, "max_iter": 10_000}
        weight = LogisticRegression(**options).fit(x, y).coef_[0]
        found.append(weight / np.linalg.norm(weight))
    return np.stack(found)


def by_repeng(positive, negative, method):
    """Let repeng read the given activations in place of a model's."""
    both = np.stack([positive, negative], axis=2).reshape(LAYERS, -1, WIDTH)
    extract.batched_get_hiddens = lambda model, tokenizer, texts, layers, size: {
        layer: both[layer].copy() for layer in layers
    }
    extract.model_layer_list = lambda model: range(LAYERS)
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(num_hidden_layers=LAYERS)
    )
    entries = [repeng.DatasetEntry(positive="", negative="")] * PAIRS
    return extract.read_representations(model, None, entries, method=method)


if __name__ == "__main__":
    main()
