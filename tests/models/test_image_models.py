"""Image models against plain NumPy, and against numbers of published weights."""

import dataclasses
import functools
import io
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mijax
from mijax import models
from mijax._errors import ConfigError, LoadError, ShapeError
from mijax.io import save_safetensors
from mijax.models import CifarResNetSpec, ImageInput, MobileNetV2Spec
from mijax.models._mobilenet_v2 import Stage

RESNET = CifarResNetSpec(blocks=(1, 2), widths=(4, 8), classes=5)
MOBILENET = MobileNetV2Spec(
    stem=4, stages=(Stage(1, 4, 1, 1), Stage(2, 6, 2, 2)), head=10, classes=5
)
DRAW = np.random.default_rng(0)
IMAGE = DRAW.standard_normal((3, 16, 16))


def random(*shape):
    return (0.3 * DRAW.standard_normal(shape)).astype(np.float32)


def convolve(x, weight, stride, groups=1):
    """Sum shifted images, in float64."""
    out, inputs, size, _ = weight.shape
    pad = size // 2
    x = np.pad(x.astype(float), ((0, 0), (pad, pad), (pad, pad)))
    rows, columns = (side - 2 * pad for side in x.shape[1:])
    weight = weight.astype(float)
    total = 0
    for i in range(size):
        for j in range(size):
            part = x[:, i : i + rows : stride, j : j + columns : stride]
            part = part.reshape(groups, inputs, *part.shape[1:])
            kernel = weight[:, :, i, j].reshape(groups, out // groups, inputs)
            total = total + np.einsum("goi,girc->gorc", kernel, part)
    return total.reshape(out, *total.shape[2:])


def resnet_tensors():
    """A file with norms that are not trivial."""
    tensors = {}

    def norm(name, width):
        for field in ("weight", "bias", "running_mean"):
            tensors[f"{name}.{field}"] = random(width) + (field == "weight")
        tensors[f"{name}.running_var"] = np.abs(random(width)) + 0.5

    tensors["conv1.weight"] = random(4, 3, 3, 3)
    norm("bn1", 4)
    for name, inputs, width in (
        ("layer1.0", 4, 4),
        ("layer2.0", 4, 8),
        ("layer2.1", 8, 8),
    ):
        tensors[f"{name}.conv1.weight"] = random(width, inputs, 3, 3)
        tensors[f"{name}.conv2.weight"] = random(width, width, 3, 3)
        norm(f"{name}.bn1", width)
        norm(f"{name}.bn2", width)
    tensors |= {"linear.weight": random(5, 8), "linear.bias": random(5)}
    return tensors


def resnet_by_hand(tensors, x):
    def norm(name, x):
        column = lambda field: tensors[f"{name}.{field}"][:, None, None].astype(float)  # noqa: E731
        x = (x - column("running_mean")) / np.sqrt(column("running_var") + 1e-5)
        return x * column("weight") + column("bias")

    x = np.maximum(norm("bn1", convolve(x, tensors["conv1.weight"], 1)), 0)
    for name, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer2.1", 1)):
        h = convolve(x, tensors[f"{name}.conv1.weight"], stride)
        h = np.maximum(norm(f"{name}.bn1", h), 0)
        h = norm(f"{name}.bn2", convolve(h, tensors[f"{name}.conv2.weight"], 1))
        if stride == 2:
            x = np.pad(x[:, ::2, ::2], ((2, 2), (0, 0), (0, 0)))
        x = np.maximum(x + h, 0)
    return tensors["linear.weight"] @ x.mean((1, 2)) + tensors["linear.bias"]


# Output and input channels, size, stride, groups, ReLU6 behind it, shortcut over it.
CONVS = (
    (4, 3, 3, 2, 1, True, 0),
    (4, 1, 3, 1, 4, True, 0),
    (4, 4, 1, 1, 1, False, 2),
    (8, 4, 1, 1, 1, True, 0),
    (8, 1, 3, 2, 8, True, 0),
    (6, 8, 1, 1, 1, False, 0),
    (12, 6, 1, 1, 1, True, 0),
    (12, 1, 3, 1, 12, True, 0),
    (6, 12, 1, 1, 1, False, 3),
    (10, 6, 1, 1, 1, True, 0),
)


def mobilenet_tensors():
    tensors = {"classifier.1.weight": random(5, 10), "classifier.1.bias": random(5)}
    for i, (out, inputs, size, *_) in enumerate(CONVS):
        tensors[f"onnx::Conv_{468 + 3 * i}"] = 3 * random(out, inputs, size, size)
        tensors[f"onnx::Conv_{469 + 3 * i}"] = random(out)
    return tensors


def mobilenet_by_hand(tensors, x, cap=6):
    seen = [x]
    for i, (*_, stride, groups, active, back) in enumerate(CONVS):
        weight = tensors[f"onnx::Conv_{468 + 3 * i}"]
        bias = tensors[f"onnx::Conv_{469 + 3 * i}"][:, None, None]
        x = convolve(x, weight, stride, groups) + bias
        x = np.clip(x, 0, cap) if active else x
        seen.append(x + seen[-back] if back else x)
        x = seen[-1]
    weight, bias = tensors["classifier.1.weight"], tensors["classifier.1.bias"]
    return weight @ x.mean((1, 2)) + bias


UNCAPPED = dataclasses.replace(MOBILENET, cap=None)
CASES = {
    "resnet": (RESNET, resnet_tensors, resnet_by_hand),
    "mobilenet": (MOBILENET, mobilenet_tensors, mobilenet_by_hand),
    "mobilenet-relu": (
        UNCAPPED,
        mobilenet_tensors,
        functools.partial(mobilenet_by_hand, cap=np.inf),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_plain_numpy(name, tmp_path):
    spec, make, by_hand = CASES[name]
    tensors, path = make(), tmp_path / "weights.safetensors"
    save_safetensors(tensors, path)
    loaded = models.load_image_model(spec, path)
    expected = by_hand(tensors, IMAGE)
    assert np.ptp(expected) > 0.1
    out = loaded.model(jnp.asarray(IMAGE, jnp.float32))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert loaded.digest.startswith("sha256:")


def test_sites_of_both():
    image = jnp.ones((3, 16, 16))
    resnet = models.init_image_model(RESNET, jax.random.key(0))
    table = mijax.sites(resnet, image)
    assert list(table) == ["relu", "pooled", "logits"]
    assert table["relu"].axes == ("channel", "row", "column")
    assert table["relu"].shapes == ((4, 16, 16),) * 3 + ((8, 8, 8),) * 4
    mobilenet = models.init_image_model(MOBILENET, jax.random.key(0))
    table = mijax.sites(mobilenet, image)
    assert [shape[0] for shape in table["relu"].shapes] == [4, 4, 8, 8, 12, 12, 10]
    assert [shape[0] for shape in table["block"].shapes] == [4, 6, 6]


@pytest.mark.parametrize("change", ["missing", "unused", "shape"])
@pytest.mark.parametrize("name", CASES)
def test_a_file_that_does_not_fit_is_refused(name, change, tmp_path):
    spec, make, _ = CASES[name]
    tensors, path = make(), tmp_path / "weights.safetensors"
    first = next(iter(tensors))
    if change == "missing":
        del tensors[first]
    elif change == "unused":
        tensors["head.weight"] = random(2)
    else:
        tensors[first] = random(7, *tensors[first].shape[1:])
    save_safetensors(tensors, path)
    said = {"missing": "missing", "unused": "unused 'head.weight'", "shape": "shape"}
    with pytest.raises(LoadError, match=said[change]):
        models.load_image_model(spec, path)


def test_unknown_names_and_specs_are_refused(tmp_path):
    with pytest.raises(
        LoadError, match=r"no image model 'cifar-resnet21'.*cifar-resnet20"
    ):
        models.load_image_model("cifar-resnet21", tmp_path)
    with pytest.raises(LoadError, match="GPT2Spec is not a spec"):
        models.init_image_model(models.preset("gpt2"), jax.random.key(0))


def test_images_are_resized_as_pillow_does():
    pixels = DRAW.integers(0, 256, (61, 90, 3)).astype(np.uint8)
    to_input = ImageInput(mean=(0.0,) * 3, std=(1.0,) * 3, resize=32, crop=24)
    size = (32 * 90 // 61, 32)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    left = round((size[0] - 24) / 2)
    expected = np.asarray(image.crop((left, 4, left + 24, 28)))
    ours = 255 * to_input.pixels(to_input(pixels))
    # Pillow rounds its weights too, which tips a value that is nearly half way.
    assert np.abs(ours - expected).max() < 1.001
    assert (np.abs(ours - expected) > 0.001).mean() < 0.005


def test_images_are_resized_to_any_rows_and_columns():
    pixels = DRAW.integers(0, 256, (41, 30, 3)).astype(np.uint8)
    size, zero = (24, 20), (0.0,) * 3
    to_input = ImageInput(mean=zero, std=(1.0,) * 3, resize=size, method="cubic")
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    ours = 255 * to_input.pixels(to_input(pixels))
    assert ours.shape == (24, 20, 3)
    assert np.abs(ours - np.asarray(image)).max() < 1.001
    assert (np.abs(ours - np.asarray(image)) > 0.001).mean() < 0.01


def test_preprocessing_normalizes_and_comes_back():
    pixels = DRAW.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    for layout, axes in (
        ("channel row column", (2, 0, 1)),
        ("row column channel", (0, 1, 2)),
    ):
        to_input = ImageInput(layout=layout)
        x = to_input(pixels)
        expected = (pixels / 255 - np.array(to_input.mean)) / np.array(to_input.std)
        np.testing.assert_allclose(x, expected.transpose(axes), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(to_input.pixels(x), pixels / 255, atol=1e-6)
        np.testing.assert_allclose(to_input(pixels / 255), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: ImageInput(layout="row column"),
            ConfigError,
            "layout is 'row column'",
        ),
        (lambda: ImageInput(mean=(0.5,)), ConfigError, "mean has 1 numbers, std has 3"),
        (lambda: ImageInput()(np.zeros((3, 8, 8))), ShapeError, r"shape \[3, 8, 8\]"),
        (lambda: ImageInput(crop=9)(np.zeros((8, 8, 3))), ShapeError, "crop is 9"),
    ],
)
def test_preprocessing_refuses(call, error, says):
    with pytest.raises(error, match=says):
        call()


FOLDER = os.environ.get("MIJAX_TEST_DATA")
needs_weights = pytest.mark.skipif(
    FOLDER is None, reason="MIJAX_TEST_DATA is not set: a folder of models and images"
)


@needs_weights
def test_published_resnet20():
    folder = Path(FOLDER)
    loaded = models.load_image_model(
        "cifar-resnet20", folder / "models" / "cifar_resnet20.safetensors"
    )
    sample = np.load(folder / "images" / "cifar10_sample.npz")
    cat = int(np.flatnonzero(sample["labels"] == 3)[0])
    logits = loaded.model(loaded.input(sample["images"][cat]))
    np.testing.assert_allclose(logits[3], 14.5274, atol=1e-4)
    assert logits.argmax() == 3


@needs_weights
def test_published_mobilenet_v2():
    folder = Path(FOLDER)
    loaded = models.load_image_model(
        "mobilenet-v2-equalized", folder / "models" / "mobilenet_v2.safetensors"
    )
    with zipfile.ZipFile(folder / "images" / "imagenet_sample.zip") as archive:
        data = archive.read(archive.namelist()[0])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    logits = loaded.model(loaded.input(pixels))
    # From torch, with Pillow's own resizing.
    assert logits.argmax() == 0
    np.testing.assert_allclose(logits[0], 16.00694, atol=2e-2)
