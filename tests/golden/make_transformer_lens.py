"""TransformerLens 2.16.1 on the tiny GPT-2: activations, patching grids, weights.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.23.0,
transformer-lens==2.16.1, numpy. No network. Needs `hf/gpt2` (run make_hf.py first):

    python tests/golden/make_transformer_lens.py

Writes `transformer_lens/{activations_clean,activations_corrupt,grids,processed}.npz`.
Activations are stored in the library's layout, [batch, layer, seq, ...]; scores and
pattern of TransformerLens itself are [batch, heads, seq, key_seq]. Masked scores are
-inf.
Weights are stored in the layout of TransformerLens: W_E [vocab, embed], W_pos
[seq, embed], W_Q W_K W_V [heads, embed, head_dim], b_Q b_K b_V [heads, head_dim],
W_O [heads, head_dim, embed], b_O [embed], W_in [embed, mlp], W_out [mlp, embed],
W_U [embed, vocab], b_U [vocab].
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2LMHeadModel

HERE = Path(__file__).parent
OUT = HERE / "transformer_lens"
ANSWER, WRONG = 17, 230
DIFFER_FROM = 5
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "ln2.hook_normalized",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
HEADS_FIRST = ("scores", "pattern")


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    reference = GPT2LMHeadModel.from_pretrained(HERE / "hf" / "gpt2")
    model = convert(reference)
    clean, corrupt = pair(model.cfg.d_vocab)
    difference = (model(clean) - reference(clean).logits).abs().max().item()
    print(f"TransformerLens against transformers: {difference:.1e}")
    assert difference < 2e-5
    caches = {}
    for name, tokens in (("clean", clean), ("corrupt", corrupt)):
        logits, caches[name] = model.run_with_cache(tokens)
        arrays = activations(model, caches[name])
        arrays["ln_final"] = caches[name]["ln_final.hook_normalized"]
        hidden = reference(tokens, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(arrays["ln_final"], hidden, atol=2e-5)
        save(f"activations_{name}", tokens=tokens, logits=logits, **arrays)
    save("grids", clean=clean, corrupt=corrupt, **grids(model, clean, corrupt, caches))
    save("processed", tokens=clean, **processed(model, clean))


def convert(reference):
    old = reference.config
    config = HookedTransformerConfig(
        n_layers=old.n_layer,
        d_model=old.n_embd,
        n_ctx=old.n_positions,
        n_heads=old.n_head,
        d_head=old.n_embd // old.n_head,
        d_mlp=4 * old.n_embd,
        d_vocab=old.vocab_size,
        eps=old.layer_norm_epsilon,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        init_weights=False,
    )
    model = HookedTransformer(config)
    weights = convert_gpt2_weights(reference, config)
    weights["unembed.b_U"] = torch.zeros(config.d_vocab)
    model.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


def pair(vocab):
    """Two prompts and their twins, equal before position 5 and not at it."""
    generator = torch.Generator().manual_seed(7)
    clean = torch.randint(1, vocab, (2, 12), generator=generator)
    shift = torch.randint(1, vocab - 1, (2, 12), generator=generator)
    corrupt = clean.clone()
    corrupt[:, DIFFER_FROM:] = ((clean + shift - 1) % (vocab - 1) + 1)[:, DIFFER_FROM:]
    assert (clean != corrupt).any(0).tolist() == [False] * 5 + [True] * 7
    return clean, corrupt


def activations(model, cache, sites=tuple(HOOKS)):
    stacked = {}
    for site in sites:
        layers = [cache[f"blocks.{i}.{HOOKS[site]}"] for i in range(model.cfg.n_layers)]
        array = torch.stack(layers, 1)
        stacked[site] = array.transpose(2, 3) if site in HEADS_FIRST else array
    return stacked


def metric(logits):
    return logits[:, -1, ANSWER] - logits[:, -1, WRONG]


def grids(model, clean, corrupt, caches):
    """Every grid by the plain loop: one forward of the whole batch to a cell."""
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    result = {
        "answer": torch.tensor(ANSWER),
        "wrong": torch.tensor(WRONG),
        "metric_clean": metric(model(clean)),
        "metric_corrupt": metric(model(corrupt)),
    }
    into_corrupt = partial(loop, model, corrupt, caches["clean"], layers)
    into_clean = partial(loop, model, clean, caches["corrupt"], layers)
    for site in ("resid_pre", "attn_out", "mlp_out"):
        result[f"{site}_position"] = into_corrupt(site, set_position, clean.shape[1])
    for site in ("z", "q", "k", "v", "pattern"):
        setter = set_pattern if site == "pattern" else set_head
        result[f"{site}_head"] = into_corrupt(site, setter, heads)
    result["z_head_noising"] = into_clean("z", set_head, heads)
    result["z_head_zero"] = into_clean("z", zero_head, heads)
    return result


def loop(model, tokens, source, layers, site, setter, count):
    """The metric of every cell, [prompt, layer, index]."""
    grid = torch.empty(len(tokens), layers, count)
    for layer in range(layers):
        name = f"blocks.{layer}.{HOOKS[site]}"
        for index in range(count):
            hook = partial(setter, value=source[name], index=index)
            logits = model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])
            grid[:, layer, index] = metric(logits)
    return grid


def set_position(x, hook, *, value, index):
    x[:, index] = value[:, index]
    return x


def set_head(x, hook, *, value, index):
    x[:, :, index] = value[:, :, index]
    return x


def set_pattern(x, hook, *, value, index):
    x[:, index] = value[:, index]
    return x


def zero_head(x, hook, *, value, index):
    x[:, :, index] = 0.0
    return x


def processed(model, tokens):
    """All the processing at once; `fold_ln` also centres the weights that read."""
    before = model(tokens).log_softmax(-1)
    model.process_weights_(
        fold_ln=True, center_writing_weights=True, center_unembed=True
    )
    assert model.cfg.normalization_type == "LNPre"
    logits, cache = model.run_with_cache(tokens)
    difference = (logits.log_softmax(-1) - before).abs().max().item()
    print(f"processing moves log probabilities by {difference:.1e}")
    assert difference < 5e-5
    sites = activations(model, cache, ("resid_pre", "resid_post", "z"))
    arrays = {"logits": logits, **sites}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] in ("embed", "pos_embed", "unembed"):
            arrays[parts[-1]] = value
        elif name.startswith("blocks.0.") and parts[-1][:2] in ("W_", "b_"):
            arrays[f"block0_{parts[-1]}"] = value
    biases = [block.attn.b_O for block in model.blocks]
    return {**arrays, "b_O": torch.stack(biases)}


def save(name, **arrays):
    numpy = {key: np.asarray(value) for key, value in arrays.items()}
    np.savez_compressed(OUT / f"{name}.npz", **numpy)


if __name__ == "__main__":
    main()
