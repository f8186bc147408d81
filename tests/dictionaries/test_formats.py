"""Files of other libraries: what those compute, both ways; what is refused."""

import importlib.util
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import equinox as eqx
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mijax import Site
from mijax import dictionaries as d
from mijax._errors import ConfigError, LoadError, NetworkError, OutputError, ShapeError
from mijax.dictionaries._torch_file import TorchFile, save_torch

GOLDEN = Path(__file__).parents[1] / "golden" / "dictionaries"
SPEC = importlib.util.spec_from_file_location("by_mijax", GOLDEN / "make_by_mijax.py")
make_by_mijax = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_by_mijax)

SCALES = {"saelens/scaled": 0.7}
NORMALISED = {
    *("saelens/layer_norm", "saelens/constant_norm", "openai/topk"),
    *("openai/topk_twice", "by_mijax/openai_topk"),
}


def fixtures(folder):
    """Names of all goldens in a folder, without their ending."""
    found = sorted((GOLDEN / folder).rglob("*.npz"))
    return [
        f.relative_to(GOLDEN).as_posix()[: -len(".npz")]
        for f in found
        if f.name != "params.npz"
    ]


def arrays_of(path):
    """Reads an `.npz` file and closes it."""
    with np.load(path) as arrays:
        return dict(arrays)


def path_of(name):
    """The folder or file of a golden."""
    for ending in ("", ".pt"):
        if (path := GOLDEN / f"{name}{ending}").exists():
            break
    file = path / "layer_3.safetensors"
    return file if file.exists() else path


def load(name, **options):
    if name in SCALES:
        options["scale"] = SCALES[name]
    return d.load(path_of(name), normalised=name in NORMALISED, **options)


def latents_and_output(stored, x):
    """What a dictionary computes of raw activations, `[n, *reads]`."""
    given, mean, size = d.normalise(jnp.asarray(x), stored.normalisation)
    return stored.dictionary.encode(given), stored.dictionary(given) * size + mean


def check_golden(name):
    golden, stored = arrays_of(GOLDEN / f"{name}.npz"), load(name)
    x, latents, output = (golden[key] for key in ("x", "latents", "output"))
    if stored.format == "cross_layer":
        # The library has layers first; here the latents of a number stand together.
        x, output = x.swapaxes(0, 1), output.swapaxes(0, 1)
        latents = latents.transpose(1, 2, 0).reshape(len(x), -1)
    found = latents_and_output(stored, x)
    assert (latents > 0).any()
    np.testing.assert_array_equal(found[0] > 0, latents > 0)
    np.testing.assert_allclose(found[0], latents, atol=1e-5)
    np.testing.assert_allclose(found[1], output, atol=1e-5)
    return stored


FOREIGN = [
    name
    for folder in (
        *("saelens", "gemma_scope", "dictionary_learning", "sparsify", "openai"),
        "circuit_tracer",
    )
    for name in fixtures(folder)
]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_the_library_computes(name):
    stored = check_golden(name)
    assert stored.digest.startswith("sha256:")


@pytest.mark.parametrize("name", make_by_mijax.CASES)
def test_what_the_library_computes_of_what_is_saved(name, tmp_path):
    """The goldens are what the real library computed of these very files."""
    dictionary, format, options = make_by_mijax.of(name)
    folder = tmp_path / "saved"
    d.save(dictionary, folder, format=format, site=make_by_mijax.SITE, **options)
    for file in sorted(folder.iterdir()):
        golden = GOLDEN / "by_mijax" / name / file.name
        assert file.read_bytes() == golden.read_bytes(), file.name
    stored = check_golden(f"by_mijax/{name}")
    x = jnp.asarray(arrays_of(GOLDEN / "by_mijax" / f"{name}.npz")["x"])
    x = x.swapaxes(0, 1) if stored.format == "cross_layer" else x
    np.testing.assert_allclose(stored.dictionary(x), dictionary(x), atol=1e-5)


EXACT = [n for n in make_by_mijax.CASES if "scope" not in n and "scaled" not in n]


@pytest.mark.parametrize("name", EXACT)
def test_round_trip(name):
    """Weights come back bit for bit; a threshold went through its exponential."""
    dictionary = make_by_mijax.of(name)[0]
    # What would be written to earlier layers is not in files.
    rows = dictionary.wiring.rows(dictionary.weights)
    dictionary = eqx.tree_at(lambda x: x.weights.decoder, dictionary, rows)
    found = load(f"by_mijax/{name}").dictionary
    for one, other in zip(
        jax.tree.leaves(dictionary.weights), jax.tree.leaves(found.weights), strict=True
    ):
        if "learning_jumprelu" in name:  # without centring: the bias is converted
            np.testing.assert_allclose(one, other, atol=1e-6)
        else:
            np.testing.assert_array_equal(one, other)
    assert found.wiring == dictionary.wiring
    if type(found.architecture) is type(dictionary.architecture):
        for one, other in zip(
            jax.tree.leaves((dictionary.extra, dictionary.running)),
            jax.tree.leaves((found.extra, found.running)),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


OWN = {
    "sae": (d.TopK(4, aux=0.5), d.SAE(8)),
    "gated": (d.Gated(0.3), d.Transcoder(8, 6, skip=True)),
    "jumprelu": (d.JumpReLU(0.2, bandwidth=0.5), d.Crosscoder(3, 8)),
    "relu": (d.ReLU(0.2, penalty="tanh"), d.Transcoder(8)),
    "matryoshka": (d.Matryoshka((0.25, 0.75), 4), d.CrossLayer(3, 8)),
}


@pytest.mark.parametrize("name", OWN)
def test_own_format_keeps_everything(name, tmp_path):
    dictionary = make_by_mijax.drawn(*OWN[name], 5, latents=24, scale=0.3)
    more = {"site": Site("z", layer=2, head=1), "target": Site("resid_final")}
    said = {"model": "tiny", "tokens": 3}
    d.save(
        dictionary, tmp_path / "a", normalisation="layer_norm", metadata=said, **more
    )
    stored = d.load(tmp_path / "a", normalised=True)
    assert bool(eqx.tree_equal(dictionary, stored.dictionary))
    assert (stored.site, stored.target) == tuple(more.values())
    assert (stored.metadata, stored.normalisation) == (said, "layer_norm")
    half = d.load(tmp_path / "a", normalised=True, dtype=jnp.bfloat16).dictionary
    assert half.weights.encoder.dtype == jnp.bfloat16


def test_numbers_of_lanes_are_saved(tmp_path):
    given = make_by_mijax.drawn(d.BatchTopK(4), d.SAE(8), 1)
    lane = eqx.tree_at(lambda x: x.architecture.k, given, jnp.float32(4.0))
    d.save(lane, tmp_path / "a")
    assert d.load(tmp_path / "a").dictionary.architecture == d.BatchTopK(4.0)


@pytest.mark.parametrize(
    ("name", "site", "target"),
    [
        ("saelens/standard", Site("resid_post", layer=3), Site("resid_post", layer=3)),
        ("saelens/transcoder", Site("resid_post", layer=3), Site("mlp_out", layer=3)),
        (
            "dictionary_learning/BatchTopKSAE",
            *(Site("resid_post", layer=8), Site("resid_post", layer=8)),
        ),
        ("sparsify/layers.3", Site("resid_post", layer=3), Site("resid_post", layer=3)),
        ("sparsify/layers.3.mlp", None, Site("mlp_out", layer=3)),
        ("circuit_tracer/relu", Site("resid_mid", layer=3), Site("mlp_out", layer=3)),
        (
            "gemma_scope/gemma-scope-2b-pt-res/layer_20/average_l0_71",
            *(Site("resid_post", layer=20), Site("resid_post", layer=20)),
        ),
        ("openai/relu", None, None),
    ],
)
def test_sites(name, site, target):
    stored = load(name)
    assert (stored.site, stored.target) == (site, target)


def test_architectures():
    kind = lambda name: load(name).dictionary.architecture  # noqa: E731
    assert kind("dictionary_learning/BatchTopKSAE").k == 4
    groups = kind("dictionary_learning/MatryoshkaBatchTopKSAE").groups
    assert groups == (0.25, 0.25, 0.5)
    # SAELens saves those of a threshold as JumpReLU.
    assert isinstance(kind("saelens/matryoshka"), d.JumpReLU)
    assert load("saelens/skip_transcoder").dictionary.wiring == d.Transcoder(
        8, 6, skip=True
    )
    assert kind("openai/topk").k == 4


def test_stated_numbers_are_measured_again():
    """A BatchTopK that runs as a plain ReLU is noticed."""
    name = "dictionary_learning/BatchTopKSAE"
    x = arrays_of(GOLDEN / f"{name}.npz")["x"]
    stored = load(name, check=x, tolerance=1.0)
    active = arrays_of(GOLDEN / f"{name}.npz")["latents"] > 0
    assert stored.stated == {"l0": 4.0}
    np.testing.assert_allclose(stored.measured["l0"], active.sum(1).mean(), rtol=1e-6)
    off = x - arrays_of(GOLDEN / f"{name}.npz")["output"]
    fvu = (off**2).sum() / ((x - x.mean(0)) ** 2).sum()
    np.testing.assert_allclose(stored.measured["fvu"], fvu, rtol=1e-5)
    scope = GOLDEN / "gemma_scope/gemma-scope-2b-pt-res/layer_20/average_l0_71"
    with pytest.warns(
        UserWarning, match="says l0 71, and on these activations"
    ) as seen:
        found = d.load(scope, check=x)
    assert f"{found.measured['l0']:.4g}" in str(seen[0].message)
    with pytest.raises(ShapeError, match="20 inputs and 3 outputs"):
        load("saelens/transcoder", check=(x, x[:3]))
    assert load("saelens/transcoder", check=x).measured.keys() == {"l0"}


def test_evaluations_beside_the_weights(tmp_path):
    folder = copied("dictionary_learning/AutoEncoder", tmp_path)
    results = {"l0": 3.0, "frac_variance_explained": 0.75, "frac_alive": 1.0}
    (folder / "eval_results.json").write_text(json.dumps(results))
    assert d.load(folder).stated == {"l0": 3.0, "fvu": 0.25}
    folder = copied("saelens/standard", tmp_path)
    logs = {"sparsity": np.log10(np.full(24, 0.25, np.float32))}
    save_file(logs, folder / "sparsity.safetensors")
    np.testing.assert_allclose(d.load(folder).stated["l0"], 6.0, rtol=1e-6)


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


def copied(name, tmp_path):
    path = path_of(name)
    source = path if path.is_dir() else path.parent
    return Path(shutil.copytree(source, tmp_path / source.name))


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path, change):
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)


def edit_torch(path, change):
    file = TorchFile(path)
    content = {name: file.read(name) for name in file.shapes} | file.values
    change(content)
    save_torch({k: np.asarray(v) for k, v in content.items()}, path)


def edit_npz(path, change):
    arrays = arrays_of(path)
    change(arrays)
    np.savez(path, **arrays)


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
@pytest.mark.parametrize("what", ["missing", "extra", "shape"])
def test_tensors_are_used_once_or_refused(name, what, tmp_path):
    file, edit, tensor = FILES[name]
    folder = copied(name, tmp_path)
    changes = {
        "missing": lambda t: t.pop(tensor),
        "extra": lambda t: t.update(W_more=np.zeros(3, np.float32)),
        "shape": lambda t: t.update({tensor: np.zeros((3, 5), np.float32)}),
    }
    edit(folder / file, changes[what])
    path = folder / file if name == "circuit_tracer/relu" else folder
    with pytest.raises(LoadError) as caught:
        d.load(path)
    words = {
        "missing": tensor,
        "extra": "W_more",
        "shape": f"{tensor}' has shape (3, 5)",
    }
    one_line(caught, words[what], file)


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text


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
    "signed": ("sparsify/layers.3", {"signed": True}, "signed=True"),
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
]


@pytest.mark.parametrize("case", UNWRITABLE, ids=lambda c: f"{c[0]}-{c[4][:9]}")
def test_what_a_format_cannot_hold_is_refused(case, tmp_path):
    format, architecture, wiring, options, word = case
    new = make_by_mijax.drawn(architecture, wiring, 0)
    with pytest.raises(OutputError) as caught:
        d.save(new, tmp_path / "a", format=format, **options)
    one_line(caught, word)
    assert not (tmp_path / "a").exists()


class Evil:
    """Runs a command when a pickle of it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def as_torch(path, content):
    """Writes a zip as torch does, with a pickle of anything."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
        archive.writestr("archive/version", "3\n")


def test_pickles_run_nothing(tmp_path):
    mark, file = tmp_path / "ran", tmp_path / "a.pt"
    for content in (Evil(mark), {"pre_bias": Evil(mark)}, {"x": [Evil(mark)]}):
        as_torch(file, content)
        with pytest.raises(LoadError) as caught:
            d.load(file, format="openai")
        one_line(caught, f"{os.system.__module__}.system", "Nothing was run", file)
    folder = copied("dictionary_learning/AutoEncoder", tmp_path)
    as_torch(folder / "ae.pt", {"bias": Evil(mark)})
    with pytest.raises(LoadError, match=r"system"):
        d.load(folder)
    scope = tmp_path / "params.npz"
    np.savez(scope, W_enc=np.array([Evil(mark)], object))
    with pytest.raises(LoadError, match="'W_enc' is of Python objects"):
        d.load(scope)
    assert not mark.exists()


def test_torch_files_that_are_refused(tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(pickle.dumps({"a": 1}))
    refused(file, "since 1.6")
    as_torch(file, [1, 2])
    refused(file, "holds a list")
    as_torch(file, {"a": [1, 2]})
    refused(file, "'a' is a list")
    as_torch(file, {"a": {1, 2}})
    refused(file, "set")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", "y")
    refused(file, "0 pickles")
    save_torch({"a": np.ones((2, 3), np.float32)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    refused(file, "since 1.6")
    file.write_bytes(whole)
    with zipfile.ZipFile(file) as archive:
        text, data = archive.read("archive/data.pkl"), archive.read("archive/data/0")
    three, many = b"\x8a\x08\x03", b"\x8a\x08\x63"
    for edited, numbers in ((text.replace(three, many), data), (text, data[:-4])):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", edited)
            archive.writestr("archive/data/0", numbers)
        with pytest.raises(LoadError, match="does not lie in its storage"):
            TorchFile(file).read("a")
    with pytest.raises(LoadError, match="does not exist"):
        TorchFile(tmp_path / "none.pt")


def refused(file, word):
    with pytest.raises(LoadError) as caught:
        TorchFile(file)
    one_line(caught, word, file)


@pytest.mark.parametrize("dtype", ["float64", "float16", jnp.bfloat16, "int64", "bool"])
def test_torch_files_keep_dtypes(dtype, tmp_path):
    array = np.array([[0, 1, 2], [3, 0, 5]]).astype(dtype)
    content = {"a": array, "b": {"k": 7, "name": "é"}, "c": array[0, 1]}
    save_torch(content, tmp_path / "a.pt")
    file = TorchFile(tmp_path / "a.pt")
    np.testing.assert_array_equal(file.read("a"), array)
    assert file.read("a").dtype == array.dtype
    assert file.read("c").shape == ()
    assert file.values == {"b.k": 7, "b.name": "é"}


def test_strides_and_views_that_torch_wrote():
    file = TorchFile(GOLDEN / "views.pt")
    expected = arrays_of(GOLDEN / "views.pt.npz")
    assert sorted(file.shapes) == sorted(expected)
    for name in expected:
        found = file.read(name)
        np.testing.assert_array_equal(found.astype(np.float64), expected[name])
    assert file.read("half").dtype == jnp.bfloat16
    refused(GOLDEN / "legacy.pt", "since 1.6")
    with pytest.raises(LoadError, match="does not lie in its storage"):
        TorchFile(GOLDEN / "expanded.pt").read("a")


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


def test_hub_ids(monkeypatch):
    asked = []

    def snapshot(hub_id, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(GOLDEN / "saelens")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert d.load("org/name/standard").source == "org/name/standard"
    assert asked == [("org/name", ["standard", "standard/*", "config.yaml"])]

    def fail(hub_id, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(NetworkError, match="org/name"):
        d.load("org/name")
