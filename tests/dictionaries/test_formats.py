"""Files of other libraries: what those compute, both ways."""

import json

import equinox as eqx
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dictionary_files import (
    GOLDEN,
    arrays_of,
    copied,
    fixtures,
    load,
    make_by_mijax,
)
from safetensors.numpy import load_file, save_file

from mijax import Site
from mijax import dictionaries as d
from mijax._errors import NetworkError, OutputError, ShapeError


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


def test_first_version_of_the_native_format():
    golden = arrays_of(GOLDEN / "native/version_1.npz")
    stored = load("native/version_1")
    latents, output = latents_and_output(stored, golden["x"])
    assert (latents > 0).any()
    assert (latents == 0).any()
    np.testing.assert_allclose(latents, golden["latents"], atol=1e-6)
    np.testing.assert_allclose(output, golden["output"], atol=1e-6)
    assert stored.site == Site("resid_post", layer=3)


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "sparsify"])
def test_half_precision(format, tmp_path):
    dictionary = make_by_mijax.of("saelens_topk")[0]
    d.save(dictionary, tmp_path / "a", format=format, dtype=jnp.bfloat16)
    found = d.load(tmp_path / "a").dictionary.weights
    expected = dictionary.weights.encoder.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(found.encoder, expected)
    jump = make_by_mijax.of("saelens_jumprelu")[0]
    with pytest.raises(OutputError, match="no bfloat16"):
        d.save(jump, tmp_path / "b", format="gemma_scope", dtype=jnp.bfloat16)


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
    with pytest.warns(UserWarning, match="worse than their mean"):
        stored = load(name, check=x, tolerance=1.0)
    active = arrays_of(GOLDEN / f"{name}.npz")["latents"] > 0
    assert stored.stated == load("saelens/batchtopk").stated == {"l0": 4.0}
    np.testing.assert_allclose(stored.measured["l0"], active.sum(1).mean(), rtol=1e-6)
    off = x - arrays_of(GOLDEN / f"{name}.npz")["output"]
    fvu = (off**2).sum() / ((x - x.mean(0)) ** 2).sum()
    np.testing.assert_allclose(stored.measured["fvu"], fvu, rtol=1e-5)
    scope = GOLDEN / "gemma_scope/gemma-scope-2b-pt-res/layer_20/average_l0_71"
    with pytest.warns(UserWarning, match="says l0|worse than") as seen:
        found = d.load(scope, check=x)
    said = " ".join(str(one.message) for one in seen)
    assert "says l0 71, and on these activations" in said
    assert f"{found.measured['l0']:.4g}" in said
    with pytest.raises(ShapeError, match="20 inputs and 3 outputs"):
        load("saelens/transcoder", check=(x, x[:3]))
    assert load("saelens/transcoder", check=x).measured.keys() == {"l0"}


def test_reconstructions_worse_than_the_mean_are_noticed(tmp_path):
    """L0 of TopK is k on any activations."""
    dictionary = make_by_mijax.of("sparsify_sae")[0]
    d.save(dictionary, tmp_path / "a", format="sparsify")
    x = np.float32(np.random.default_rng(0).normal(size=(50, 8)))
    with pytest.warns(UserWarning, match=r"worse than their mean \(FVU"):
        stored = d.load(tmp_path / "a", check=x)
    assert stored.measured["l0"] == stored.stated["l0"] == 4
    assert stored.measured["fvu"] > 1


def test_scales_of_sites_are_kept(tmp_path):
    scale = jnp.array([0.3, 4.0, 1.0])
    given = make_by_mijax.drawn(d.TopK(4), d.Crosscoder(3, 8), 5, scale=scale)
    d.save(given, tmp_path / "a")
    assert bool(eqx.tree_equal(given, d.load(tmp_path / "a").dictionary))


def test_saelens_logarithms_of_thresholds(tmp_path):
    folder = copied("saelens/jumprelu", tmp_path)
    arrays = dict(load_file(folder / "sae_weights.safetensors"))
    threshold = arrays.pop("threshold")
    arrays["log_threshold"] = np.log(threshold)
    save_file(arrays, folder / "sae_weights.safetensors")
    found = d.load(folder).dictionary
    np.testing.assert_allclose(found.extra, threshold, rtol=1e-6)


def test_evaluations_beside_the_weights(tmp_path):
    folder = copied("dictionary_learning/AutoEncoder", tmp_path)
    results = {"l0": 3.0, "frac_variance_explained": 0.75, "frac_alive": 1.0}
    (folder / "eval_results.json").write_text(json.dumps(results))
    assert d.load(folder).stated == {"l0": 3.0, "fvu": 0.25}
    folder = copied("saelens/standard", tmp_path)
    logs = {"sparsity": np.log10(np.full(24, 0.25, np.float32))}
    save_file(logs, folder / "sparsity.safetensors")
    np.testing.assert_allclose(d.load(folder).stated["l0"], 6.0, rtol=1e-6)


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
    with pytest.raises(NetworkError, match=r"no folder .*'org/name' here.*hub id"):
        d.load("org/name")


def test_saelens_keeps_the_head(tmp_path):
    sae = d.untrained(d.ReLU(), d.SAE(8), latents=16, key=jax.random.key(0))
    site = Site("z", layer=3, head=2)
    d.save(sae, tmp_path / "a", format="saelens", site=site)
    stored = d.load(tmp_path / "a")
    assert (stored.site, stored.target) == (site, site)
    new = d.untrained(d.ReLU(), d.Transcoder(8), latents=16, key=jax.random.key(0))
    target = Site("q", layer=4, head=1)
    d.save(new, tmp_path / "b", format="saelens", site=site, target=target)
    stored = d.load(tmp_path / "b")
    assert (stored.site, stored.target) == (site, target)


@pytest.mark.parametrize("threshold", [1e-4, 0.4])
def test_thresholds_stay_those_of_the_file(threshold, tmp_path):
    new = d.JumpReLU(threshold=threshold)
    sae = d.untrained(new, d.SAE(8), latents=16, key=jax.random.key(0))
    d.save(sae, tmp_path / "a", format="saelens")
    found = d.load(tmp_path / "a", dtype=jnp.bfloat16).dictionary
    np.testing.assert_array_equal(found.extra, np.float32(threshold))
