"""YOLO26 against ultralytics with random weights, and published weights."""

import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mijax
from mijax import models
from mijax._errors import ConfigError, LoadError, ShapeError
from mijax.io import save_safetensors
from mijax.models import Letterbox, Yolo26Spec
from mijax.models._yolo26 import YOLO26
from mijax.models._yolo26_blocks import Conv

GOLDEN = Path(__file__).parent.parent / "golden" / "yolo26.npz"
TINY = Yolo26Spec(width=1 / 32, classes=3)
START = "weights."


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name].astype(np.float32) for name in arrays.files}


def weights_of(golden):
    return {k[len(START) :]: v for k, v in golden.items() if k.startswith(START)}


@pytest.fixture(scope="module")
def tiny(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("yolo26") / "tiny.safetensors"
    save_safetensors(weights_of(golden), path)
    loaded = models.load_image_model(TINY, path, input=Letterbox(size=96))
    run = eqx.filter_jit(lambda model, x: mijax.harvest(model)(x))
    return loaded, run


def test_stages_and_detections_are_those_of_ultralytics(golden, tiny):
    loaded, run = tiny
    output, acts = run(loaded.model, jnp.asarray(golden["image"]))
    for i in (4, 8, 9, 10, 16, 22):
        ours = acts.stage[i]
        np.testing.assert_allclose(ours, golden[f"stage.{i}"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.logits, golden["logits"], rtol=1e-4, atol=1e-4)
    # The image has the shape of the input: no letterbox in between.
    box = Letterbox(size=96)
    found = models.detections(output, input=box, shape=(96, 96), least=0.0)
    expected = golden["detections"]
    assert len(found) == len(expected) == 126
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-4, atol=1e-6)
    # Scores of the last few differ by less than their rounding.
    sure = expected[:, 4] > 3e-4
    assert sure.sum() > 80
    assert found.classes[sure].tolist() == expected[sure, 5].tolist()
    boxes = np.asarray(output.boxes)[found.anchors]
    np.testing.assert_allclose(boxes[sure], expected[sure, :4], rtol=1e-4, atol=1e-3)


def test_layers_of_conv_are_the_named_convolutions(golden, tiny):
    loaded, run = tiny
    names, weights = loaded.model.conv_names, weights_of(golden)
    widths = [len(weights[f"{name}.conv.bias"]) for name in names]
    table = mijax.sites(loaded.model, golden["image"])
    assert [shape[0] for shape in table["conv"].shapes] == widths
    assert len(names) == 96
    # A convolution without weights returns zeros, and no other one does.
    for i in (0, 5, 14, 44, 95):
        zero = jax.tree.map(jnp.zeros_like, find(loaded.model)[i].conv)
        changed = eqx.tree_at(lambda m, i=i: find(m)[i].conv, loaded.model, zero)
        acts = run(changed, jnp.asarray(golden["image"]))[1].conv
        assert [j for j, x in enumerate(acts) if not x.any()] == [i]


def find(tree):
    return [x for x in jax.tree.leaves(tree, is_leaf=is_conv) if is_conv(x)]


def is_conv(node):
    return isinstance(node, Conv)


# Parameters with batch normalization and both heads, from yolo26.yaml of ultralytics.
PARAMETERS = {
    "yolo26n": 2_572_280,
    "yolo26s": 10_009_784,
    "yolo26m": 21_896_248,
    "yolo26l": 26_299_704,
    "yolo26x": 58_993_368,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name):
    def count(tree):
        leaves = sum(x.size for x in jax.tree.leaves(tree) if hasattr(x, "size"))
        return leaves + sum(x.conv.out_channels for x in find(tree))

    *stages, head = YOLO26.skeleton(models.image_presets()[name].spec).model
    assert count(stages) + 2 * count(head) == PARAMETERS[name]


@pytest.mark.parametrize("change", ["missing", "one-to-many", "shape"])
def test_a_file_that_does_not_fit_is_refused(change, golden, tmp_path):
    tensors, path = weights_of(golden), tmp_path / "weights.safetensors"
    if change == "missing":
        del tensors["model.9.cv1.conv.bias"]
    elif change == "one-to-many":
        tensors["model.23.cv2.0.2.bias"] = np.zeros(4, np.float32)
    else:
        tensors["model.0.conv.weight"] = np.zeros((8, 1, 3, 3), np.float32)
    save_safetensors(tensors, path)
    says = {
        "missing": "missing 'model.9.cv1.conv.bias'",
        "one-to-many": "unused 'model.23.cv2.0.2.bias'",
        "shape": "'model.0.conv.weight' has shape",
    }
    with pytest.raises(LoadError, match=says[change]):
        models.load_image_model(TINY, path)


def test_letterbox_places_the_picture_and_its_boxes(tmp_path):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (30, 41, 3)).astype(np.uint8)
    box = Letterbox(size=64)
    x = 255 * np.asarray(box(pixels))
    picture = Image.fromarray(pixels)
    # Enlarged, antialiasing makes no difference: Pillow's resizing.
    expected = picture.resize((64, 47), Image.Resampling.BILINEAR)
    inside = x.transpose(1, 2, 0)[8:55]
    assert np.abs(inside - np.asarray(expected)).max() < 1.001
    around = np.concatenate([x[:, :8], x[:, 55:]], axis=1)
    np.testing.assert_allclose(around, 114, rtol=1e-6)
    corners = np.array([[0, 0, 41, 30], [10, 5, 20, 25]], np.float32)
    square = box.to_input(corners, pixels.shape)
    np.testing.assert_allclose(square[0], [0, 8, 64, 8 + 30 * 64 / 41], rtol=1e-6)
    np.testing.assert_allclose(box.to_image(square, pixels.shape), corners, atol=1e-4)
    # A path, a picture, an array, floats: one input.
    picture.save(tmp_path / "picture.png")
    for same in (tmp_path / "picture.png", picture, pixels / 255):
        np.testing.assert_allclose(box(same), box(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: Letterbox(size=100), ConfigError, "multiple of 32"),
        (lambda: Letterbox(pad=300), ConfigError, "pad is 300"),
        (lambda: Letterbox()(np.zeros((4, 4))), ShapeError, r"shape \[4, 4\]"),
        (lambda: Letterbox()("no.png"), LoadError, r"no.png is not a picture"),
        (lambda: Letterbox()(3), ShapeError, "Expected an image, got 3"),
        (
            lambda: models.detections(None, input=Letterbox(), shape=(1, 1), least=2.0),
            ConfigError,
            "least is 2.0",
        ),
    ],
)
def test_bad_input_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_an_image_of_other_sides_is_refused(tiny):
    with pytest.raises(ShapeError, match="multiples of 32"):
        tiny[0].model(jnp.zeros((3, 64, 50)))


DATA = Path(
    os.environ.get("MIJAX_TEST_DATA")
    or Path(__file__).parents[2].parent / "shared" / "data"
)
FILE = DATA / "models" / "yolo26n.safetensors"


@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} does not exist: weights")
def test_published_yolo26n():
    loaded = models.load_image_model("yolo26n", FILE)
    run = eqx.filter_jit(lambda model, x: model(x))
    found = {}
    for name in ("bus.jpg", "cat.png"):
        path = DATA / "images" / name
        with Image.open(path) as picture:
            shape = picture.size[::-1]
        output = run(loaded.model, loaded.input(path))
        found[name] = models.detections(output, input=loaded.input, shape=shape)
    bus, cat = found["bus.jpg"], found["cat.png"]
    assert bus.classes[:4].tolist() == [5, 0, 0, 0]
    # How the reference resized is not known: Pillow and OpenCV differ by more.
    expected = [0.9108, 0.8803, 0.8758, 0.8469]
    np.testing.assert_allclose(bus.scores[:4], expected, atol=3e-4)
    np.testing.assert_allclose(bus.boxes[0], [1.0, 113.8, 403.8, 373.2], atol=0.15)
    assert cat.classes[0] == 15
    np.testing.assert_allclose(cat.scores[0], 0.9188, atol=3e-4)
