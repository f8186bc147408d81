"""The attribution graph of one prompt by circuit-tracer, timed.

A folder holds a Llama in Hugging Face naming and `job.npz`: `prompt`, `targets`, and
transcoders `encoder`, `encoder_bias`, `decoder`, `decoder_bias`, one row per layer.
Edges `[target, source]` are written to `edges.npy` there.

Environment of its own (Python 3.11): torch==2.13.0, circuit-tracer==0.5.0,
transformer-lens==2.16.1, transformers==4.57.3, "datasets<4", "pyarrow<19".
"""
# pyright: reportMissingImports=false

import argparse
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alive import add_option, answer
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
)
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
from transformers import LlamaForCausalLM


class Words:
    """Stands in for a tokenizer."""

    padding_side = "right"

    def __init__(self, vocab: int, first: int):
        self.vocab_size, self.bos_token_id = vocab, first
        self.all_special_ids = (first,)

    def decode(self, ids: Any) -> str:
        """Return a text for ids."""
        return str(ids)


def main() -> None:
    """Time the graph, print one JSON line, write the edges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--batch", type=int, default=128, help="rows of a backward pass"
    )
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with np.load(arguments.folder / "job.npz") as file:
        job = dict(file)
    model = replacement(arguments.folder, job)

    def run() -> dict[str, Any]:
        start = time.perf_counter()
        graph = attribute(
            torch.tensor(job["prompt"]),
            model,
            attribution_targets=torch.tensor(job["targets"]),
            batch_size=arguments.batch,
        )
        seconds = time.perf_counter() - start
        np.save(arguments.folder / "edges.npy", graph.adjacency_matrix.numpy())
        return {
            "seconds": seconds,
            "peer": f"circuit-tracer {version('circuit-tracer')}",
        }

    answer(run, alive=arguments.alive)


def replacement(folder: Path, job: dict[str, np.ndarray]) -> Any:
    """Return the replacement model of circuit-tracer."""
    reference = LlamaForCausalLM.from_pretrained(folder)
    sizes = reference.config
    config = HookedTransformerConfig(
        n_layers=sizes.num_hidden_layers,
        d_model=sizes.hidden_size,
        n_ctx=64,
        d_head=sizes.hidden_size // sizes.num_attention_heads,
        n_heads=sizes.num_attention_heads,
        n_key_value_heads=sizes.num_key_value_heads,
        d_mlp=sizes.intermediate_size,
        d_vocab=sizes.vocab_size,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=sizes.hidden_size // sizes.num_attention_heads,
        rotary_adjacent_pairs=False,
        final_rms=True,
        gated_mlp=True,
        eps=sizes.rms_norm_eps,
        original_architecture="LlamaForCausalLM",
        model_name="random",
        device="cpu",
    )
    model = TransformerLensReplacementModel(config)
    state = convert_llama_weights(reference, config)
    model.load_state_dict(model.fill_missing_keys(state), strict=False)
    coders = {}
    for layer in range(sizes.num_hidden_layers):
        latents, width = job["encoder"][layer].shape
        one = SingleLayerTranscoder(
            width, latents, torch.nn.functional.relu, layer, dtype=torch.float32
        )
        for name, array in (
            ("W_enc", job["encoder"]),
            ("b_enc", job["encoder_bias"]),
            ("W_dec", job["decoder"]),
            ("b_dec", job["decoder_bias"]),
        ):
            getattr(one, name).data = torch.tensor(array[layer])
        coders[layer] = one
    model._configure_replacement_model(
        TranscoderSet(coders, "mlp.hook_in", "mlp.hook_out")
    )
    model.tokenizer = Words(sizes.vocab_size, int(job["prompt"][0]))
    return model


if __name__ == "__main__":
    main()
