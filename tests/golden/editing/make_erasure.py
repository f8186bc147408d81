"""Goldens of concept erasure from concept-erasure 0.2.4.

pip install --no-deps concept-erasure==0.2.4
python make_erasure.py
"""

from pathlib import Path

import numpy as np
import torch
from concept_erasure import LeaceEraser, OracleEraser, QuadraticEraser

HERE = Path(__file__).parent


def data():
    """Three classes with their own means and covariances, and one numeric concept."""
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, 60)
    mixing = random.randn(3, 8, 8) * np.linspace(0.2, 2, 8)
    x = np.einsum("nd,nde->ne", random.randn(60, 8), mixing[labels])
    x += 2 * random.randn(3, 8)[labels]
    return x, labels, x @ random.randn(8) + random.randn(60)


def main():
    x, labels, number = data()
    rows, onehot = torch.tensor(x), torch.eye(3)[torch.tensor(labels)].double()
    found = {"x": x, "labels": labels, "number": number}
    for name, options in {
        "leace": {},
        "plain": {"shrinkage": False},
        "linear": {"affine": False},
        "orth": {"method": "orth"},
    }.items():
        found[name] = LeaceEraser.fit(rows, onehot, **options)(rows).numpy()
    fitted = LeaceEraser.fit(rows, torch.tensor(number))
    found["numeric"] = fitted(rows).numpy()
    found["oracle"] = OracleEraser.fit(rows, onehot)(rows, onehot).numpy()
    for name, kept in {"quadratic3": labels < 3, "quadratic2": labels < 2}.items():
        part, y = rows[kept], torch.tensor(labels[kept])
        found[name] = QuadraticEraser.fit(part, y)(part, y).numpy()
    np.savez_compressed(HERE / "erasure.npz", **found)


if __name__ == "__main__":
    main()
