"""Toy models of superposition by a PyTorch loop over updates, timed.

Weights of all instances are one tensor `[instance, feature, embed]`, drawn as
`xavier_normal_` draws it; every update draws a batch for each instance, and AdamW has
PyTorch's defaults.

Environment of its own (Python 3.11): torch==2.13.0.
"""
# pyright: reportMissingImports=false

import argparse
import time
from typing import Any

import torch
from _alive import add_option, answer

EXAMPLE = """example:
  python torch_toy_models.py --instances 20 --features 200 --embed 20 --updates 100
"""
WARM = 5


def main() -> None:
    """Train, print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--instances", type=int, required=True)
    parser.add_argument("--features", type=int, required=True)
    parser.add_argument("--embed", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    arguments = parser.parse_args()
    answer(lambda: trained(arguments), alive=arguments.alive)


def trained(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train from the start; returns seconds of an update and the loss."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    instances, features = arguments.instances, arguments.features
    weights = torch.empty(instances, features, arguments.embed, requires_grad=True)
    torch.nn.init.xavier_normal_(weights)
    bias = torch.zeros(instances, features, requires_grad=True)
    density = 20.0 ** -torch.linspace(0, 1, instances)[:, None]
    importance = torch.ones(1, features)
    optimiser = torch.optim.AdamW([weights, bias], lr=1e-3)

    def loss_of() -> torch.Tensor:
        shape = (arguments.batch, instances, features)
        there = torch.rand(shape) <= density
        x = torch.where(there, torch.rand(shape), torch.zeros(()))
        hidden = torch.einsum("bif,ife->bie", x, weights)
        restored = torch.einsum("bie,ife->bif", hidden, weights)
        off = x.abs() - torch.relu(restored + bias)
        return (importance * off**2).mean(dim=(0, 2)).sum()

    start = time.perf_counter()
    for update in range(WARM + arguments.updates):
        if update == WARM:
            start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss_of().backward()
        optimiser.step()
    seconds = (time.perf_counter() - start) / arguments.updates
    with torch.no_grad():
        loss = float(loss_of())
    return {"version": f"torch {torch.__version__}", "seconds": seconds, "loss": loss}


if __name__ == "__main__":
    main()
