from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mijax import models
from mijax._errors import LoadError

HF = Path(__file__).parents[1] / "golden" / "hf"
LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "transformer.h": "blk",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text


def tensors_of(name):
    """The golden weights as llama.cpp's converter writes them."""
    tensors = {}
    for key, value in load_file(HF / name / "model.safetensors").items():
        new, tensor = key, value
        for old, short in (GPT2 if name == "gpt2" else LLAMA).items():
            new = new.replace(old, short)
        if name == "gpt2" and value.ndim == 2 and "embd" not in new:
            tensor = value.T
        if "attn_q." in new or "attn_k." in new:
            head_dim = models.load(HF / name).spec.head_dim
            tensor = value.reshape(-1, 2, head_dim // 2, value.shape[1])
            tensor = tensor.swapaxes(1, 2).reshape(value.shape)
        tensors[new] = np.ascontiguousarray(tensor)
    return tensors


def write(path, name, *, architecture=None, change=None, fields=None, tokens=False):
    spec = models.load(HF / name).spec
    architecture = architecture or ("gpt2" if name == "gpt2" else "llama")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.embed)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.mlp)
    writer.add_head_count(spec.heads)
    if name == "gpt2":
        writer.add_layer_norm_eps(spec.eps)
    else:
        writer.add_head_count_kv(spec.kv_heads)
        writer.add_layer_norm_rms_eps(spec.eps)
        writer.add_rope_freq_base(spec.rope_theta)
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
    for key, value in (fields or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    if tokens:
        writer.add_token_list(["a", "b", "ab", "<s>"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(["a b"])
    tensors = tensors_of(name)
    (change or (lambda tensors: None))(tensors)
    for key, value in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if value.dtype == np.uint8 else None
        writer.add_tensor(key, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_tied"])
def test_same_as_hugging_face(tmp_path, name):
    loaded = models.load(write(tmp_path / "a.gguf", name))
    golden = np.load(HF / f"{name}.npz")
    for tokens, logits in zip(golden["tokens"], golden["logits"], strict=True):
        ours = loaded.model(jnp.asarray(tokens, jnp.int32))[0]
        np.testing.assert_allclose(ours, logits, atol=1e-4)
    assert loaded.spec == models.load(HF / name).spec
    assert loaded.text is None


def test_rope_factors(tmp_path):
    """Scaled models carry what their frequencies are divided by as a tensor."""
    loaded = models.load(HF / "llama3_rope")
    spec = loaded.spec
    plain = spec.rope_theta ** -(np.arange(0, spec.head_dim, 2) / spec.head_dim)
    scaled = np.asarray(loaded.model.blocks.attention.rotary.frequency[0])
    factors = (plain / scaled).astype(np.float32)
    path = write(
        tmp_path / "a.gguf",
        "llama3_rope",
        change=lambda tensors: tensors.update({"rope_freqs.weight": factors}),
    )
    frequency = models.load(path).model.blocks.attention.rotary.frequency
    np.testing.assert_allclose(frequency, np.tile(scaled, (3, 1)), rtol=1e-6)


def test_quantised(tmp_path):
    exact = tensors_of("llama")["blk.0.ffn_gate.weight"]

    def quantise(tensors):
        for name in ("blk.0.ffn_gate.weight", "blk.1.ffn_up.weight"):
            tensors[name] = gguf.quants.quantize(
                tensors[name], gguf.GGMLQuantizationType.Q8_0
            )

    loaded = models.load(write(tmp_path / "a.gguf", "llama", change=quantise))
    got = np.asarray(loaded.model.blocks.mlp.w_gate[0]).T
    assert 0 < np.abs(got - exact).max() < 0.01


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"architecture": "mamba"}, "mamba"),
        ({"fields": {"llama.expert_count": 4}}, "llama.expert_count"),
        ({"fields": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type"),
        ({"fields": {"llama.rope.dimension_count": 4}}, "rope.dimension_count"),
        (
            {"change": lambda t: t.pop("blk.1.attn_q.weight")},
            "missing 'blk.1.attn_q.weight'",
        ),
        (
            {"change": lambda t: t.update({"blk.0.attn_q.bias": np.ones(4, "f4")})},
            "unused 'blk.0.attn_q.bias'",
        ),
    ],
)
def test_refusals(tmp_path, arguments, word):
    path = write(tmp_path / "a.gguf", "llama", **arguments)
    with pytest.raises(LoadError) as caught:
        models.load(path)
    one_line(caught, path, word)


@pytest.mark.parametrize("key", ["gpt2.attention.scale", "gpt2.use_parallel_residual"])
def test_gpt2_refuses_metadata_that_it_does_not_read(tmp_path, key):
    path = write(tmp_path / "a.gguf", "gpt2", fields={key: 1})
    with pytest.raises(LoadError) as caught:
        models.load(path)
    one_line(caught, path, key)


def test_truncated(tmp_path):
    path = write(tmp_path / "a.gguf", "llama")
    whole = path.read_bytes()
    for keep in (200, len(whole) - 1000):
        path.write_bytes(whole[:keep])
        with pytest.raises(LoadError) as caught:
            models.load(path)
        one_line(caught, path)


def test_type_that_cannot_be_dequantised(tmp_path):
    path = write(tmp_path / "a.gguf", "llama")
    data = path.read_bytes()
    name = b"blk.0.attn_norm.weight"
    # After the name: number of dimensions, one dimension, the type.
    place = data.index(name) + len(name) + 4 + 8
    for kind, word in ((16, "IQ2_XXS"), (28, "F64"), (250, "type 250")):
        path.write_bytes(data[:place] + kind.to_bytes(4, "little") + data[place + 4 :])
        with pytest.raises(LoadError) as caught:
            models.load(path)
        one_line(caught, path, "blk.0.attn_norm.weight", word)


@pytest.mark.parametrize(("model", "pre"), [("gpt2", "deepseek"), ("bert", "default")])
def test_tokenizers_that_are_not_supported(tmp_path, model, pre):
    """The model loads for token ids; the reason comes when text is asked for."""
    fields = {"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre}
    path = write(tmp_path / "a.gguf", "llama", fields=fields, tokens=True)
    loaded = models.load(path)
    assert loaded.text is None
    with pytest.raises(LoadError) as caught:
        _ = loaded.tokenizer
    one_line(caught, path, pre if model == "gpt2" else model, "token ids")


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe"])
def test_tokenizer(tmp_path, pre):
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.add_bos_token": 1,
    }
    path = write(tmp_path / "a.gguf", "llama", fields=fields, tokens=True)
    tokenizer = models.load(path).tokenizer
    assert tokenizer.encode("abba<s>") == [2, 1, 0, 3]
    assert tokenizer.encode("ab", add_special=True) == [3, 2]
    assert tokenizer.decode([3, 2]) == "<s>ab"
