"""Vision transformers against transformers and timm, and published weights."""

import dataclasses
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import models
from mijax._errors import ConfigError, LoadError, ShapeError
from mijax.io import save_safetensors
from mijax.models import ViTSpec
from mijax.models._position_grid import resized_positions

GOLDEN = Path(__file__).parent.parent / "golden" / "vit.npz"
SIZES = {"embed": 32, "layers": 2, "heads": 4, "patch": 8, "image": 24}
SPECS = {
    "vit": ViTSpec(**SIZES, mlp=48, classes=5, eps=1e-12),
    "dinov2": ViTSpec(**SIZES, mlp=64, registers=2, antialias=True),
    "timm": ViTSpec(**SIZES, mlp=64, registers=2, positioned=3, classes=5, pool="mean"),
}


def arrays_of(case):
    with np.load(GOLDEN) as arrays:
        names = [name for name in arrays.files if name.startswith(f"{case}.")]
        return {name[len(case) + 1 :]: arrays[name] for name in names}


def weights_of(golden):
    names = [name for name in golden if name.startswith("weights.")]
    return {name[8:]: golden[name].astype(np.float32) for name in names}


@eqx.filter_jit
def run(model, image):
    return mijax.harvest(model)(image)


def loaded(case, folder):
    golden, path = arrays_of(case), folder / "model.safetensors"
    save_safetensors(weights_of(golden), path)
    return models.load_image_model(SPECS[case], path).model, golden


@pytest.mark.parametrize("case", SPECS)
def test_blocks_and_outputs_are_those_of_the_reference(case, tmp_path):
    model, golden = loaded(case, tmp_path)
    out, acts = run(model, jnp.asarray(golden["image"]))
    np.testing.assert_allclose(acts["resid_post"], golden["blocks"], atol=1e-4)
    # The reference has no head: it returns every position.
    ours = acts["resid_final"] if case == "dinov2" else out
    np.testing.assert_allclose(ours, golden["out"], atol=1e-4)


def test_names_of_modules_are_read_too(tmp_path):
    golden = arrays_of("vit")
    renamed = {
        name.replace("encoder.layer.", "layers.")
        .replace("attention.attention.query", "attention.q_proj")
        .replace("attention.attention.key", "attention.k_proj")
        .replace("attention.attention.value", "attention.v_proj")
        .replace("attention.output.dense", "attention.o_proj"): value
        for name, value in weights_of(golden).items()
    }
    assert "vit.layers.0.attention.q_proj.weight" in renamed
    path = tmp_path / "model.safetensors"
    save_safetensors(renamed, path)
    model = models.load_image_model(SPECS["vit"], path).model
    out = run(model, jnp.asarray(golden["image"]))[0]
    np.testing.assert_allclose(out, golden["out"], atol=1e-4)


def test_positions_in_two_parts_and_tensors_of_another_model(tmp_path):
    golden, path = arrays_of("dinov2"), tmp_path / "model.safetensors"
    tensors = weights_of(golden)
    positions = tensors.pop("embeddings.position_embeddings")
    tensors["embeddings.Concat_6"] = positions[:, :1]
    tensors["embeddings.Reshape_1"] = positions[:, 1:]
    tensors["decoder.bias"] = np.ones(2, np.float32)
    save_safetensors(tensors, path)
    model = models.load_image_model(SPECS["dinov2"], path, ignore=("decoder.",)).model
    acts = run(model, jnp.asarray(golden["image"]))[1]
    np.testing.assert_allclose(acts["resid_final"], golden["out"], atol=1e-4)
    with pytest.raises(LoadError, match=r"no tensor begins with 'coder\.'"):
        models.load_image_model(SPECS["dinov2"], path, ignore=("coder.",))


def test_a_model_on_tokens_is_a_decoder_with_the_same_logits(tmp_path):
    model, golden = loaded("vit", tmp_path)
    first = jnp.asarray(golden["image"])
    images = jnp.stack([first, first[:, ::-1]])
    expected = jnp.stack([run(model, image)[0] for image in images])
    decoder, tokens = model.on_tokens(images)
    assert not decoder.causal
    logits = mijax.run(decoder, tokens)
    np.testing.assert_allclose(logits[:, 0], expected, atol=1e-5)
    # What heads, MLPs, embedding and biases add to a logit is the logit.
    split = mijax.lens.direct_logit_attribution(decoder, tokens, 3, position=0)
    assert split.heads.shape == (2, 2, 4)
    np.testing.assert_allclose(split.total(), expected[:, 3], atol=1e-4)
    # Activations of one image are patched into another, position by position.
    other = mijax.capture(decoder, tokens[1:], mijax.Site("resid_post"))
    edit = mijax.Patch(other).at("resid_post", layer=1)
    patched = mijax.run(decoder, tokens[:1], edit)[0, 0]
    np.testing.assert_allclose(patched, expected[1], atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "unused", "both"])
def test_a_file_that_does_not_fit_is_refused(change, tmp_path):
    tensors, path = weights_of(arrays_of("timm")), tmp_path / "model.safetensors"
    if change == "missing":
        del tensors["blocks.1.mlp.fc2.bias"]
    elif change == "unused":
        tensors["blocks.1.attn.q_norm.weight"] = np.ones(8, np.float32)
    else:
        tensors["norm.weight"] = np.ones(32, np.float32)
    says = {
        "missing": r"missing 'layers.1.out.bias'",
        "unused": r"unused 'blocks.1.attn.q_norm.weight'",
        "both": "are the same part of the model",
    }
    save_safetensors(tensors, path)
    with pytest.raises(LoadError, match=says[change]):
        models.load_image_model(SPECS["timm"], path)


def test_sizes_that_do_not_fit_are_refused():
    for change, says in (
        ({"patch": 7}, "multiple of patch 7"),
        ({"positioned": 2}, "positioned is 2, but there are 1"),
    ):
        spec = dataclasses.replace(SPECS["vit"], **change)
        with pytest.raises(ConfigError, match=says):
            models.init_image_model(spec, jax.random.key(0))
    model = models.init_image_model(SPECS["dinov2"], jax.random.key(0))
    with pytest.raises(ShapeError, match="multiples of 8"):
        model(jnp.zeros((3, 24, 20)))
    with pytest.raises(ConfigError, match="on_tokens takes a model whose linear head"):
        model.on_tokens(jnp.zeros((1, 3, 24, 24)))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("size", "shape"), [("smaller", (3, 4)), ("larger", (7, 6))])
def test_positions_are_resized_as_pytorch_does(size, shape, antialias):
    golden = arrays_of("positions")
    ours = resized_positions(jnp.asarray(golden["table"]), *shape, antialias=antialias)
    np.testing.assert_allclose(ours, golden[f"{size}.{antialias}"], atol=1e-5)


DATA = Path(
    os.environ.get("MIJAX_TEST_DATA")
    or Path(__file__).parents[2].parent / "shared" / "data"
)
FILE = DATA / "models" / "vit_mnist.safetensors"


@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} does not exist: weights")
def test_published_vit_of_mnist():
    found = models.load_image_model("vit-mnist", FILE)
    with np.load(DATA / "images" / "mnist_sample.npz") as sample:
        images, labels = sample["images"], sample["labels"]
    seven = found.input(images[labels == 7][0])
    # The reference has 17.0844; it may use another GELU.
    np.testing.assert_allclose(found.model(seven)[7], 17.0844, atol=2e-3)
    some = np.concatenate([np.flatnonzero(labels == k)[:100] for k in range(10)])
    x = jax.vmap(found.input)(jnp.asarray(images[some, ..., None]))
    logits = eqx.filter_jit(lambda m, x: jax.vmap(m)(x))(found.model, x)
    assert (np.asarray(logits.argmax(1)) == labels[some]).mean() == 0.995
