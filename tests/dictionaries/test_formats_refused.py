"""Files of other libraries: what a dictionary cannot represent is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dictionary_files import (
    GOLDEN,
    arrays_of,
    copied,
    edit_json,
    edit_npz,
    edit_tensors,
    edit_torch,
    load,
    make_by_mijax,
    one_line,
    path_of,
)

from mijax import Site
from mijax import dictionaries as d
from mijax._errors import ConfigError, LoadError, OutputError


def test_a_missing_threshold_is_told(tmp_path):
    folder = copied("dictionary_learning/BatchTopKSAE", tmp_path)
    edit_torch(folder / "ae.pt", lambda t: t.update(threshold=np.float32(-1)))
    with pytest.warns(UserWarning, match="no threshold .* plain ReLU"):
        d.load(folder)
    new = d.untrained(d.BatchTopK(4), d.SAE(8), latents=24, key=jax.random.key(0))
    for format in ("saelens", "gemma_scope", "dictionary_learning"):
        with pytest.raises(OutputError, match="no threshold yet"):
            d.save(new, tmp_path / "b", format=format)
    assert not (tmp_path / "b").exists()


FILES = {
    "saelens/standard": ("sae_weights.safetensors", edit_tensors, "W_dec"),
    "saelens/jumprelu": ("sae_weights.safetensors", edit_tensors, "threshold"),
    "sparsify/layers.3": ("sae.safetensors", edit_tensors, "W_dec"),
    "dictionary_learning/AutoEncoder": ("ae.pt", edit_torch, "encoder.bias"),
    "gemma_scope/gemma-scope-2b-pt-transcoders/layer_3/average_l0_9": (
        *("params.npz", edit_npz, "threshold"),
    ),
    "circuit_tracer/relu": ("layer_3.safetensors", edit_tensors, "b_dec"),
    "circuit_tracer/clt_relu": ("W_dec_1.safetensors", edit_tensors, "W_dec_1"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["missing", "extra", "shape", "type", "nan"])
def test_tensors_are_used_once_or_refused(name, what, tmp_path):
    file, edit, tensor = FILES[name]
    folder = copied(name, tmp_path)
    changes = {
        "missing": lambda t: t.pop(tensor),
        "extra": lambda t: t.update(W_more=np.zeros(3, np.float32)),
        "shape": lambda t: t.update({tensor: np.zeros((3, 5), np.float32)}),
        "type": lambda t: t.update({tensor: t[tensor].astype(np.int32)}),
        "nan": lambda t: t.update({tensor: t[tensor] * np.float32("nan")}),
    }
    edit(folder / file, changes[what])
    path = folder / file if name == "circuit_tracer/relu" else folder
    with pytest.raises(LoadError) as caught:
        d.load(path)
    words = {
        "missing": tensor,
        "extra": "W_more",
        "shape": f"{tensor}' has shape (3, 5)",
        "type": f"{tensor}' has dtype int32",
        "nan": f"{tensor}' has values that are NaN",
    }
    one_line(caught, words[what], file)


CONFIGS = {
    "unknown": (
        "saelens/standard",
        {"apply_b_dec_to_inputs": False},
        "b_dec_to_input'",
    ),
    "architecture": ("saelens/standard", {"architecture": "matching"}, "'matching'"),
    "activation": ("saelens/standard", {"activation_fn": "tanh-relu"}, "'tanh-relu'"),
    "size": ("saelens/standard", {"d_sae": 25}, "latent=25"),
    "norm": ("saelens/standard", {"normalize_activations": "rms"}, "'rms'"),
    "reshape": ("saelens/standard", {"reshape_activations": "x"}, "'x'"),
    "finetuned": ("saelens/standard", {"finetuning": 1}, "'finetuning'"),
    "groupmax": ("sparsify/layers.3", {"activation": "groupmax"}, "'groupmax'"),
    "signed": ("sparsify/layers.3", {"signed": True}, "'signed' is True"),
    "text": ("sparsify/layers.3", {"k": "4"}, "'k' is '4', expected a valid integer"),
    "switch": ("sparsify/layers.3", {"transcode": "no"}, "'transcode' is 'no'"),
    "negative": ("saelens/standard", {"d_in": -8}, "'d_in' is -8"),
    "head": ("saelens/standard", {"hook_head_index": "1"}, "'hook_head_index' is '1'"),
    "trainer": ("dictionary_learning/AutoEncoder", {"trainer": 3}, "'trainer' is 3"),
    "key": ("sparsify/layers.3", {"centre": True}, "'centre'"),
    "k": ("sparsify/layers.3", {"k": 25}, "keeps 25 of 24"),
    "class": (
        "dictionary_learning/AutoEncoder",
        {"trainer": {"dict_class": "X"}},
        "'X'",
    ),
    "other": ("dictionary_learning/AutoEncoder", {"more": 1}, "'more'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_understood_or_refused(name, tmp_path):
    folder, change, word = CONFIGS[name]
    folder = copied(folder, tmp_path)
    config = next(f for f in folder.iterdir() if f.name in ("cfg.json", "config.json"))
    edit_json(config, lambda c: c.update(change))
    with pytest.raises(LoadError) as caught:
        d.load(folder)
    one_line(caught, word, folder)


def test_configs_before_version_6(tmp_path):
    """Keys at the top, the activation by name, other keys of training."""
    folder = copied("saelens/topk", tmp_path)
    x = arrays_of(GOLDEN / "saelens/topk.npz")
    edit_json(
        folder / "cfg.json",
        lambda c: (
            [c.pop(key) for key in ("architecture", "metadata", "k")],
            c.update(
                *({},),
                hook_point="blocks.2.attn.hook_z",
                hook_point_head_index=None,
                activation_fn_str="topk",
                activation_fn_kwargs={"k": 4},
                normalize_activations=False,
                lr=1e-4,
                model_name="tiny",
            ),
        ),
    )
    stored = d.load(folder)
    assert stored.site == Site("z", layer=2)
    np.testing.assert_allclose(
        stored.dictionary.encode(jnp.asarray(x["x"])), x["latents"], atol=1e-5
    )
    edit_tensors(
        folder / "sae_weights.safetensors",
        lambda t: t.update(scaling_factor=np.full(24, 1.5, np.float32)),
    )
    with pytest.raises(LoadError, match="'scaling_factor' is not 1 everywhere"):
        d.load(folder)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("saelens/scaled", {}, "expected_average_only_in.*give scale="),
        ("saelens/standard", {"scale": 2.0}, "leave scale out"),
        ("sparsify/layers.3", {"scale": 2.0}, "no scale"),
        ("saelens/layer_norm", {}, r"layer_norm.*normalised=True"),
        ("openai/topk", {}, r"layer_norm.*normalised=True"),
        ("nowhere", {}, "no folder or file"),
        ("saelens", {}, "fits no format"),
    ],
)
def test_what_is_asked_for_must_be_given(name, options, word):
    with pytest.raises(LoadError, match=word):
        d.load(path_of(name), **options)


def test_names_of_formats():
    with pytest.raises(ConfigError, match="Did you mean 'saelens'"):
        d.load(path_of("saelens/standard"), format="sae_lens")
    sae = load("saelens/standard").dictionary
    with pytest.raises(ConfigError, match="'layer_norm'"):
        d.save(sae, "nowhere", normalisation="layernorm")
    with pytest.raises(ConfigError, match="'layer_norm'"):
        d.normalise(jnp.ones((2, 3)), "layernorm")
    assert load("saelens/standard", format="saelens").format == "saelens"


UNWRITABLE = [
    ("saelens", d.ReLU(), d.Crosscoder(3, 8), {}, "Crosscoder"),
    ("saelens", d.TopK(4), d.Transcoder(8), {}, "TopK"),
    (
        "saelens",
        d.Gated(),
        d.Transcoder(8, skip=True),
        {},
        "transcoders of ReLU and",
    ),
    ("gemma_scope", d.TopK(4), d.SAE(8), {}, "TopK"),
    ("gemma_scope", d.ReLU(), d.Transcoder(8, skip=True), {}, "no linear path"),
    ("dictionary_learning", d.ReLU(), d.Transcoder(8), {}, "holds autoencoders"),
    ("sparsify", d.ReLU(), d.SAE(8), {}, "has TopK, not ReLU"),
    ("sparsify", d.TopK(4), d.Transcoder(8, 6), {}, "one size"),
    ("openai", d.TopK(4), d.SAE(8), {}, "normalisation='layer_norm'"),
    ("openai", d.Gated(), d.SAE(8), {}, "ReLU and TopK, not Gated"),
    ("circuit_tracer", d.JumpReLU(), d.SAE(8), {}, "JumpReLU as 'gemma_scope'"),
    (
        "circuit_tracer",
        d.TopK(4),
        d.CrossLayer(3, 8),
        {},
        "ReLU and JumpReLU, not TopK",
    ),
    ("saelens", d.ReLU(), d.SAE(8), {"site": Site("embed")}, "Leave the site out"),
    *(
        (format, d.ReLU(), d.SAE(8), {"site": site}, "Leave the site out")
        for format, site in (
            ("saelens", Site("resid_post", layer=3, feature=2)),
            ("dictionary_learning", Site("embed")),
            ("dictionary_learning", Site("resid_post")),
            ("dictionary_learning", Site("mlp_in", layer=2)),
            ("dictionary_learning", Site("z", layer=2, head=1)),
            ("dictionary_learning", Site("resid_post", layer=3, feature=2)),
        )
    ),
]


@pytest.mark.parametrize("case", UNWRITABLE, ids=lambda c: f"{c[0]}-{c[4][:9]}")
def test_what_a_format_cannot_hold_is_refused(case, tmp_path):
    format, architecture, wiring, options, word = case
    new = make_by_mijax.drawn(architecture, wiring, 0)
    with pytest.raises(OutputError) as caught:
        d.save(new, tmp_path / "a", format=format, **options)
    one_line(caught, word)
    assert not (tmp_path / "a").exists()


def test_thresholds_below_zero(tmp_path):
    """Of a rectified latent they change nothing; of another they cannot be had."""
    folder = copied("saelens/jumprelu", tmp_path)
    low = lambda t: t.update(threshold=np.full(24, -0.5, np.float32))  # noqa: E731
    edit_tensors(folder / "sae_weights.safetensors", low)
    x = jnp.asarray(arrays_of(GOLDEN / "saelens/jumprelu.npz")["x"])
    found = d.load(folder).dictionary
    pre = found.wiring.pre(found.weights, x)
    np.testing.assert_allclose(found.encode(x), jnp.maximum(pre, 0), atol=1e-6)
    folder = copied("circuit_tracer/clt_jumprelu", tmp_path)
    change = lambda t: t.update(threshold_1=np.full(10, -0.5, np.float32))  # noqa: E731
    edit_tensors(folder / "W_enc_1.safetensors", change)
    with pytest.raises(LoadError, match="'threshold_1' is negative"):
        d.load(folder)
    change = lambda t: t.update(W_skip_1=np.zeros((8, 8), np.float32))  # noqa: E731
    edit_tensors(folder / "W_enc_1.safetensors", change)
    with pytest.raises(LoadError, match="'W_skip_1' is a linear path"):
        d.load(folder)


def test_checkpoints_of_other_trees(tmp_path):
    from mijax.io import save_checkpoint  # noqa: PLC0415

    save_checkpoint({"a": jnp.ones(2)}, tmp_path / "a", metadata={"mijax": 1})
    with pytest.raises(LoadError, match="not of a dictionary"):
        d.load(tmp_path / "a")
