"""DINOv3 against transformers with random weights."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import models
from mijax._errors import ConfigError, LoadError
from mijax.io import save_safetensors

GOLDEN = Path(__file__).parent.parent / "golden" / "dinov3.npz"
PLAIN = models.ViTSpec(
    embed=32,
    layers=2,
    heads=4,
    mlp=48,
    patch=8,
    image=24,
    registers=2,
    positioned=0,
    key_bias=False,
    theta=100.0,
    eps=1e-5,
)
SPECS = {
    "dinov3": PLAIN,
    "dinov3_gated": dataclasses.replace(PLAIN, gated=True, activation="silu"),
}


def arrays_of(case):
    with np.load(GOLDEN) as arrays:
        names = [name for name in arrays.files if name.startswith(f"{case}.")]
        return {n[len(case) + 1 :]: arrays[n].astype(np.float32) for n in names}


def loaded(case, folder, *, change=lambda tensors: None, spec=None):
    golden, path = arrays_of(case), folder / "model.safetensors"
    tensors = {n[8:]: x for n, x in golden.items() if n.startswith("weights.")}
    change(tensors)
    save_safetensors(tensors, path)
    return models.load_image_model(spec or SPECS[case], path).model, golden


@eqx.filter_jit
def run(model, image):
    return mijax.harvest(model)(image)


@pytest.mark.parametrize("case", SPECS)
def test_blocks_and_outputs_are_those_of_transformers(case, tmp_path):
    model, golden = loaded(case, tmp_path)
    # The image has 5 by 3 patches, and the spec 3 by 3.
    out, acts = run(model, jnp.asarray(golden["image"]))
    np.testing.assert_allclose(acts["resid_post"], golden["blocks"], atol=1e-4)
    np.testing.assert_allclose(acts["resid_final"], golden["out"], atol=1e-4)
    np.testing.assert_allclose(out, golden["out"][0], atol=1e-4)
    # Only patches rotate, and all but the one in the middle do.
    rotates = (np.abs(acts["k_rotated"] - acts["k"]) > 1e-6).any((0, 2, 3))
    assert np.flatnonzero(~rotates).tolist() == [0, 1, 2, 10]


def test_every_site_has_a_gradient(tmp_path):
    model, golden = loaded("dinov3_gated", tmp_path)
    image = jnp.asarray(golden["image"])
    whole = mijax.model(model, image)
    asked = {name: mijax.Site(name) for name in whole.sites}
    found = mijax.gradients(whole, image, lambda out: out[0] - out[1], asked)
    for name, gradient in found.items():
        for one in gradient if whole.sites[name].layers else gradient[None]:
            assert float(jnp.abs(one).max()) > 1e-7, name


def test_a_model_on_tokens_has_the_positions_of_its_images(tmp_path):
    spec = dataclasses.replace(PLAIN, classes=3)
    head = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)

    def add_head(tensors):
        tensors.update({"head.weight": head, "head.bias": np.zeros(3, np.float32)})

    model, golden = loaded("dinov3", tmp_path, change=add_head, spec=spec)
    image = jnp.asarray(golden["image"])
    decoder, tokens = model.on_tokens(image[None])
    expected = golden["out"][0] @ head.T
    np.testing.assert_allclose(mijax.run(decoder, tokens)[0, 0], expected, atol=1e-4)


def test_other_files_and_sizes_are_refused(tmp_path):
    def with_bias(tensors):
        tensors["layer.0.attention.k_proj.bias"] = np.zeros(32, np.float32)

    with pytest.raises(LoadError, match="unused 'layer"):
        loaded("dinov3", tmp_path, change=with_bias)
    for change in ({"positioned": 1}, {"heads": 16}):
        spec = dataclasses.replace(PLAIN, **change)
        with pytest.raises(ConfigError, match=r"theta 100.0 needs positioned=0"):
            models.init_image_model(spec, jax.random.key(0))


# In millions, from the README of facebookresearch/dinov3.
PARAMETERS = {
    "dinov3-vits16": 21,
    "dinov3-vits16plus": 29,
    "dinov3-vitb16": 86,
    "dinov3-vitl16": 300,
    "dinov3-vith16plus": 840,
    "dinov3-vit7b16": 6_716,
}


def test_presets_have_the_published_number_of_parameters():
    for name, millions in PARAMETERS.items():
        spec = models.image_presets()[name].spec
        model = eqx.filter_eval_shape(
            lambda key, spec=spec: models.init_image_model(spec, key),
            jax.random.key(0),
        )
        arrays = jax.tree.leaves(eqx.filter(model, lambda x: hasattr(x, "shape")))
        count = sum(array.size for array in arrays) / 1e6
        # Rounded more or less by the authors.
        assert abs(count - millions) < max(0.015 * millions, 1), (name, count)
