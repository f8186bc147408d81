"""Attribution graphs of circuit-tracer 0.5.0 on the tiny grouped-query Llama.

Environment of its own (Python 3.11, CPU): torch==2.13.0, circuit-tracer==0.5.0,
transformer-lens==2.16.1, transformers==4.57.3, "datasets<4", "pyarrow<19". No network.
Needs `hf/llama` (run make_hf.py first):

    python tests/golden/make_circuit_tracer.py

Writes `circuit_tracer.npz`: for every kind of transcoder the features of the graph
(layer, position, index), the direct effects `[target, source]`, and what pruning keeps.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import (
    compute_graph_scores,
    compute_node_influence,
    prune_graph,
)
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
)
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from coder_weights import (  # noqa: E402
    EMBED,
    FEATURES,
    LAYERS,
    PROMPT,
    across_layers,
    transcoders,
)

READ, WRITE = "mlp.hook_in", "mlp.hook_out"
TARGETS = (17, 230)


class Words:
    """Stands in for a tokenizer."""

    all_special_ids = (5,)
    bos_token_id = 5
    padding_side = "right"
    vocab_size = 300

    def decode(self, ids):
        return str(ids)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    arrays = {}
    for name, make, most in (
        ("per_layer", per_layer, None),
        ("some", per_layer, 20),
        ("skip", lambda: per_layer(skip=True), None),
        ("across", across, None),
    ):
        arrays |= {f"{name}.{k}": v for k, v in graph(make(), most).items()}
    np.savez_compressed(HERE / "circuit_tracer.npz", **arrays)


def graph(coders, most):
    model = replacement(coders)
    found = attribute(
        torch.tensor(PROMPT),
        model,
        attribution_targets=torch.tensor(TARGETS),
        batch_size=8,
        max_feature_nodes=most,
        update_interval=1,
    )
    weights = torch.zeros(len(found.adjacency_matrix))
    weights[-len(TARGETS) :] = found.logit_probabilities
    nodes, edges, cumulative = prune_graph(found, 0.8, 0.9)
    scores = compute_graph_scores(found)
    print(found.adjacency_matrix.shape, scores)
    return {
        "features": found.active_features[found.selected_features].numpy().astype("i4"),
        "edges": found.adjacency_matrix.numpy(),
        "influence": compute_node_influence(found.adjacency_matrix, weights).numpy(),
        "scores": np.array(scores),
        "nodes": nodes.numpy(),
        "kept": np.packbits(edges.numpy()),
        "cumulative": cumulative.numpy(),
    }


def replacement(coders):
    reference = LlamaForCausalLM.from_pretrained(HERE / "hf" / "llama")
    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=EMBED,
        n_ctx=64,
        d_head=8,
        n_heads=4,
        n_key_value_heads=2,
        d_mlp=reference.config.intermediate_size,
        d_vocab=300,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=8,
        rotary_base=10000,
        rotary_adjacent_pairs=False,
        final_rms=True,
        gated_mlp=True,
        eps=1e-6,
        original_architecture="LlamaForCausalLM",
        model_name="tiny",
        device="cpu",
    )
    model = TransformerLensReplacementModel(config)
    state = convert_llama_weights(reference, config)
    model.load_state_dict(model.fill_missing_keys(state), strict=False)
    model._configure_replacement_model(coders)
    model.tokenizer = Words()
    logits = reference(torch.tensor([PROMPT])).logits
    difference = (model(torch.tensor([PROMPT])) - logits).abs().max().item()
    print(f"TransformerLens against transformers: {difference:.1e}")
    assert difference < 1e-4
    return model


def per_layer(*, skip=False):
    found = {}
    for layer, weights in enumerate(transcoders(skip=skip)):
        one = SingleLayerTranscoder(
            *(EMBED, FEATURES, torch.nn.functional.relu, layer),
            skip_connection=skip,
            dtype=torch.float32,
        )
        for name, array in weights.items():
            getattr(one, name).data = torch.tensor(array)
        found[layer] = one
    return TranscoderSet(found, READ, WRITE)


def across():
    one = CrossLayerTranscoder(
        *(LAYERS, FEATURES, EMBED),
        lazy_decoder=False,
        feature_input_hook=READ,
        feature_output_hook=WRITE,
        dtype=torch.float32,
    )
    for name, array in across_layers().items():
        if name.startswith("W_dec"):
            one.W_dec[int(name[-1])].data = torch.tensor(array)
        else:
            getattr(one, name).data = torch.tensor(array)
    return one


if __name__ == "__main__":
    main()
