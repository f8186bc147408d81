"""CLIP against transformers."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import models
from mijax._errors import LoadError
from mijax.io import save_safetensors

GOLDEN = Path(__file__).parent.parent / "golden" / "vit.npz"
SPEC = models.clip_spec(
    (2, 32, 4, 48), (2, 24, 3, 40), patch=8, image=24, shared=16, vocab=50, context=9
)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        names = [name for name in arrays.files if name.startswith("clip.")]
        return {name[5:]: arrays[name] for name in names}


def weights_of(golden):
    names = [name for name in golden if name.startswith("weights.")]
    return {name[8:]: golden[name].astype(np.float32) for name in names}


def test_both_towers_and_zero_shot_are_those_of_transformers(golden, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_safetensors(weights_of(golden), path)
    clip = models.load_image_model(SPEC, path).model
    image, tokens = jnp.asarray(golden["image"]), jnp.asarray(golden["tokens"])

    @eqx.filter_jit
    def run(clip):
        zero_shot = clip.zero_shot(tokens)
        features = jax.vmap(clip.text_features)(tokens)
        return features, mijax.harvest(zero_shot)(image)

    features, (logits, acts) = run(clip)
    np.testing.assert_allclose(features, golden["text_embeds"], atol=1e-5)
    np.testing.assert_allclose(acts["features"], golden["image_embed"], atol=1e-5)
    np.testing.assert_allclose(acts["resid_post"], golden["blocks"], atol=1e-4)
    np.testing.assert_allclose(logits, golden["out"], atol=1e-4)
    assert acts["logits"].tolist() == logits.tolist()
    assert acts["projected"].shape == (16,)
    # Attention to images is not causal, that of texts is.
    assert bool((acts["pattern"] > 0).all())
    _, text = clip.text(tokens[0])
    assert not np.triu(np.asarray(text.blocks.pattern[0, :, 0]), 1).any()


@pytest.mark.parametrize("change", ["missing", "unused", "scale"])
def test_a_file_that_does_not_fit_is_refused(change, golden, tmp_path):
    tensors, path = weights_of(golden), tmp_path / "clip.safetensors"
    if change == "missing":
        del tensors["text_projection.weight"]
    elif change == "unused":
        tensors["classifier.weight"] = np.ones((2, 2), np.float32)
    else:
        del tensors["logit_scale"]
    says = {
        "missing": "missing 'text_projection.weight'",
        "unused": "unused 'classifier.weight'",
        "scale": "missing 'logit_scale'",
    }
    save_safetensors(tensors, path)
    with pytest.raises(LoadError, match=says[change]):
        models.load_image_model(SPEC, path)
