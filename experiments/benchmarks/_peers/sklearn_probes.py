"""Logistic probes by scikit-learn, one layer after another, timed.

Inputs come from an npz with `x` [layer, example, feature], `y`, `x_held` and `y_held`.
Each probe stops at the loosest `tol` of a ladder at which the gradient of three probes,
relative to that of no weights, meets the goal; float32 or float64, whichever is faster.
With several strengths, each is fitted to four fifths of the examples, that with the
least loss on the rest is fitted again to all.

Environment of its own (Python 3.11): scikit-learn==1.7.2.
"""
# pyright: reportMissingImports=false

import argparse
import time
from typing import Any

import numpy as np
import sklearn
from _alive import add_option, answer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

EXAMPLE = """example:
  python sklearn_probes.py --data data.npz --l2 0.01 --goal 1e-4
"""
LADDER = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)


def main() -> None:
    """Fit, print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--l2", type=float, nargs="+", required=True)
    parser.add_argument("--goal", type=float, default=1e-4)
    add_option(parser)
    arguments = parser.parse_args()
    with np.load(arguments.data) as file:
        data = dict(file)
    middle = arguments.l2[len(arguments.l2) // 2]
    dtype, tolerance = choose(data, middle, arguments.goal)
    x, held = (data[key].astype(dtype) for key in ("x", "x_held"))
    aside = np.random.default_rng(0).permutation(len(data["y"])) < len(data["y"]) // 5

    def once() -> dict[str, Any]:
        seconds, found = 0.0, []
        for one in x:
            start = time.perf_counter()
            found.append(fitted(one, data["y"], aside, arguments.l2, tolerance))
            seconds += time.perf_counter() - start
        gradients = [
            gradient(model, one, data["y"], strength)
            for (model, strength), one in zip(found, x, strict=True)
        ]
        return {
            "version": sklearn.__version__,
            "dtype": dtype,
            "tolerance": tolerance,
            "seconds": seconds,
            "steps": float(np.mean([model.n_iter_[0] for model, _ in found])),
            "gradient": max(gradients),
            "strengths": [strength for _, strength in found],
            "accuracy": [
                model.score(one, data["y_held"])
                for (model, _), one in zip(found, held, strict=True)
            ],
        }

    answer(once, alive=arguments.alive)


def choose(data: dict[str, np.ndarray], l2: float, goal: float) -> tuple[str, float]:
    """Find the faster precision, and the loosest tolerance that meets the goal."""
    some = data["x"][np.linspace(0, len(data["x"]) - 1, 3).astype(int)]
    times, tolerance = {}, LADDER[0]
    for tolerance in LADDER:
        for dtype in ("float32", "float64"):
            inputs = some.astype(dtype)
            start = time.perf_counter()
            models = [solve(x, data["y"], l2, tolerance) for x in inputs]
            times[dtype] = time.perf_counter() - start
        found = zip(models, inputs, strict=True)
        if max(gradient(model, x, data["y"], l2) for model, x in found) <= goal:
            break
    return min(times, key=lambda dtype: times[dtype]), tolerance


def fitted(
    x: np.ndarray,
    y: np.ndarray,
    aside: np.ndarray,
    strengths: list[float],
    tolerance: float,
) -> tuple[LogisticRegression, float]:
    """Choose the strength on examples that are set aside, and fit to all."""
    if len(strengths) == 1:
        return solve(x, y, strengths[0], tolerance), strengths[0]
    losses = []
    for l2 in strengths:
        model = solve(x[~aside], y[~aside], l2, tolerance)
        losses.append(log_loss(y[aside], model.predict_proba(x[aside])))
    best = strengths[int(np.argmin(losses))]
    return solve(x, y, best, tolerance), best


def solve(
    x: np.ndarray, y: np.ndarray, l2: float, tolerance: float
) -> LogisticRegression:
    """Fit one probe."""
    model = LogisticRegression(C=1 / (l2 * len(y)), tol=tolerance, max_iter=5000)
    return model.fit(x, y)


def gradient(
    model: LogisticRegression, x: np.ndarray, y: np.ndarray, l2: float
) -> float:
    """Return the norm of the mean loss' gradient relative to that of no weights."""
    x = np.c_[x.astype(np.float64), np.ones(len(x))]
    target = (y[:, None] == model.classes_).astype(np.float64)
    probabilities = model.predict_proba(x[:, :-1].astype(model.coef_.dtype))
    none = np.full_like(target, 1 / target.shape[1])
    if target.shape[1] == 2:
        target, probabilities, none = target[:, 1:], probabilities[:, 1:], none[:, 1:]
    penalty = l2 * np.c_[model.coef_, np.zeros(len(model.coef_))].T
    now = x.T @ (probabilities - target) / len(x) + penalty
    start = x.T @ (none - target) / len(x)
    return float(np.linalg.norm(now) / np.linalg.norm(start))


if __name__ == "__main__":
    main()
