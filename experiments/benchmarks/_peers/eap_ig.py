"""Edge attribution by the reference implementation of EAP-IG, timed.

GPT-2 weights come from a safetensors file in Hugging Face naming and the prompts from
an npz with `clean`, `corrupt` [batch, seq] and `answer`, `wrong` [batch], so that both
libraries explain the same metric, logit(answer) - logit(wrong) at the last position,
of the same model. Nothing is folded or centred. The loss is minus the sum over a batch,
which the reference then divides by the number of prompts: a score is the mean over
prompts and positive where corrupting the edge lowers the metric.

Environment of its own (Python 3.11): torch==2.13.0, transformer-lens==2.16.1,
"datasets<4", "pyarrow<19", einops, safetensors, numpy; and the working tree of
github.com/hannamw/EAP-IG at 795f5607b25638935aec89aee3c1cb4bd9ed72f1. Its plots are
left out, its tokenizer is given token ids, and "cuda" means the CPU.
"""
# pyright: reportMissingImports=false

import argparse
import importlib
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer
from transformerlens_sweep import load

METHODS = {
    "eap": "EAP",
    "eap_ig_inputs": "EAP-IG-inputs",
    "eap_ig_activations": "EAP-IG-activations",
    "clean_corrupted": "clean-corrupted",
    "exact": "exact",
}
EXAMPLE = """example:
  python eap_ig.py --eap-ig EAP-IG --weights model.safetensors --tokens prompts.npz \\
      --methods eap eap_ig_inputs --out scores.npz
"""


def main() -> None:
    """Time each method, print one JSON line, write scores [sender, receiver]."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    graphs, attribute = reference(arguments.eap_ig)
    model = load(arguments.weights, heads=arguments.heads)
    model.cfg.use_split_qkv_input = True
    model.cfg.use_attn_result = True
    model.cfg.use_hook_mlp_in = True
    data = batches(arguments.tokens, size=arguments.batch)
    answer(
        lambda: run(arguments, graphs, attribute, model, data), alive=arguments.alive
    )


def run(
    arguments: argparse.Namespace, graphs: Any, attribute: Any, model: Any, data: Any
) -> dict[str, Any]:
    """Time each method; returns the sum of their seconds and what was run."""
    found: dict[str, Any] = {}
    times = {}
    for name in arguments.methods:
        took = []
        for _ in range(arguments.repeats):
            graph = graphs.Graph.from_model(model)
            if name == "exact":
                took.append(exact(model, graph, data, arguments.exact_edges))
                continue
            start = time.perf_counter()
            attribute.attribute(
                model,
                graph,
                data,
                loss,
                METHODS[name],
                ig_steps=arguments.steps,
                quiet=True,
            )
            took.append(time.perf_counter() - start)
            model.zero_grad()
            found[name] = graph.scores.numpy()
        times[name] = min(took)
    graph = graphs.Graph.from_model(model)
    result = {
        "peer": "EAP-IG 795f560, transformer-lens 2.16.1",
        "torch": torch.__version__,
        "threads": arguments.threads,
        "prompts": sum(len(clean) for clean, _, _ in data),
        "batch": len(data[0][0]),
        "tokens": len(data[0][0][0]),
        "steps": arguments.steps,
        "edges": len(graph.edges),
        "exact_edges": arguments.exact_edges,
        "seconds": round(sum(times.values()), 3),
        "seconds_of": {name: round(value, 3) for name, value in times.items()},
    }
    if arguments.out is not None:
        found |= {f"{name}_seconds": np.array(value) for name, value in times.items()}
        found["senders"] = np.array([name for name in graph.nodes if name != "logits"])
        found["receivers"] = np.array(graph.get_dst_nodes())
        np.savez(arguments.out, **found)
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--eap-ig", type=Path, required=True, help="working tree of the reference")
    add("--weights", required=True, help="model.safetensors in HF GPT-2 naming")
    add("--heads", type=int, default=None, help="number of heads (default embed / 64)")
    add("--tokens", required=True, help="npz with clean, corrupt, answer, wrong")
    add("--methods", nargs="+", choices=METHODS, default=["eap", "eap_ig_inputs"])
    add("--exact-edges", type=int, default=20, help="edges that `exact` patches")
    add("--steps", type=int, default=5, help="of integrated gradients")
    add("--batch", type=int, default=None, help="prompts to a batch (default all)")
    add("--repeats", type=int, default=1, help="the fastest counts")
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="npz for scores, seconds and the names of nodes")
    add_option(parser)
    return parser.parse_args()


def exact(model: Any, graph: Any, data: Any, count: int) -> float:
    """Seconds for patching some edges, spread over the graph, as the reference does."""
    evaluate: Any = importlib.import_module("eap.evaluate")
    evaluate.tokenize_plus = rows_to_tokens
    graph.in_graph |= graph.real_edge_mask
    edges = list(graph.edges.values())
    start = time.perf_counter()
    for edge in edges[:: max(1, len(edges) // count)][:count]:
        edge.in_graph = False
        evaluate.evaluate_graph(model, graph, data, loss, quiet=True, skip_clean=True)
        edge.in_graph = True
    return time.perf_counter() - start


def reference(root: Path) -> tuple[Any, Any]:
    """The modules `eap.graph` and `eap.attribute`, taking rows of ids for texts."""
    plots: Any = types.ModuleType("eap.visualization")
    plots.get_color = plots.generate_random_color = None
    sys.modules["eap.visualization"] = plots
    sys.path.insert(0, str(root / "src"))
    attribute: Any = importlib.import_module("eap.attribute")
    attribute.tokenize_plus = rows_to_tokens
    zeros = torch.zeros

    def on_cpu(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return zeros(*size, device="cpu" if device == "cuda" else device, **options)

    torch.zeros = on_cpu
    return importlib.import_module("eap.graph"), attribute


def rows_to_tokens(
    model: Any, rows: list[torch.Tensor], max_length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """What the reference's tokenizer returns, for prompts of equal length."""
    tokens = torch.stack(rows)
    lengths = torch.full((len(tokens),), tokens.shape[1])
    return tokens, torch.ones_like(tokens), lengths, tokens.shape[1]


def batches(path: str, *, size: int | None) -> list[tuple[Any, Any, torch.Tensor]]:
    """The prompts as the reference's collate function gives them."""
    with np.load(path) as file:
        clean, corrupt, answer, wrong = (
            torch.as_tensor(file[name]).long()
            for name in ("clean", "corrupt", "answer", "wrong")
        )
    labels = torch.stack([answer.expand(len(clean)), wrong.expand(len(clean))], 1)
    size = len(clean) if size is None else size
    return [
        (list(clean[i : i + size]), list(corrupt[i : i + size]), labels[i : i + size])
        for i in range(0, len(clean), size)
    ]


def loss(
    logits: torch.Tensor, _clean: Any, lengths: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Minus the sum over prompts of the logit difference at the last position."""
    last = logits[torch.arange(len(logits)), lengths - 1]
    values = last.gather(-1, labels)
    return (values[:, 1] - values[:, 0]).sum()


if __name__ == "__main__":
    main()
