"""Attribution graphs of mijax next to circuit-tracer, on the same weights.

A random Llama (8 layers, width 256, vocabulary 1,000) with random transcoders of 1,024
ReLU features, one prompt of 16 tokens, every active feature a node. Both sides run the
model, encode, and compute every row of the graph; edges are compared. Printed are
seconds with and without compile time and their ratio to the peer's.

The peer needs an environment of its own: see `_peers/circuit_tracer_graph.py`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from _interleave import Worker, compiling, interleave, options, ratios, timed, write

from mijax import dictionaries, graphs, models
from mijax.io import save_safetensors

EXAMPLE = """example:
  python experiments/benchmarks/graphs.py --peer PEER/bin/python --out graphs.json
"""
LAYERS, EMBED, HEADS, MLP, VOCAB, FEATURES, TOKENS = 8, 256, 4, 1024, 1000, 1024, 16
TARGETS = (3, 7)


def main() -> None:
    """Run the case and print one JSON line."""
    arguments = options(__doc__, EXAMPLE).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {"case": "every-feature", **measure(Path(scratch), arguments)}
    print(json.dumps(found), flush=True)
    write(arguments.out, [found])


def measure(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both sides in turn and compare their edges."""
    llama(scratch)
    random = np.random.default_rng(1)
    prompt = random.integers(0, VOCAB, TOKENS)
    coders = transcoders(random)
    job: dict[str, Any] = {"prompt": prompt, "targets": TARGETS, **coders}
    np.savez(scratch / "job.npz", **job)
    model = models.load(str(scratch)).model
    each = {
        layer: dictionaries.Dictionary(
            architecture=dictionaries.ReLU(),
            wiring=dictionaries.Transcoder(EMBED),
            weights=dictionaries.Weights(
                *(jnp.asarray(coders[name][layer]) for name in coders)
            ),
            extra=None,
            running=None,
            scale=jnp.float32(1),
        )
        for layer in range(LAYERS)
    }
    replacement = graphs.Replacement.of(model, each)

    def graph() -> np.ndarray:
        return graphs.attribute(
            replacement, prompt, targets=TARGETS, progress=False
        ).edges

    sides = {"with_compile": compiling(timed(graph)), "mijax": timed(graph)}
    worker = None
    if arguments.peer:
        script = "circuit_tracer_graph.py"
        worker = Worker(arguments.peer, script, "--folder", scratch)
        sides["peer"] = worker.seconds
    found = interleave(sides, rounds=arguments.rounds)
    edges = graph()
    found |= {"nodes": len(edges)}
    if worker is None:
        return found
    worker.close()
    theirs = np.load(scratch / "edges.npy")
    off = np.abs(edges - theirs).max() / np.abs(theirs).max()
    return found | {
        "peer_name": worker.last["peer"],
        "ratio": ratios(found, "peer", "mijax"),
        "ratio_with_compile": ratios(found, "peer", "with_compile"),
        "largest_relative_difference": float(f"{off:.1e}"),
    }


def transcoders(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw transcoders of which some 2 % of the features fire."""
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "encoder": normal(LAYERS, FEATURES, EMBED) / 16,
        "encoder_bias": np.full((LAYERS, FEATURES), -2.0, np.float32),
        "decoder": normal(LAYERS, FEATURES, EMBED) / 16,
        "decoder_bias": 0.1 * normal(LAYERS, EMBED),
    }


def llama(folder: Path) -> None:
    """Write random weights of a Llama in Hugging Face naming."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        scale = shape[-1] ** -0.5
        return random.normal(0, scale, shape).astype(np.float32)

    one = np.ones(EMBED, np.float32)
    tensors = {
        "model.embed_tokens.weight": 16 * normal(VOCAB, EMBED),
        "model.norm.weight": one,
        "lm_head.weight": normal(VOCAB, EMBED),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name in "qkvo":
            tensors[f"{at}self_attn.{name}_proj.weight"] = normal(EMBED, EMBED)
        tensors[f"{at}mlp.gate_proj.weight"] = normal(MLP, EMBED)
        tensors[f"{at}mlp.up_proj.weight"] = normal(MLP, EMBED)
        tensors[f"{at}mlp.down_proj.weight"] = normal(EMBED, MLP)
        tensors[f"{at}input_layernorm.weight"] = one
        tensors[f"{at}post_attention_layernorm.weight"] = one
    save_safetensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": EMBED,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
