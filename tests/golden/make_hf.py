"""Tiny random Hugging Face model folders and what `transformers` computes with them.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.23.0,
safetensors==0.8.0, tokenizers==0.23.3, numpy. No network. Run from anywhere:

    python tests/golden/make_hf.py

Writes `hf/<name>/` (config.json, model.safetensors, tokenizer.json) and `hf/<name>.npz`
for gpt2, llama, llama_tied and llama3_rope, and `hf/llama_sharded/` (the weights of
llama in two files). The arrays are described in README.md of this folder.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

HERE = Path(__file__).parent / "hf"
VOCAB = 300
STEPS = 8
SENTENCES = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The capital of France is Paris, and the capital of England is London.",
    "In 2025 there were 1234 tokens, 56 heads and 7 layers in the model.",
    "def f(x):\n    return x + 1\n",
    "Don't stop: the quick brown fox can't jump over the lazy dog's house!",
    "naïve café, Ünïcödé, 日本語 and 🙂 are bytes as well.",
]


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    if HERE.exists():
        shutil.rmtree(HERE)
    HERE.mkdir()
    tokenizer = train_tokenizer()
    for seed, (name, model) in enumerate(build_models(), start=1):
        randomise(model, seed)
        folder = HERE / name
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        if name == "llama":
            sharded = HERE / "llama_sharded"
            model.save_pretrained(sharded, max_shard_size="130KB")
            tokenizer.save(str(sharded / "tokenizer.json"))
            verify_same(model, sharded)
        if name in ("llama_tied", "llama3_rope"):
            write_v4_config(folder, model)
        verify_same(model, folder)
        np.savez_compressed(HERE / f"{name}.npz", **reference(model, seed))


def train_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def build_models():
    common = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    llama = {
        **common,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "intermediate_size": 80,
        "attn_implementation": "eager",
    }
    default = {"rope_type": "default"}
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    gpt2 = GPT2Config(
        **common, n_embd=32, n_layer=3, n_head=4, n_positions=64,
        attn_implementation="eager",
    )  # fmt: skip
    yield "gpt2", GPT2LMHeadModel(gpt2)
    yield "llama", LlamaForCausalLM(LlamaConfig(
        **llama, num_attention_heads=4, head_dim=8, tie_word_embeddings=False,
        rms_norm_eps=1e-6, rope_parameters={**default, "rope_theta": 10000.0},
    ))  # fmt: skip
    # Three query heads to a key head and heads x head_dim != hidden_size.
    yield "llama_tied", LlamaForCausalLM(LlamaConfig(
        **{**llama, "hidden_size": 36}, num_attention_heads=6, head_dim=8,
        tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={**default, "rope_theta": 100000.0},
    ))  # fmt: skip
    yield "llama3_rope", LlamaForCausalLM(LlamaConfig(
        **{**llama, "max_position_embeddings": 2048, "intermediate_size": 64},
        num_attention_heads=4, head_dim=16, tie_word_embeddings=True,
        rms_norm_eps=1e-5, rope_parameters=scaled,
    ))  # fmt: skip


def randomise(model, seed):
    """Give every parameter a value that matters: no zeros, no ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.2 * noise
        elif parameter.ndim == 1:
            value = 1.0 + 0.3 * noise
        elif "wte" in name or "wpe" in name or "embed" in name:
            value = 0.5 * noise
        else:
            value = 0.25 * noise
        parameter.copy_(value)
    model.eval()


def write_v4_config(folder, model):
    """Keep the file that transformers 5 wrote and put the spelling of 4.x beside it.

    Checkpoints on the hub say `rope_theta` and `rope_scaling`; transformers 5 says
    `rope_parameters`. A loader has to read both.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.50.0"
    if folder.name == "llama3_rope":
        shutil.copy(path, folder / "config_v5.json")
    path.write_text(json.dumps(config, indent=2) + "\n")


def verify_same(model, folder):
    tokens = torch.arange(24).reshape(2, 12)
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert torch.equal(again(tokens).logits, model(tokens).logits), folder


def reference(model, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = torch.randint(1, VOCAB, (3, 12), generator=generator)
    layers = (
        model.transformer.h if hasattr(model, "transformer") else model.model.layers
    )
    last = []
    handle = layers[-1].register_forward_hook(
        lambda _module, _args, out: last.append(
            out if isinstance(out, torch.Tensor) else out[0]
        )
    )
    out = model(tokens, output_hidden_states=True, output_attentions=True)
    handle.remove()
    arrays = {
        "tokens": tokens,
        "logits": out.logits,
        "hidden_states": torch.stack(out.hidden_states),
        "last_resid_post": last[0],
        "attentions": torch.stack(out.attentions),
    }
    peak = arrays["attentions"].amax(-1)[..., 4:].mean()
    print(f"logit std {out.logits.std():.2f}, mean largest attention {peak:.2f}")
    for length in (4, 7, 12):
        prompt = torch.randint(1, VOCAB, (1, length), generator=generator)
        arrays[f"prompt_{length}"] = prompt[0]
        arrays[f"generated_{length}"] = greedy(model, prompt)
    if hasattr(model, "model"):
        arrays["inv_freq"] = model.model.rotary_emb.inv_freq
        check_rope_matters(model, tokens, out.logits)
    return {name: value.numpy() for name, value in arrays.items()}


def greedy(model, prompt):
    new = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS,
        min_new_tokens=STEPS, do_sample=False, pad_token_id=0, eos_token_id=None,
    )[0, prompt.shape[1]:]  # fmt: skip
    # The choice must not hang on rounding: the winner leads by a clear margin.
    whole = torch.cat([prompt[0], new])[None]
    top = model(whole).logits[0, prompt.shape[1] - 1 : -1].topk(2)
    assert torch.equal(top.indices[:, 0], new)
    assert (top.values[:, 0] - top.values[:, 1]).min() > 1e-3
    return new


def check_rope_matters(model, tokens, logits):
    """A reader that ignores theta or the scaling must fail visibly."""
    rotary = model.model.rotary_emb
    kept = rotary.inv_freq.clone()
    plain = 10000.0 ** -(torch.arange(len(kept)) / len(kept))
    rotary.inv_freq.copy_(kept * 1.5 if torch.allclose(kept, plain) else plain)
    change = (model(tokens).logits - logits).abs().max()
    rotary.inv_freq.copy_(kept)
    print(f"a wrong theta changes logits by up to {change:.3f}")
    assert change > 0.05


if __name__ == "__main__":
    main()
