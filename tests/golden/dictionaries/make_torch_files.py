"""Writes `views.pt`, `expanded.pt` and `legacy.pt`: what torch makes of tensors.

Needs torch 2.13.0 (CPU).
"""

import numpy as np
import torch
from common import HERE


def main():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "base": base,
        "transposed": base.T,
        "part": base[1:3, 2:5],
        "steps": base[::2, 1],
        "half": (base / 3).to(torch.bfloat16),
        "short": (base / 3).half(),
        "double": base.double() / 3,
        "whole": torch.arange(5),
        "flags": base > 3,
        "scalar": torch.tensor(7, dtype=torch.int32),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0] * 2),
    }
    torch.save(tensors, HERE / "views.pt")
    arrays = {name: t.detach().double().numpy() for name, t in tensors.items()}
    np.savez(HERE / "views.pt.npz", **arrays)
    torch.save({"a": torch.ones(1).expand(1000, 1000)}, HERE / "expanded.pt")
    old = {"_use_new_zipfile_serialization": False}
    torch.save({"a": torch.ones(3)}, HERE / "legacy.pt", **old)


if __name__ == "__main__":
    main()
