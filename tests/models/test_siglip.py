"""SigLIP against transformers."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import VISION_LANGUAGE, text, weights

import mijax
from mijax import models
from mijax._errors import ConfigError, LoadError, ShapeError
from mijax.io import save_safetensors

SIZES = (2, 16, 2, 24)
# From the model cards of google/siglip-base-patch16-224 and its successor.
PARAMETERS = {
    "siglip-base-patch16-224": 203_155_970,
    "siglip2-base-patch16-224": 375_187_970,
}
SPEC = models.siglip_spec(SIZES, SIZES, patch=4, image=12, vocab=40, context=7)


@pytest.fixture(scope="module")
def golden():
    with np.load(VISION_LANGUAGE / "siglip.npz") as arrays:
        return dict(arrays)


def loaded(golden, folder, change=lambda tensors: None):
    tensors = weights(text(golden["shapes"]))
    change(tensors)
    save_safetensors(tensors, folder / "siglip.safetensors")
    return models.load_image_model(SPEC, folder / "siglip.safetensors").model


def test_both_towers_and_zero_shot_are_those_of_transformers(golden, tmp_path):
    model = loaded(golden, tmp_path)
    image, tokens = jnp.asarray(golden["image"]), jnp.asarray(golden["tokens"])

    @eqx.filter_jit
    def run(model):
        features = jax.vmap(model.text_features)(tokens)
        texts = jax.vmap(model.text)(tokens)[1].blocks.resid_post
        return features, texts, mijax.harvest(model.zero_shot(tokens))(image)

    features, texts, (logits, acts) = run(model)
    np.testing.assert_allclose(features, golden["text_embeds"], atol=1e-5)
    np.testing.assert_allclose(
        jnp.moveaxis(texts, 0, 1), golden["text_blocks"], atol=1e-4
    )
    np.testing.assert_allclose(acts["resid_post"], golden["blocks"], atol=1e-4)
    np.testing.assert_allclose(acts["pooled"], golden["pooled"], atol=1e-4)
    np.testing.assert_allclose(acts["features"], golden["image_embed"], atol=1e-5)
    np.testing.assert_allclose(logits, golden["out"], atol=1e-4)


def test_every_site_matters_and_one_position_is_pooled(golden, tmp_path):
    zero_shot = loaded(golden, tmp_path).zero_shot(jnp.asarray(golden["tokens"]))
    image = jnp.asarray(golden["image"])
    model = mijax.model(zero_shot, image)
    assert model.sites["pool.pattern"].shapes == ((1, 2, 9),)
    asked = {name: mijax.Site(name) for name in model.sites}
    # A sum of logits would let the norm of the features cancel too much.
    metric = lambda out: out[0] - out[1]  # noqa: E731
    for name, gradient in mijax.gradients(model, image, metric, asked).items():
        layers = model.sites[name].layers
        for one in gradient if layers else gradient[None]:
            assert float(jnp.abs(one).max()) > 1e-7, name
    cut = mijax.Set(0.0).at("pool.pattern", head=0)
    assert not np.allclose(mijax.run(model, image, cut), mijax.run(model, image))


@pytest.mark.parametrize("change", ["missing", "unused", "bias"])
def test_a_file_that_does_not_fit_is_refused(change, golden, tmp_path):
    def broken(tensors):
        if change == "missing":
            del tensors["vision_model.head.probe"]
        elif change == "unused":
            tensors["vision_model.head.query"] = np.ones(2, np.float32)
        else:
            del tensors["logit_bias"]

    says = {
        "missing": "missing 'head.probe'",
        "unused": "unused 'head.query'",
        "bias": "missing 'logit_bias'",
    }
    with pytest.raises(LoadError, match=says[change]):
        loaded(golden, tmp_path, broken)


def test_short_texts_and_models_without_a_class_token_are_refused():
    model = models.init_image_model(SPEC, jax.random.key(0))
    with pytest.raises(ShapeError, match="pad every text to 7 tokens"):
        model.text_features(jnp.arange(6))
    spec = dataclasses.replace(SPEC.vision, pool="token", classes=2)
    with pytest.raises(ConfigError, match="needs a class token"):
        models.init_image_model(spec, jax.random.key(0))


def test_presets_have_the_published_number_of_parameters():
    for name, count in PARAMETERS.items():
        spec = models.image_presets()[name].spec
        model = eqx.filter_eval_shape(
            lambda key, spec=spec: models.init_image_model(spec, key),
            jax.random.key(0),
        )
        arrays = jax.tree.leaves(eqx.filter(model, lambda x: hasattr(x, "shape")))
        assert sum(array.size for array in arrays) == count, name
