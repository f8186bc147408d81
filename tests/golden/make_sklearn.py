"""Linear probes fitted by scikit-learn, in float64.

Environment of its own (Python 3.11, CPU): scikit-learn==1.7.2, numpy. No network. Run
from anywhere:

    python tests/golden/make_sklearn.py

Writes `sklearn/probes.npz`, which README.md of that folder describes.
"""

from pathlib import Path

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent / "sklearn"
L2, SHRINKAGE = 0.03, 0.2


def main():
    rng = np.random.default_rng(0)
    x, values, binary, several = draw(rng, n=160, features=6)
    out = {"x": x, "values": values, "binary": binary, "several": several}
    out |= {"l2": np.float64(L2), "shrinkage": np.float64(SHRINKAGE)}
    scaler = StandardScaler().fit(x)
    inside = scaler.transform(x)
    for name, y in (("binary", binary), ("several", several)):
        model = LogisticRegression(C=1 / (L2 * len(x)), tol=1e-10, max_iter=10_000)
        model.fit(inside, y)
        keep(out, f"logistic_{name}", model.coef_ / scaler.scale_, model, scaler)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
        model.fit(x, y)
        out[f"lda_{name}_weight"] = model.coef_.T
        out[f"lda_{name}_bias"] = model.intercept_
    draws = np.random.default_rng(1)
    kept = np.flatnonzero((binary == 0) | (draws.random(len(x)) < 0.3))
    scaler = StandardScaler().fit(x[kept])
    model = LogisticRegression(
        C=1 / (L2 * len(kept)), class_weight="balanced", tol=1e-10, max_iter=10_000
    )
    model.fit(scaler.transform(x[kept]), binary[kept])
    balanced = {"kept": kept}
    keep(balanced, "logistic", model.coef_ / scaler.scale_, model, scaler)
    scaler = StandardScaler().fit(x)
    model = Ridge(alpha=L2 * len(x)).fit(inside, values)
    keep(out, "ridge", model.coef_[None] / scaler.scale_, model, scaler)
    HERE.mkdir(exist_ok=True)
    np.savez(HERE / "probes.npz", **out)
    np.savez(HERE / "balanced.npz", **balanced)


def draw(rng, *, n, features):
    """Correlated features of unequal scale and offset, and labels of three kinds."""
    mix = rng.normal(size=(features, features))
    x = rng.normal(size=(n, features)) @ mix
    x = x * np.geomspace(0.1, 10, features) + rng.normal(size=features) * 3
    x = x.astype(np.float32).astype(np.float64)
    score = (x - x.mean(0)) / x.std(0) @ rng.normal(size=(features, 3))
    score += rng.normal(size=score.shape)
    values = score[:, 0].astype(np.float32).astype(np.float64)
    return x, values, (score[:, 0] > 0.4).astype(int), score.argmax(1)


def keep(out, name, weight, model, scaler):
    """Keeps weights and bias of features as they are."""
    out[f"{name}_weight"] = weight.T
    out[f"{name}_bias"] = model.intercept_ - weight @ scaler.mean_


if __name__ == "__main__":
    main()
