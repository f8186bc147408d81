"""Representation finetuning in torch, and detection scores by scikit-learn.

Environment: Python 3.11, CPU, torch, numpy, scikit-learn. No network. Run from
anywhere:

    python tests/golden/make_reft.py

Writes `steering/reft.npz` and `steering/detection.npz`, which README.md of that folder
describes. The formulas are those of pyreft 0.1.0 and of AxBench, written out.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve

HERE = Path(__file__).parent / "steering"
WIDTH, RANK, STEPS = 12, 3, 6


def main():
    torch.manual_seed(0)
    np.savez_compressed(HERE / "reft.npz", **(loreft() | direft() | r1() | sphere()))
    np.savez_compressed(HERE / "detection.npz", **detection())


def loreft():
    """h + R^T (W h + b - R h), with R from torch's orthogonal parametrization."""
    layer = torch.nn.Linear(WIDTH, RANK, bias=False)
    rotate = torch.nn.utils.parametrizations.orthogonal(layer).weight.detach()
    source = torch.nn.Linear(WIDTH, RANK)
    h = torch.randn(5, WIDTH)
    with torch.no_grad():
        out = h + (source(h) - h @ rotate.T) @ rotate
    names = {"h": h, "rotate": rotate, "weight": source.weight, "bias": source.bias}
    return numbers("lo", names | {"out": out})


def direft():
    """h + W2^T (W1 h + b)."""
    down, up = torch.nn.Linear(WIDTH, RANK), torch.nn.Linear(RANK, WIDTH, bias=False)
    h = torch.randn(5, WIDTH)
    with torch.no_grad():
        out = h + up(down(h))
    names = {"h": h, "down": down.weight, "bias": down.bias, "up": up.weight.T}
    return numbers("di", names | {"out": out})


def r1():
    """Latents, mean of the largest ones, and mean of the others, per text."""
    h, v, k = torch.randn(2, 7, WIDTH), torch.randn(WIDTH), 2
    v = v / v.norm()
    lengths = torch.tensor([7, 5])
    latents = torch.relu(h @ v)
    position = torch.arange(7)
    real = (position > 0) & (position < lengths[:, None])
    latents = latents * real
    top = latents.topk(k, dim=-1)
    rest = latents.scatter(-1, top.indices, 0.0).sum() / real.sum()
    names = {"h": h, "v": v, "lengths": lengths, "top": top.values.mean(-1)}
    return numbers("r1", names | {"rest": rest})


def sphere():
    """AdamW on a unit vector: clipped, normalized, without the radial gradient."""
    v = torch.nn.Parameter(torch.randn(WIDTH))
    start = v.detach().clone()
    gradients = 2 * torch.randn(STEPS, WIDTH)
    adam = torch.optim.AdamW([v], lr=0.01, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: 1 - i / STEPS)
    path = []
    for gradient in gradients:
        v.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([v], 1.0)
        with torch.no_grad():
            v /= v.norm()
            v.grad -= (v.grad @ v) * v
        adam.step()
        decay.step()
        path.append(v.detach().clone())
    names = {"start": start, "gradients": gradients, "path": torch.stack(path)}
    return numbers("sphere", names)


def detection():
    """Areas and best thresholds of scores, some of them equal."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (4, 40))
    scores = np.round(
        rng.normal(size=(4, 40)) + labels * [[0.0], [0.5], [1.5], [4.0]], 1
    )
    scores = (scores - scores.min(1, keepdims=True)) / np.ptp(scores, axis=1)[:, None]
    areas, best = [], []
    for y, s in zip(labels, scores, strict=True):
        areas.append(roc_auc_score(y, s))
        false, true, places = roc_curve(y, s)
        best.append(places[(true - false).argmax()])
    return {"labels": labels, "scores": scores, "auroc": areas, "threshold": best}


def numbers(prefix, tensors):
    return {f"{prefix}_{k}": v.detach().numpy() for k, v in tensors.items()}


if __name__ == "__main__":
    main()
