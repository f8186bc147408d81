"""InceptionV3 against timm with random weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import models
from mijax._errors import LoadError
from mijax.io import save_safetensors
from mijax.models._inception_v3 import INCEPTION_V3, MIXED

GOLDEN = Path(__file__).parent.parent / "golden" / "inception.npz"
TINY = models.InceptionV3Spec(width=1 / 16, classes=5)
START = "weights."


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name].astype(np.float32) for name in arrays.files}


@pytest.fixture(scope="module")
def file(golden, tmp_path_factory):
    tensors = {k[len(START) :]: v for k, v in golden.items() if k.startswith(START)}
    tensors["AuxLogits.fc.bias"] = np.zeros(5, np.float32)
    path = tmp_path_factory.mktemp("inception") / "tiny.safetensors"
    save_safetensors(tensors, path)
    return path


def test_blocks_logits_and_gradients(golden, file):
    model = models.load_image_model(TINY, file, ignore=("AuxLogits.",)).model
    image = jnp.asarray(golden["image"])
    whole = mijax.model(model, image)
    asked = {name: mijax.Site(name) for name in whole.sites}
    blocks = mijax.capture(whole, image, "mixed")
    for name, ours in zip(MIXED, blocks, strict=True):
        np.testing.assert_allclose(ours, golden[name], rtol=1e-4, atol=1e-4)
    logits = mijax.run(whole, image)
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4)
    found = mijax.gradients(whole, image, lambda out: out[0] - out[1], asked)
    for name, gradient in found.items():
        layers = gradient if whole.sites[name].layers else [gradient]
        for i, one in enumerate(layers):
            assert float(jnp.abs(one).max()) > 1e-7, (name, i)


def test_the_head_of_training_has_to_be_left_out(file):
    with pytest.raises(LoadError, match=r"unused 'AuxLogits"):
        models.load_image_model(TINY, file)


def test_size_is_the_published_one():
    # torchvision has 27,161,264 with the head of training. That head has a 1 by 1
    # convolution of 768 channels to 128, one of 5 by 5 to 768, and 1000 classes.
    extra = 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 768 * 1000 + 1000
    model = INCEPTION_V3.skeleton(models.InceptionV3Spec())
    arrays = jax.tree_util.tree_leaves_with_path(model)
    weights = [
        x.size
        for path, x in arrays
        if hasattr(x, "size") and not str(path[-1]).endswith(("mean", "variance"))
    ]
    assert sum(weights) == 27_161_264 - extra
