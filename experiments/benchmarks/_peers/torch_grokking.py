"""Addition modulo p learned by a PyTorch loop over epochs, timed.

As the authors' code does it: the transformer computes all three positions of every
pair, the loss is of logits in float64, and AdamW has their numbers. Weights start as
given in a file, so that losses can be compared.

Environment of its own (Python 3.11): torch==2.13.0, numpy.
"""
# pyright: reportMissingImports=false

import argparse
import time
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer

EXAMPLE = """example:
  python torch_grokking.py start.npz --updates 20
"""
WARM = 3


def main() -> None:
    """Train, print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("start", help="npz with the weights and the pairs")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answer(lambda: trained(arguments), alive=arguments.alive)


def trained(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train from the start; returns seconds of an update and all losses."""
    given = dict(np.load(arguments.start))
    pairs = torch.tensor(given.pop("pairs"), dtype=torch.long)
    w = {name: torch.tensor(value, requires_grad=True) for name, value in given.items()}
    p = w["embedding"].shape[0] - 1
    tokens = torch.cat([pairs, torch.full((len(pairs), 1), p)], dim=1)
    answers = pairs.sum(1) % p
    optimiser = torch.optim.AdamW(
        w.values(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1.0
    )
    rise = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: min((i + 1) / 10, 1))
    mask = torch.tril(torch.ones(3, 3, dtype=torch.bool))

    def loss_of() -> torch.Tensor:
        x = w["embedding"][tokens] + w["positions"]
        q, k, v = (
            torch.einsum("bse,ehd->bhsd", x, w[name]) for name in ("q", "k", "v")
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        pattern = scores.masked_fill(~mask, -1e10).softmax(-1)
        x = x + torch.einsum("bhsd,hde->bse", pattern @ v, w["o"])
        post = torch.relu(x @ w["in"] + w["b_in"])
        x = x + post @ w["out"] + w["b_out"]
        logits = (x @ w["unembedding"].T)[:, -1]
        chances = logits.to(torch.float64).log_softmax(-1)
        return -chances.gather(1, answers[:, None]).mean()

    start, losses = time.perf_counter(), []
    for update in range(WARM + arguments.updates):
        if update == WARM:
            start = time.perf_counter()
        loss = loss_of()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rise.step()
        losses.append(float(loss.detach()))
    seconds = (time.perf_counter() - start) / arguments.updates
    version = f"torch {torch.__version__}"
    return {"version": version, "seconds": seconds, "losses": losses}


if __name__ == "__main__":
    main()
