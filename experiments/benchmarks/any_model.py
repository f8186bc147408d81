"""Ablation sweeps of models that are no decoders, next to a hook loop in PyTorch.

All channels of a ResNet-20 for 32 x 32 images, and all heads of a vision transformer of
the size ViT-S/16: one value is set to zero, the logit of one class is measured. Weights
are random and the same on both sides, and results are compared. Printed are seconds,
ratios, and the fraction of the floor: the products of the layers from the ablated one
on, over the machine's rate of multiplying large matrices.

The peer needs an environment of its own: torch==2.13.0, numpy.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _interleave import Worker, compiling, interleave, options, ratios, timed, write

import mijax
from mijax.models._cifar_resnet import CifarResNetSpec, init

EXAMPLE = """example:
  python experiments/benchmarks/any_model.py --peer PEER/bin/python --out any.json
  python experiments/benchmarks/any_model.py --only vit-s --examples 1
"""
CLASS = 3
LAYERS, WIDTH, HEADS, PATCH, SIDE, CLASSES = 12, 384, 6, 16, 224, 1000


class ViT(eqx.Module):
    """A vision transformer of the size ViT-S/16: pre-norm blocks in a scan."""

    patch: Any
    token: Any
    position: Any
    blocks: dict[str, Any]
    head: Any

    def __init__(self, key: Any):
        keys = iter(jax.random.split(key, 16))

        def draw(*shape: int) -> Any:
            return 0.02 * jax.random.normal(next(keys), shape)

        tokens = (SIDE // PATCH) ** 2 + 1
        self.patch = draw(3 * PATCH * PATCH, WIDTH)
        self.token, self.position = draw(1, WIDTH), draw(tokens, WIDTH)
        self.blocks = {
            "qkv": draw(LAYERS, WIDTH, 3 * WIDTH),
            "out": draw(LAYERS, WIDTH, WIDTH),
            "up": draw(LAYERS, WIDTH, 4 * WIDTH),
            "down": draw(LAYERS, 4 * WIDTH, WIDTH),
        }
        self.head = draw(WIDTH, CLASSES)

    def __call__(self, image: Any) -> Any:
        """Return the logits of one image `[channel, row, column]`."""
        n = SIDE // PATCH
        x = image.reshape(3, n, PATCH, n, PATCH).transpose(1, 3, 0, 2, 4)
        x = jnp.concatenate([self.token, x.reshape(n * n, -1) @ self.patch])
        x = jax.lax.scan(block, x + self.position, self.blocks)[0]
        return norm(x[0]) @ self.head


def norm(x: Any) -> Any:
    """Normalize the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def block(x: Any, p: dict[str, Any]) -> tuple[Any, None]:
    """Apply one block."""
    q, k, v = jnp.moveaxis((norm(x) @ p["qkv"]).reshape(len(x), 3, HEADS, -1), 1, 0)
    scores = jnp.einsum("qhd,khd->hqk", q, k) / (WIDTH // HEADS) ** 0.5
    z = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v)
    z = mijax.site("z", z, "position head head_dim")
    x = x + z.reshape(len(x), -1) @ p["out"]
    return x + jax.nn.gelu(norm(x) @ p["up"], approximate=False) @ p["down"], None


def vit(key: Any) -> tuple[Any, tuple[int, ...], dict[str, Any], Any]:
    """Return the model, the shape of an image, its weights, and what is swept."""
    model = ViT(key)
    weights = {"patch": model.patch, "token": model.token, "head": model.head}
    weights |= {"position": model.position} | model.blocks
    tokens = (SIDE // PATCH) ** 2 + 1
    each = 24 * tokens * WIDTH**2 + 4 * tokens**2 * WIDTH
    flops = [(LAYERS - layer) * each for layer in range(LAYERS) for _ in range(HEADS)]
    return model, (3, SIDE, SIDE), weights, ("z", ("layer", "head"), flops)


def resnet(key: Any) -> tuple[Any, tuple[int, ...], dict[str, Any], Any]:
    """Return the model, the shape of an image, its weights, and what is swept."""
    model = init(CifarResNetSpec(), key, jnp.float32)
    convs = [model.conv1]
    convs += [c for s in model.stages for b in s for c in (b.conv1, b.conv2)]
    weights = {f"conv{i}": conv.weight for i, conv in enumerate(convs)}
    weights |= {"head": model.linear.weight, "bias": model.linear.bias}
    sizes = [32] * 7 + [16] * 6 + [8] * 6
    each = [2 * c.weight.size * n * n for c, n in zip(convs, sizes, strict=True)]
    flops = [
        sum(each[i + 1 :]) for i, c in enumerate(convs) for _ in range(c.out_channels)
    ]
    return model, (3, 32, 32), weights, ("relu", [("layer", "channel")], flops)


CASES: dict[str, Callable[[Any], Any]] = {"vit-s": vit, "resnet-20": resnet}


def main() -> None:
    """Runs the cases and prints one JSON line each."""
    parser = options(__doc__, EXAMPLE)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--examples", type=int, default=4, help="images of a sweep")
    arguments = parser.parse_args()
    results = []
    for name in arguments.only:
        results.append({"case": name, **measure(name, arguments)})
        print(json.dumps(results[-1]), flush=True)
    write(arguments.out, results)


def measure(name: str, arguments: Any) -> dict[str, Any]:
    """Time a sweep and its peer in turn."""
    fn, shape, weights, (site, over, flops) = CASES[name](jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (arguments.examples, *shape))
    model = mijax.model(fn, images[0])
    metric = lambda logits: logits[CLASS]  # noqa: E731

    def sweep() -> mijax.Sweep:
        edit = mijax.Zero().at(site)
        return mijax.sweep(model, images, edit, over=over, metric=metric)

    sides = {"with_compile": compiling(timed(sweep)), "mijax": timed(sweep)}
    worker = None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.peer:
            arrays: dict[str, Any] = {k: np.asarray(v) for k, v in weights.items()}
            np.savez(folder / "in.npz", images=np.asarray(images), **arrays)
            options = ("--case", name, "--folder", folder)
            worker = Worker(arguments.peer, "torch_hooks.py", *options)
            sides["peer"] = worker.seconds
        found = interleave(sides, rounds=arguments.rounds)
        total = arguments.examples * sum(flops)
        found["fraction_of_floor"] = [
            round(total / min(row["gflops"]) / 1e9 / row["mijax"], 3)
            for row in found["rounds"]
        ]
        found["cells"] = len(flops)
        if worker is None:
            return found
        worker.close()
        theirs = np.load(folder / "out.npy")
    ours = np.asarray(sweep().values).reshape(arguments.examples, -1)
    return found | {
        "ratio": ratios(found, "peer", "mijax"),
        "ratio_with_compile": ratios(found, "peer", "with_compile"),
        "largest_difference": float(f"{np.abs(ours - theirs).max():.1e}"),
    }


if __name__ == "__main__":
    main()
