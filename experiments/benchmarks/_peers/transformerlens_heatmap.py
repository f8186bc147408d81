"""TransformerLens from the start of Python to a picture of all layers and positions.

SmolLM2 comes from a safetensors file under TransformerLens' own names, beside its sizes
and prompts as JSON, so nothing is converted here. The sweep is the library's own
`get_act_patch_resid_pre`; cells are denoising. Nothing is folded or centred.

Environment of its own (Python 3.11): torch==2.13.0, transformer-lens==2.16.1,
"datasets<4", "pyarrow<19", safetensors, numpy, matplotlib.
"""
# pyright: reportMissingImports=false

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

EXAMPLE = """example:
  python transformerlens_heatmap.py smollm2.safetensors --picture heatmap \
      --began $(date +%s)
"""


def main() -> None:
    """Load, sweep, draw; print one line of JSON."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="safetensors, with JSON next to it")
    parser.add_argument("--picture", required=True, help="without a suffix")
    parser.add_argument("--grid", type=Path, help="npy for the values of the sweep")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--began", type=float, required=True, help="in Unix time")
    arguments = parser.parse_args()
    imported = time.time()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    given = json.loads(arguments.weights.with_suffix(".json").read_text())
    model = load(arguments.weights, given["sizes"])
    loaded = time.time()
    clean, corrupt = (torch.tensor([given[name]]) for name in ("clean", "corrupt"))

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last[:, given["answer"]] - last[:, given["wrong"]]).mean()

    clean_logits, cache = model.run_with_cache(clean)
    base = metric(model(corrupt))
    grid = patching.get_act_patch_resid_pre(model, corrupt, cache, metric)
    swept = time.time()
    fraction = (grid - base) / (metric(clean_logits) - base)
    draw(fraction.numpy(), given["labels"], arguments.picture)
    marks = {"import": imported - arguments.began, "load": loaded - imported}
    marks |= {"sweep": swept - loaded, "picture": time.time() - swept}
    marks["whole"] = time.time() - arguments.began
    if arguments.grid:
        np.save(arguments.grid, grid.numpy())
    print(json.dumps({name: round(value, 3) for name, value in marks.items()}))


def load(weights: Path, sizes: dict[str, int]) -> HookedTransformer:
    """Build SmolLM2 and load its weights."""
    config = HookedTransformerConfig(
        **sizes,
        n_ctx=2048,
        act_fn="silu",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=sizes["d_head"],
        rotary_base=100000,
        rotary_adjacent_pairs=False,
        eps=1e-5,
        device="cpu",
        init_weights=False,
    )
    model = HookedTransformer(config)
    # Biases, which SmolLM2 lacks, are zero.
    for name, value in model.named_parameters():
        if is_bias(name):
            value.zero_()
    state = load_file(weights)
    state["unembed.W_U"] = state["embed.W_E"].T
    missing, unexpected = model.load_state_dict(state, strict=False)
    buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
    lacking = [n for n in missing if not is_bias(n) and not n.endswith(buffers)]
    if lacking or unexpected:
        raise ValueError(f"weights do not fit: {lacking} missing, {unexpected} unknown")
    return model


def is_bias(name: str) -> bool:
    """Return True if a parameter is a bias, such as `attn._b_K`."""
    return name.rpartition(".")[2].lstrip("_").startswith("b_")


def draw(values: np.ndarray, labels: list[str], picture: str) -> None:
    """Save a heatmap as PNG and SVG, as mijax does."""
    import matplotlib as mpl  # noqa: PLC0415 - timed with the picture

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(layout="constrained")
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    figure.colorbar(image)
    for suffix in ("png", "svg"):
        figure.savefig(f"{picture}.{suffix}")


if __name__ == "__main__":
    main()
