"""ResNets and ConvNeXt against timm, EfficientNet-Lite against its package."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import models
from mijax._errors import LoadError
from mijax.io import save_safetensors, save_torch
from mijax.models import ConvNeXtSpec, EfficientNetLiteSpec, ResNetSpec
from mijax.models._convnext import CONVNEXT
from mijax.models._efficientnet_lite import EFFICIENTNET_LITE, LiteStage
from mijax.models._resnet import RESNET

GOLDEN = Path(__file__).parent.parent / "golden" / "convnets.npz"
WIDTHS = (4, 4, 8, 8)
SPECS = {
    "basic": ResNetSpec((1, 2, 1, 1), WIDTHS, classes=5),
    "bottleneck": ResNetSpec((2, 1, 1, 1), WIDTHS, bottleneck=True, classes=5),
    "convnext": ConvNeXtSpec((1, 2, 1, 1), (4, 8, 8, 12), classes=5),
    "lite": EfficientNetLiteSpec(
        stages=(
            LiteStage(3, 1, 1, 4, 1),
            LiteStage(5, 2, 2, 8, 2),
            LiteStage(3, 2, 2, 8, 1),
        ),
        classes=5,
    ),
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
    return mijax.harvest(model, want=["block"])(image)


@pytest.mark.parametrize("case", SPECS)
def test_blocks_and_logits_are_those_of_the_reference(case, tmp_path):
    golden, path = arrays_of(case), tmp_path / "model.safetensors"
    save_safetensors(weights_of(golden), path)
    model = models.load_image_model(SPECS[case], path).model
    logits, acts = run(model, jnp.asarray(golden["image"]))
    for i, block in enumerate(acts["block"]):
        expected = golden[f"blocks.{i}"]
        np.testing.assert_allclose(block, expected, rtol=1e-4, atol=1e-4)
    assert i == SPECS[case].layers - 1
    np.testing.assert_allclose(logits, golden["out"], rtol=1e-4, atol=1e-4)


def test_files_of_torch_are_read(tmp_path):
    golden = arrays_of("lite")
    save_torch(weights_of(golden), tmp_path / "lite.pth")
    model = models.load_image_model(SPECS["lite"], tmp_path / "lite.pth").model
    logits = run(model, jnp.asarray(golden["image"]))[0]
    np.testing.assert_allclose(logits, golden["out"], rtol=1e-4, atol=1e-4)


# Parameters as published with the weights of torchvision and timm.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "convnext-tiny": 28_589_128,
    "convnext-small": 50_223_688,
    "convnext-base": 88_591_464,
    "efficientnet-lite0": 4_652_008,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name):
    families = (RESNET, CONVNEXT, EFFICIENTNET_LITE)
    family = next(family for family in families if name in family.presets)
    skeleton = family.skeleton(models.image_presets()[name].spec)
    found = jax.tree_util.tree_flatten_with_path(skeleton)[0]
    sizes = {jax.tree_util.keystr(path): leaf for path, leaf in found}
    count = sum(
        leaf.size
        for path, leaf in sizes.items()
        if hasattr(leaf, "size") and not path.endswith((".mean", ".variance"))
    )
    assert count == PARAMETERS[name]


@pytest.mark.parametrize("case", SPECS)
def test_a_file_that_does_not_fit_is_refused(case, tmp_path):
    tensors, path = weights_of(arrays_of(case)), tmp_path / "model.safetensors"
    name = next(iter(tensors))
    tensors["extra"] = tensors.pop(name)
    save_safetensors(tensors, path)
    with pytest.raises(LoadError, match=f"missing '{name}'; unused 'extra'"):
        models.load_image_model(SPECS[case], path)
