"""Ablation of every channel or head by a hook loop in PyTorch: a peer of `any_model`.

Every cell is one forward of the whole batch, with one hook that sets a channel or a
head to zero, which is how one writes it by hand.

Environment of its own (Python 3.11): torch==2.13.0, numpy.
"""
# pyright: reportMissingImports=false

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer
from torch import nn
from torch.nn import functional as F

CLASS = 3


class Site(nn.Module):
    """The identity, for a hook."""

    def forward(self, x: Any) -> Any:
        """Return the value."""
        return x


class ResNet(nn.Module):
    """ResNet-20 with normalization in inference form, from convolutions by number."""

    def __init__(self, weights: dict[str, Any]):
        super().__init__()
        self.weights = weights
        self.sites = nn.ModuleList(Site() for _ in range(19))

    def conv(self, i: int, x: Any, stride: int = 1) -> Any:
        """Apply convolution `i`, and normalize by running statistics 0 and 1."""
        x = F.conv2d(x, self.weights[f"conv{i}"], stride=stride, padding=1)
        return x / (1 + 1e-5) ** 0.5

    def forward(self, x: Any) -> Any:
        """Return logits."""
        x = self.sites[0](F.relu(self.conv(0, x)))
        for i in range(9):
            stride = 2 if i in (3, 6) else 1
            hidden = self.sites[2 * i + 1](F.relu(self.conv(2 * i + 1, x, stride)))
            out = self.conv(2 * i + 2, hidden)
            new = (out.shape[1] - x.shape[1]) // 2
            shortcut = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, new, new))
            x = self.sites[2 * i + 2](F.relu(out + shortcut))
        return F.linear(x.mean((2, 3)), self.weights["head"], self.weights["bias"])

    def cells(self) -> list[tuple[Any, Any]]:
        """List the hook of every cell."""
        sizes = [self.weights[f"conv{i}"].shape[0] for i in range(19)]
        return [
            (self.sites[i], (slice(None), c))
            for i in range(19)
            for c in range(sizes[i])
        ]


class ViT(nn.Module):
    """A vision transformer of the size ViT-S/16."""

    def __init__(self, weights: dict[str, Any]):
        super().__init__()
        self.weights = weights
        self.sites = nn.ModuleList(Site() for _ in range(12))

    def forward(self, x: Any) -> Any:
        """Return logits."""
        w, (batch, n) = self.weights, (len(x), x.shape[-1] // 16)
        x = x.reshape(batch, 3, n, 16, n, 16).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(batch, n * n, -1) @ w["patch"]
        x = torch.cat([w["token"].expand(batch, 1, -1), x], 1) + w["position"]
        for i, mark in enumerate(self.sites):
            qkv = (norm(x) @ w["qkv"][i]).reshape(batch, -1, 3, 6, 64)
            q, k, v = (qkv[:, :, j].transpose(1, 2) for j in range(3))
            z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + mark(z).reshape(*x.shape) @ w["out"][i]
            x = x + F.gelu(norm(x) @ w["up"][i]) @ w["down"][i]
        return norm(x[:, 0]) @ w["head"]

    def cells(self) -> list[tuple[Any, Any]]:
        """List the hook of every cell."""
        return [
            (mark, (slice(None), slice(None), head))
            for mark in self.sites
            for head in range(6)
        ]


def norm(x: Any) -> Any:
    """Normalize the last axis."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def zero(at: Any) -> Any:
    """Return a hook that sets a part of the output to zero."""

    def hook(module: Any, given: Any, output: Any) -> Any:
        output = output.clone()
        output[at] = 0
        return output

    return hook


def main() -> None:
    """Read the weights, run every cell, write the values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=("vit-s", "resnet-20"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    add_option(parser)
    arguments = parser.parse_args()
    with np.load(arguments.folder / "in.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    images = arrays.pop("images")
    model = (ViT if arguments.case == "vit-s" else ResNet)(arrays).eval()

    @torch.inference_mode()
    def run() -> dict[str, Any]:
        start = time.perf_counter()
        found = []
        for mark, at in model.cells():
            handle = mark.register_forward_hook(zero(at))
            found.append(model(images)[:, CLASS])
            handle.remove()
        values = torch.stack(found, 1).numpy()
        seconds = time.perf_counter() - start
        np.save(arguments.folder / "out.npy", values)
        return {"seconds": seconds, "peer": f"torch {torch.__version__}"}

    answer(run, alive=arguments.alive)


if __name__ == "__main__":
    main()
