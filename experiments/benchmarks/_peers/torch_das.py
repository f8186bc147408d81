"""Rotations of distributed alignment search by PyTorch, one after another, timed.

An npz holds a perceptron (`weight0`, `bias0`, ...), a pool of activations of bases and
sources at every layer (`acts` [role, example, layer, width]), `swapped` and `label`,
which examples each update takes (`order` [step, batch]), and the first rotation and the
layer of each lane. Each rotation is a parameter under PyTorch's orthogonal
parametrisation, swapped in and out by two products as the authors' code does.

Environment of its own (Python 3.11): torch==2.13.0.
"""
# pyright: reportMissingImports=false

import argparse
import time
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer

EXAMPLE = """example:
  python torch_das.py --data data.npz --size 8 --rate 0.01
"""


def main() -> None:
    """Fit every rotation, print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    add_option(parser)
    arguments = parser.parse_args()
    with np.load(arguments.data) as file:
        data = {name: torch.as_tensor(file[name]) for name in file.files}
    layers = [int(layer) for layer in data["layer"]]
    # One step outside the clock: what PyTorch sets up once.
    fitted(data, layers[0], data["rotation"][0], data["order"][:1], arguments)

    def once() -> dict[str, Any]:
        start = time.perf_counter()
        found = [
            fitted(data, layer, rotation, data["order"], arguments)
            for layer, rotation in zip(layers, data["rotation"], strict=True)
        ]
        seconds = time.perf_counter() - start
        return {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "accuracy": [
                accuracy(data, layer, rotation, arguments.size)
                for layer, rotation in zip(layers, found, strict=True)
            ],
        }

    answer(once, alive=arguments.alive)


def fitted(
    data: dict[str, torch.Tensor],
    layer: int,
    rotation: torch.Tensor,
    order: torch.Tensor,
    arguments: argparse.Namespace,
) -> torch.Tensor:
    """Fit one rotation."""
    width = rotation.shape[0]
    turn = torch.nn.Linear(width, width, bias=False)
    turn = torch.nn.utils.parametrizations.orthogonal(turn)
    with torch.no_grad():
        turn.weight = rotation
    optimiser = torch.optim.Adam(turn.parameters(), lr=arguments.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(order))
    for rows in order:
        optimiser.zero_grad()
        logits = swapped(data, layer, rows, turn.weight, arguments.size)
        loss = torch.nn.functional.cross_entropy(logits, data["label"][rows])
        loss.backward()
        optimiser.step()
        schedule.step()
    return turn.weight.detach()


def swapped(
    data: dict[str, torch.Tensor],
    layer: int,
    rows: torch.Tensor,
    basis: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """Return logits after the swap."""
    base, *sources = (acts[rows, layer] @ basis.T for acts in data["acts"])
    parts = []
    for i, source in enumerate(sources):
        part = slice(i * size, (i + 1) * size)
        on = data["swapped"][rows, i, None]
        parts.append(torch.where(on, source[:, part], base[:, part]))
    parts.append(base[:, len(sources) * size :])
    x = torch.cat(parts, 1) @ basis
    count = sum(name.startswith("weight") for name in data)
    for i in range(layer + 1, count):
        x = torch.nn.functional.linear(x, data[f"weight{i}"], data[f"bias{i}"])
        if i < count - 1:
            x = torch.relu(x)
    return x


def accuracy(
    data: dict[str, torch.Tensor], layer: int, basis: torch.Tensor, size: int
) -> float:
    """Return interchange-intervention accuracy on the whole pool."""
    with torch.no_grad():
        rows = torch.arange(len(data["label"]))
        said = swapped(data, layer, rows, basis, size).argmax(1)
    return float((said == data["label"]).float().mean())


if __name__ == "__main__":
    main()
