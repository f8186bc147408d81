"""YOLO11 against ultralytics with random weights."""

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
from mijax.models import Letterbox, Yolo11Spec
from mijax.models._yolo11 import YOLO11
from mijax.models._yolo26_blocks import Conv

GOLDEN = Path(__file__).parent.parent / "golden" / "yolo11.npz"
TINY = Yolo11Spec(width=1 / 32, classes=3, bins=8)
START = "weights."


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name].astype(np.float32) for name in arrays.files}


def load(golden, folder, change=lambda tensors: None):
    tensors = {k[len(START) :]: v for k, v in golden.items() if k.startswith(START)}
    change(tensors)
    save_safetensors(tensors, folder / "tiny.safetensors")
    box = Letterbox(size=96)
    return models.load_image_model(TINY, folder / "tiny.safetensors", input=box)


@pytest.fixture(scope="module")
def ran(golden, tmp_path_factory):
    loaded = load(golden, tmp_path_factory.mktemp("yolo11"))
    run = eqx.filter_jit(lambda model, x: mijax.harvest(model)(x))
    return loaded.model, *run(loaded.model, jnp.asarray(golden["image"]))


def test_stages_boxes_and_logits_are_those_of_ultralytics(golden, ran):
    _, output, acts = ran
    for i in (4, 8, 9, 10, 16, 22):
        ours = acts.stage[i]
        np.testing.assert_allclose(ours, golden[f"stage.{i}"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.logits, golden["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.boxes, golden["boxes"], rtol=1e-4, atol=1e-3)
    assert [x.shape for x in acts.bins] == [
        (4, 8, 8, 12),
        (4, 8, 4, 6),
        (4, 8, 2, 3),
    ]
    for x in acts.bins:
        np.testing.assert_allclose(x.sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0.7, 0.3])
def test_suppression_keeps_the_objects_that_ultralytics_keeps(overlap, golden, ran):
    # The image has the shape of the input: no letterbox in between.
    box = Letterbox(size=96)
    found = models.non_max_suppression(
        ran[1], input=box, shape=(96, 96), overlap=overlap
    )
    expected = golden[f"detections.{overlap}"]
    assert found.anchors.tolist() == golden[f"anchors.{overlap}"].tolist()
    assert found.classes.tolist() == expected[:, 5].tolist()
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-4)
    boxes = np.asarray(ran[1].boxes)[found.anchors]
    np.testing.assert_allclose(boxes, expected[:, :4], rtol=1e-4, atol=1e-3)
    least = float(found.scores[2])
    best = models.non_max_suppression(
        ran[1], input=box, shape=(96, 96), overlap=overlap, least=least, most=5
    )
    assert best.anchors.tolist() == found.anchors[:2].tolist()


def test_every_site_has_a_gradient(golden, ran):
    model, image = ran[0], jnp.asarray(golden["image"])
    metric = lambda out: jnp.tanh(out.logits).sum() + out.boxes[:, 0].sum()  # noqa: E731
    whole = mijax.model(model, image)
    asked = {name: mijax.Site(name) for name in whole.sites}
    found = mijax.gradients(whole, image, metric, asked)
    for name, gradient in found.items():
        layers = gradient if whole.sites[name].layers else [gradient]
        for i, one in enumerate(layers):
            assert float(jnp.abs(one).max()) > 1e-7, (name, i)


# With batch normalization, from yolo11.yaml of ultralytics.
PARAMETERS = {
    "yolo11n": 2_624_080,
    "yolo11s": 9_458_752,
    "yolo11m": 20_114_688,
    "yolo11l": 25_372_160,
    "yolo11x": 56_966_176,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name):
    is_conv = lambda node: isinstance(node, Conv)  # noqa: E731
    model = YOLO11.skeleton(models.image_presets()[name].spec)
    count = sum(x.size for x in jax.tree.leaves(model) if hasattr(x, "size"))
    convs = filter(is_conv, jax.tree.leaves(model, is_leaf=is_conv))
    assert count + sum(x.conv.out_channels for x in convs) == PARAMETERS[name]


def test_bad_files_and_arguments_are_refused(golden, ran, tmp_path):
    def with_one_to_one(tensors):
        tensors["model.23.one2one_cv2.0.2.bias"] = np.zeros(32, np.float32)

    with pytest.raises(LoadError, match=r"unused 'model.23.one2one_cv2"):
        load(golden, tmp_path, with_one_to_one)
    with pytest.raises(ConfigError, match=r"overlap 2.0"):
        models.non_max_suppression(
            ran[1], input=Letterbox(), shape=(96, 96), overlap=2.0
        )


def test_boxes_of_different_classes_do_not_suppress_each_other():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]])
    logits = np.array([[3, 0], [0, 2], [2.5, 0], [-3, -4]])
    output = models.DetectorOutput(jnp.asarray(boxes, jnp.float32), jnp.asarray(logits))
    arguments = {"input": Letterbox(size=32), "shape": (32, 32)}
    found = models.non_max_suppression(output, **arguments)
    # The third overlaps the first by 8 / 9; the score of the last is below 0.25.
    assert found.anchors.tolist() == [0, 1]
    assert found.classes.tolist() == [0, 1]
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3, -2])), rtol=1e-6)
    more = models.non_max_suppression(output, **arguments, overlap=0.9, least=0.0)
    assert more.anchors.tolist() == [0, 2, 1, 3]
