"""Circuits of the tiny GPT-2 and Llama by the reference implementation of EAP-IG.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.23.0,
transformer-lens==2.16.1, einops, tqdm, numpy; and two working trees:

- github.com/hannamw/EAP-IG at 795f5607b25638935aec89aee3c1cb4bd9ed72f1
- github.com/hannamw/MIB-circuit-track at b759df34433c9e31043ba9e02908ce0bf20e894f
  (only `MIB_circuit_track/evaluation.py`, for the areas)

No network. Needs `hf/gpt2` and `hf/llama` (run make_hf.py first):

    python tests/golden/make_eap_ig.py --eap-ig EAP-IG --mib MIB-circuit-track

Writes, for gpt2 and llama, `eap_ig/<name>.npz` (prompts and scores),
`eap_ig/<name>_circuits.npz` (circuits, what they compute, areas) and
`eap_ig/<name>.json` (a graph as the reference writes it). The arrays are described in
README.md of this folder.

The reference runs as it is, but for three things that it cannot know: its tokenizer is
replaced by prompts that are token ids already, "cuda" by the CPU, and its plots are
left out. Weights are not processed. Where the reference departs from its own paper or
docstring, the intended quantity is stored beside it (`*_at_output`, `*_fixed`);
the README says how.
"""

import argparse
import importlib.util
import sys
import types
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from make_transformer_lens import convert
from torch.overrides import TorchFunctionMode
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
from transformers import GPT2LMHeadModel, LlamaForCausalLM

HERE = Path(__file__).parent
OUT = HERE / "eap_ig"
PROMPTS, LENGTH, BATCH = 6, 8, 3
STEPS = 5
SIZES = (5, 13, 20, 26, 52, 131, 262)
NODE_SIZES = (3, 6, 10)
NEURON_SIZES = (32, 128, 384)
INTERVENTIONS = ("patching", "zero", "mean", "mean-positional")
SEEDS = {"gpt2": 11, "llama": 12}


def main():
    arguments = parse()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    eap = reference(arguments.eap_ig, arguments.mib)
    for name, load in (("gpt2", load_gpt2), ("llama", load_llama)):
        model, theirs = load()
        data = pairs(model, SEEDS[name])
        with torch.inference_mode():
            logits = model(data["clean"], attention_mask=torch.ones_like(data["clean"]))
            difference = (logits - theirs(data["clean"]).logits).abs().max().item()
        print(f"{name}: TransformerLens against transformers: {difference:.1e}")
        assert difference < 2e-5
        with OnCPU():
            scores = all_scores(eap, model, loader(data))
            best = torch.as_tensor(scores["edge_eap_ig_inputs"])
            kept = circuits(eap, model, loader(data), best)
            kept |= coarse_circuits(eap, model, loader(data), scores)
            kept |= areas(eap, model, loader(data), best)
            export(eap, model, best, OUT / f"{name}.json")
        data = {key: value.numpy() for key, value in data.items()}
        known = names(eap, model)
        constants = {"batch_size": BATCH, "steps": STEPS}
        save(name, **data, logits=logits[:, -1].numpy(), **known, **constants, **scores)
        save(f"{name}_circuits", **known, **kept)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--eap-ig", type=Path, required=True, help="its working tree")
    parser.add_argument("--mib", type=Path, required=True, help="its working tree")
    return parser.parse_args()


class OnCPU(TorchFunctionMode):
    """The reference allocates on "cuda" by name."""

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def reference(eap_ig, mib):
    """The modules of the reference, taking rows of token ids for texts."""
    plots = types.ModuleType("eap.visualization")
    plots.get_color = plots.generate_random_color = None
    sys.modules["eap.visualization"] = plots
    sys.path.insert(0, str(eap_ig / "src"))
    modules = {
        name: importlib.import_module(f"eap.{name}")
        for name in ("graph", "utils", "evaluate", "attribute", "attribute_node")
    }
    for name in ("utils", "evaluate", "attribute", "attribute_node"):
        modules[name].tokenize_plus = rows_to_tokens
    spec = importlib.util.spec_from_file_location(
        "mib_evaluation", mib / "MIB_circuit_track" / "evaluation.py"
    )
    modules["mib"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules["mib"])
    modules["mib"].evaluate_graph = partial(
        without_optimal_ablation, modules["evaluate"].evaluate_graph
    )
    return types.SimpleNamespace(**modules)


def rows_to_tokens(model, rows, max_length=None):
    tokens = torch.stack(list(rows))
    lengths = torch.full((len(tokens),), tokens.shape[1])
    return tokens, torch.ones_like(tokens), lengths, tokens.shape[1]


def without_optimal_ablation(evaluate, *args, optimal_ablation_path=None, **kwargs):
    """The benchmark passes an argument that this version of EAP-IG dropped."""
    assert optimal_ablation_path is None
    return evaluate(*args, **kwargs)


def load_gpt2():
    theirs = GPT2LMHeadModel.from_pretrained(HERE / "hf" / "gpt2").eval()
    return hooked(convert(theirs)), theirs


def load_llama():
    theirs = LlamaForCausalLM.from_pretrained(HERE / "hf" / "llama").eval()
    old = theirs.config
    config = HookedTransformerConfig(
        n_layers=old.num_hidden_layers,
        d_model=old.hidden_size,
        n_ctx=old.max_position_embeddings,
        n_heads=old.num_attention_heads,
        n_key_value_heads=old.num_key_value_heads,
        d_head=old.head_dim,
        d_mlp=old.intermediate_size,
        d_vocab=old.vocab_size,
        eps=old.rms_norm_eps,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=old.head_dim,
        rotary_base=10000,
        device="cpu",
        init_weights=False,
    )
    model = HookedTransformer(config)
    weights = convert_llama_weights(theirs, config)
    model.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return hooked(model.eval()), theirs


def hooked(model):
    model.cfg.use_split_qkv_input = True
    model.cfg.use_attn_result = True
    model.cfg.use_hook_mlp_in = True
    model.cfg.ungroup_grouped_query_attention = True
    return model


def pairs(model, seed):
    """Random prompts; twins differ at two to five positions.

    The answer is the token whose logit the corruption lowers most, the wrong one the
    one that it raises most, so that the metric has something to explain.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab = model.cfg.d_vocab
    clean = torch.randint(1, vocab, (PROMPTS, LENGTH), generator=generator)
    other = torch.randint(1, vocab, (PROMPTS, LENGTH), generator=generator)
    corrupt = clean.clone()
    for row in range(PROMPTS):
        count = 2 + row % 4
        where = torch.randperm(LENGTH, generator=generator)[:count]
        corrupt[row, where] = other[row, where]
    assert (clean != corrupt).any(1).all()
    with torch.inference_mode():
        drop = model(clean)[:, -1] - model(corrupt)[:, -1]
    return {
        "clean": clean,
        "corrupt": corrupt,
        "answer": drop.argmax(-1).clone(),
        "wrong": drop.argmin(-1).clone(),
    }


def loader(data):
    """Batches as the reference's collate function makes them: tuples of lists."""
    labels = torch.stack([data["answer"], data["wrong"]], 1)
    return [
        (list(data["clean"][i:j]), list(data["corrupt"][i:j]), labels[i:j])
        for i, j in ((i, i + BATCH) for i in range(0, PROMPTS, BATCH))
    ]


def logit_difference(logits, clean_logits, lengths, labels, *, mean, loss):
    last = logits[torch.arange(len(logits)), lengths - 1]
    values = last.gather(-1, labels)
    values = values[:, 0] - values[:, 1]
    values = -values if loss else values
    return values.mean() if mean else values


LOSS = partial(logit_difference, mean=True, loss=True)
METRIC = partial(logit_difference, mean=False, loss=False)


def all_scores(eap, model, batches):
    """Every method at every level, as the reference leaves it in the graph."""
    fixed = partial(mean_over_positions, eap.utils.compute_mean_activations)
    given = {"intervention_dataloader": batches, "quiet": True}

    def edge(method, **options):
        graph = eap.graph.Graph.from_model(model)
        eap.attribute.attribute(model, graph, batches, LOSS, method, **given, **options)
        return graph.scores.clone().numpy()

    def node(method, *, neuron=False, at_output=False, **options):
        graph = eap.graph.Graph.from_model(model, neuron_level=neuron, node_scores=True)
        if at_output:
            for layer in range(model.cfg.n_layers):
                mlp = graph.nodes[f"m{layer}"]
                mlp.in_hook = mlp.out_hook
        eap.attribute_node.attribute_node(
            model, graph, batches, LOSS, method, neuron=neuron, **given, **options
        )
        return (graph.neurons_scores if neuron else graph.nodes_scores).clone().numpy()

    ig = {"ig_steps": STEPS}
    scores = {
        "edge_eap": edge("EAP"),
        "edge_eap_zero": edge("EAP", intervention="zero"),
        "edge_eap_mean": edge("EAP", intervention="mean"),
        "edge_eap_mean_positional": edge("EAP", intervention="mean-positional"),
        "edge_eap_ig_inputs": edge("EAP-IG-inputs", **ig),
        "edge_eap_ig_activations": edge("EAP-IG-activations", **ig),
        "edge_eap_ig_activations_zero": edge(
            "EAP-IG-activations", intervention="zero", **ig
        ),
        "edge_clean_corrupted": edge("clean-corrupted"),
        "edge_information_flow_routes": edge("information-flow-routes"),
        "edge_exact": edge("exact"),
        "edge_exact_zero": edge("exact", intervention="zero"),
        "edge_exact_mean_positional": edge("exact", intervention="mean-positional"),
    }
    for end, options in (("", {}), ("_at_output", {"at_output": True})):
        for kind in ("node", "neuron"):
            take = partial(node, neuron=kind == "neuron", **options)
            scores[f"{kind}_eap{end}"] = take("EAP")
            scores[f"{kind}_eap_zero{end}"] = take("EAP", intervention="zero")
            scores[f"{kind}_eap_ig_inputs{end}"] = take("EAP-IG-inputs", **ig)
            scores[f"{kind}_eap_ig_activations{end}"] = take("EAP-IG-activations", **ig)
        scores[f"node_eap_mean_positional{end}"] = node(
            "EAP", intervention="mean-positional", **options
        )
    with differentiable_input(model):
        scores["edge_eap_ig_activations_fixed"] = edge("EAP-IG-activations", **ig)
    with means(eap, fixed):
        scores["edge_eap_mean_fixed"] = edge("EAP", intervention="mean")
        scores["edge_exact_mean_fixed"] = edge("exact", intervention="mean")
    for name, array in scores.items():
        assert np.isfinite(array).all(), name
    return scores


def mean_over_positions(positional, model, graph, batches, per_position=False):
    """What `mean` says it does: one mean to a node, over prompts and positions."""
    averages = positional(model, graph, batches, per_position=True)
    return averages if per_position else averages.mean(0)


@contextmanager
def means(eap, function):
    """The reference with another function for means."""
    modules = (eap.attribute, eap.evaluate)
    old = modules[0].compute_mean_activations
    for module in modules:
        module.compute_mean_activations = function
    yield
    for module in modules:
        module.compute_mean_activations = old


@contextmanager
def differentiable_input(model):
    """Gradients reach block 0 even where the embeddings are a constant.

    Where the reference replaces them and no position embedding is added, torch sees no
    path to differentiate there and the reference silently adds nothing.
    """
    nothing = 0 * model.embed.W_E[0, 0]
    name = "blocks.0.hook_resid_pre"
    model.add_hook(name, lambda x, hook: x + nothing, is_permanent=True)
    yield
    model.reset_hooks(including_permanent=True)


def circuits(eap, model, batches, best):
    """Edge circuits of some sizes by both rankings and both ways to choose."""
    graph = eap.graph.Graph.from_model(model)
    graph.scores[:] = best
    fixed = partial(mean_over_positions, eap.utils.compute_mean_activations)
    baseline = partial(eap.evaluate.evaluate_baseline, model, batches, METRIC)
    found = {
        "sizes": np.array(SIZES),
        "absolute": np.array([False, True]),
        "metric_clean": baseline(quiet=True).numpy(),
        "metric_corrupt": baseline(quiet=True, run_corrupted=True).numpy(),
    }
    for way in ("topn", "greedy"):
        rows = []
        for absolute in (False, True):
            for size in SIZES:
                row = {}
                for end, prune in (("_unpruned", False), ("", True)):
                    if way == "topn":
                        graph.apply_topn(size, absolute=absolute, prune=prune)
                    else:
                        graph.apply_greedy(size, absolute=absolute, prune=prune)
                    row[f"{way}_edges{end}"] = graph.in_graph.clone().numpy()
                row[f"{way}_nodes"] = graph.nodes_in_graph.clone().numpy()
                row |= evaluate_all(eap, model, graph, batches, way)
                with means(eap, fixed):
                    row[f"{way}_mean_fixed"] = evaluate(
                        eap, model, graph, batches, "mean"
                    )
                rows.append(row)
        for key in rows[0]:
            stacked = np.stack([row[key] for row in rows])
            found[key] = stacked.reshape(2, len(SIZES), *stacked.shape[1:])
    return found


def evaluate_all(eap, model, graph, batches, way):
    return {
        f"{way}_{kind.replace('-', '_')}": evaluate(eap, model, graph, batches, kind)
        for kind in INTERVENTIONS
    }


def evaluate(eap, model, graph, batches, intervention):
    return eap.evaluate.evaluate_graph(
        model,
        graph,
        batches,
        METRIC,
        quiet=True,
        intervention=intervention,
        intervention_dataloader=batches,
    ).numpy()


def coarse_circuits(eap, model, batches, scores):
    """Circuits of whole nodes and of single residual directions of nodes."""
    found = {}
    for kind, sizes in (("node", NODE_SIZES), ("neuron", NEURON_SIZES)):
        graph = eap.graph.Graph.from_model(
            model, neuron_level=kind == "neuron", node_scores=kind == "node"
        )
        held = graph.nodes_scores if kind == "node" else graph.neurons_scores
        held[:] = torch.as_tensor(scores[f"{kind}_eap_ig_inputs_at_output"])
        rows = []
        for size in sizes:
            graph.apply_topn(size, absolute=True, level=kind)
            row = {
                f"{kind}_edges": (graph.in_graph & graph.real_edge_mask).numpy(),
                f"{kind}_nodes": graph.nodes_in_graph.clone().numpy(),
                f"{kind}_patching": evaluate(eap, model, graph, batches, "patching"),
                f"{kind}_zero": evaluate(eap, model, graph, batches, "zero"),
            }
            if kind == "neuron":
                row["neuron_neurons"] = graph.neurons_in_graph.clone().numpy()
            rows.append(row)
        found[f"{kind}_sizes"] = np.array(sizes)
        found |= {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return found


def areas(eap, model, batches, best):
    """The benchmark's areas: signed and absolute rankings, [2] or [2, fraction]."""
    graph = eap.graph.Graph.from_model(model)
    graph.scores[:] = best
    rows = []
    for absolute in (False, True):
        counts, under, from_one, average, values = eap.mib.evaluate_area_under_curve(
            model, graph, batches, METRIC, quiet=True, absolute=absolute
        )
        rows.append((counts, under, from_one, average, values))
    keys = ("edge_counts", "cpr", "cmd", "average", "faithfulness")
    columns = zip(keys, zip(*rows, strict=True), strict=True)
    return {f"area_{key}": np.array(column) for key, column in columns}


def export(eap, model, best, path):
    graph = eap.graph.Graph.from_model(model)
    graph.scores[:] = best
    graph.apply_topn(52, absolute=True)
    graph.to_json(str(path))
    again = eap.graph.Graph.from_json(str(path))
    assert torch.equal(again.in_graph, graph.in_graph)


def names(eap, model):
    graph = eap.graph.Graph.from_model(model)
    senders = [name for name in graph.nodes if name != "logits"]
    receivers = graph.get_dst_nodes()
    for edge in graph.edges.values():
        row, column = edge.matrix_index
        end = f"<{edge.qkv}>" if edge.qkv else ""
        assert senders[row] == edge.parent.name
        assert receivers[column] == edge.child.name + end
    return {
        "senders": np.array(senders),
        "receivers": np.array(receivers),
        "real": graph.real_edge_mask.numpy(),
    }


def save(name, **arrays):
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    size = (OUT / f"{name}.npz").stat().st_size
    print(f"{name}.npz: {size / 1024:.0f} KiB")
    assert size < 300_000


if __name__ == "__main__":
    main()
