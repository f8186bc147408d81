"""The activation-patching sweep of TransformerLens, timed: the peer of `mijax.sweep`.

GPT-2 weights come from a safetensors file in Hugging Face naming and the prompts from
an npz, so that both libraries run the same model on the same tokens. Nothing is folded
or centred. Cells are denoising: clean activations into the corrupt run; the metric is
the mean over prompts of logit(answer) - logit(wrong) at the last position.

Environment of its own (Python 3.11): torch==2.13.0, transformer-lens==2.16.1,
"datasets<4", "pyarrow<19", safetensors, numpy.
"""
# pyright: reportMissingImports=false

import argparse
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer
from safetensors import safe_open
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

EXAMPLE = """example:
  python transformerlens_sweep.py --weights model.safetensors --tokens prompts.npz \\
      --cells resid_pre --out resid_pre.npz
  python transformerlens_sweep.py --weights model.safetensors --batch 8 --seq 15 \\
      --differ-from 9 --cells heads --layers 1
"""


def main() -> None:
    """Time the forward pass and the sweep, print JSON, write the grid."""
    arguments = parse()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    model = load(arguments.weights, heads=arguments.heads)
    clean, corrupt = prompts(arguments, vocab=model.cfg.d_vocab)
    layers = range(arguments.layers or model.cfg.n_layers)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last[:, arguments.answer] - last[:, arguments.wrong]).mean()

    base = metric(model(corrupt)).item()
    forward = seconds(lambda: model(corrupt), repeats=3)
    _, cache = model.run_with_cache(clean)

    def once() -> dict[str, Any]:
        start = time.perf_counter()
        grid = sweep(
            model, corrupt, cache, metric, cells=arguments.cells, layers=layers
        )
        elapsed = time.perf_counter() - start
        result = {
            "peer": "transformer-lens 2.16.1",
            "torch": torch.__version__,
            "threads": arguments.threads,
            "cells": arguments.cells,
            "grid": list(grid.shape),
            "tokens": list(clean.shape),
            "seconds": round(elapsed, 3),
            "forward_seconds": round(forward, 4),
            "seconds_per_cell": round(elapsed / grid.numel(), 4),
            "base": base,
            "clean": metric(model(clean)).item(),
        }
        if arguments.out is not None:
            ends = {"base": base, "clean": result["clean"]}
            np.savez(arguments.out, grid=grid.numpy(), **ends)
        return result

    answer(once, alive=arguments.alive)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", required=True, help="model.safetensors in HF GPT-2 naming")
    add("--heads", type=int, default=None, help="number of heads (default embed / 64)")
    add("--tokens", help="npz with `clean` and `corrupt`, int [batch, seq]")
    add("--batch", type=int, default=8, help="prompts, without --tokens")
    add("--seq", type=int, default=15, help="length of a prompt, without --tokens")
    add("--differ-from", type=int, default=9, help="the one position that differs")
    add("--cells", choices=("resid_pre", "heads"), default="resid_pre")
    add("--layers", type=int, default=None, help="only the first LAYERS layers")
    add("--answer", type=int, default=100, help="token id")
    add("--wrong", type=int, default=200, help="token id")
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="npz for `grid` [layer, position or head]")
    add_option(parser)
    return parser.parse_args()


def load(path: str, *, heads: int | None) -> HookedTransformer:
    """Read a GPT-2 checkpoint, with or without the prefix `transformer.`."""
    with safe_open(path, framework="pt") as file:
        names = {name.removeprefix("transformer."): name for name in file.keys()}  # noqa: SIM118
        old = {short: file.get_tensor(name).float() for short, name in names.items()}
    vocab, embed = old["wte.weight"].shape
    heads = embed // 64 if heads is None else heads
    pattern = re.compile(r"h\.(\d+)\.ln_1\.weight")
    config = HookedTransformerConfig(
        n_layers=sum(bool(pattern.fullmatch(name)) for name in old),
        d_model=embed,
        n_ctx=old["wpe.weight"].shape[0],
        n_heads=heads,
        d_head=embed // heads,
        d_mlp=old["h.0.mlp.c_fc.bias"].shape[0],
        d_vocab=vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        init_weights=False,
    )
    model = HookedTransformer(config)
    new = {
        "embed.W_E": old["wte.weight"],
        "pos_embed.W_pos": old["wpe.weight"],
        "unembed.W_U": old.get("lm_head.weight", old["wte.weight"]).T,
        "unembed.b_U": torch.zeros(vocab),
        "ln_final.w": old["ln_f.weight"],
        "ln_final.b": old["ln_f.bias"],
    }
    for layer in range(config.n_layers):
        new |= block(old, layer, heads=heads)
    masks = {name for name in model.state_dict() if name.endswith(("mask", "IGNORE"))}
    missing, unexpected = model.load_state_dict(new, strict=False)
    if set(missing) - masks or unexpected:
        raise ValueError(f"weights do not fit: {missing} missing, {unexpected} unknown")
    return model


def block(old: dict[str, torch.Tensor], layer: int, *, heads: int) -> dict[str, Any]:
    """One block of a GPT-2 checkpoint under the names of TransformerLens."""
    here, start = f"h.{layer}.", f"blocks.{layer}."
    new = {}
    for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
        new[f"{start}{ours}.w"] = old[f"{here}{theirs}.weight"]
        new[f"{start}{ours}.b"] = old[f"{here}{theirs}.bias"]
    weight = old[here + "attn.c_attn.weight"].chunk(3, 1)
    bias = old[here + "attn.c_attn.bias"].chunk(3)
    for letter, w, b in zip("QKV", weight, bias, strict=True):
        new[f"{start}attn.W_{letter}"] = w.unflatten(1, (heads, -1)).transpose(0, 1)
        new[f"{start}attn.b_{letter}"] = b.unflatten(0, (heads, -1))
    project = old[here + "attn.c_proj.weight"]
    new[start + "attn.W_O"] = project.unflatten(0, (heads, -1))
    new[start + "attn.b_O"] = old[here + "attn.c_proj.bias"]
    for ours, theirs in (("in", "c_fc"), ("out", "c_proj")):
        new[f"{start}mlp.W_{ours}"] = old[f"{here}mlp.{theirs}.weight"]
        new[f"{start}mlp.b_{ours}"] = old[f"{here}mlp.{theirs}.bias"]
    return new


def prompts(
    arguments: argparse.Namespace, *, vocab: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean and the corrupt prompts: the given ones, or random ones."""
    if arguments.tokens is not None:
        with np.load(arguments.tokens) as file:
            clean, corrupt = file["clean"], file["corrupt"]
        return torch.as_tensor(clean).long(), torch.as_tensor(corrupt).long()
    generator = torch.Generator().manual_seed(0)
    size = (arguments.batch, arguments.seq)
    clean = torch.randint(0, vocab, size, generator=generator)
    corrupt = clean.clone()
    other = torch.randint(0, vocab, (arguments.batch,), generator=generator)
    corrupt[:, arguments.differ_from] = other
    return clean, corrupt


def sweep(
    model: HookedTransformer,
    corrupt: torch.Tensor,
    cache: Any,
    metric: Any,
    *,
    cells: str,
    layers: range,
) -> torch.Tensor:
    """The library's own sweep; a subset of layers goes through its generic function."""
    whole = len(layers) == model.cfg.n_layers
    if cells == "resid_pre" and whole:
        return patching.get_act_patch_resid_pre(model, corrupt, cache, metric)
    if cells == "heads" and whole:
        return patching.get_act_patch_attn_head_out_all_pos(
            model, corrupt, cache, metric
        )
    setter, name, axis, count = (
        (patching.layer_pos_patch_setter, "resid_pre", "pos", corrupt.shape[1])
        if cells == "resid_pre"
        else (patching.layer_head_vector_patch_setter, "z", "head", model.cfg.n_heads)
    )
    import pandas  # noqa: PLC0415  (comes with TransformerLens; only subsets need it)

    rows = [(layer, index) for layer in layers for index in range(count)]
    frame = pandas.DataFrame(rows, columns=["layer", axis])
    flat = patching.generic_activation_patch(
        model, corrupt, cache, metric, setter, name, index_df=frame
    )
    return flat.reshape(len(layers), count)


def seconds(function: Any, *, repeats: int) -> float:
    """The fastest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
