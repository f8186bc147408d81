"""Gemma 3 with images: features of one image read each other in the decoder."""

import functools
import tempfile
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import golden, write

import mijax
from mijax import Patch, Site, models
from mijax._errors import LoadError, PositionError, ShapeError
from mijax.data import ImagePrompts
from mijax.models._gemma3_images import from_config, init, init_projector

NAME, COUNT, PLACE = "gemma3_images", 9, 62


@functools.cache
def loaded():
    with tempfile.TemporaryDirectory() as folder:
        return models.load(write(Path(folder), NAME), images=True)


@functools.cache
def batch():
    """Prompts of several lengths with an image at the same place."""
    images = golden(NAME)["two.images"][:, None]
    ids = [[0, PLACE, 17, 4], [0, PLACE, 8, 9, 11, 5]]
    return ImagePrompts.from_ids(ids, images, token=PLACE, expand=COUNT)


def test_features_read_later_ones_of_their_image_only():
    two = ImagePrompts.from_ids(
        [golden(NAME)["two.ids"].tolist()],
        [golden(NAME)["two.images"]],
        token=PLACE,
        expand=COUNT,
    )
    decoder, prompts = loaded().model.on_images(two)
    assert not decoder.causal
    pattern = np.asarray(mijax.capture(decoder, prompts, Site("pattern")))[0]
    places = [range(*(int(end[0]) for end in two.find(f"image_{i}"))) for i in (0, 1)]
    seq = pattern.shape[-1]
    for layer, window in ((0, 5), (1, seq)):
        for query in range(seq):
            for key in range(seq):
                same = any(query in place and key in place for place in places)
                reads = (key <= query or same) and query - key < window
                found = pattern[layer, query, :, key] > 0
                assert (found == reads).all(), (layer, query, key)


def test_padded_prompts_are_as_single_ones():
    decoder, both = loaded().model.on_images(batch())
    logits, new = mijax.run(decoder, both), mijax.generate(decoder, both, steps=3)
    whole = mijax.model(loaded().model, batch().example)
    same = mijax.run(whole, batch().inputs)
    for i in range(2):
        length = int(batch().prompts.lengths[i])
        alone, single = loaded().model.on_images(batch()[i])
        one = mijax.run(alone, single.tokens[:, :length])[0]
        np.testing.assert_allclose(logits[i, :length], one, atol=1e-4)
        np.testing.assert_allclose(same[i, :length], one, atol=1e-4)
        found = mijax.generate(alone, single.tokens[:, :length], steps=3)[0]
        assert new[i].tolist() == found.tolist()
        longer = jnp.concatenate([single.tokens[0, :length], found[:2]])
        assert int(mijax.run(alone, longer)[-1].argmax()) == int(found[2])


def test_a_sweep_is_a_loop_of_runs_within_an_image_too():
    decoder, both = loaded().model.on_images(batch())
    source = mijax.capture(decoder, both, Site("resid_pre"))[::-1]
    patch = Patch(source).at("resid_pre")
    metric = mijax.logit_difference(3, 4, position=both.last)
    found = mijax.sweep(
        decoder, both, patch, over=("layer", "position"), metric=metric
    ).values
    for layer, position in ((0, 3), (1, 5), (2, 9), (1, 0)):
        at = Patch(source).at("resid_pre", layer=layer, position=position)
        one = metric(mijax.run(decoder, both, at))
        chex.assert_trees_all_close(found[:, layer, position], one, atol=2e-5)


def test_images_at_different_places_are_refused():
    images = golden(NAME)["two.images"][:, None]
    moved = ImagePrompts.from_ids(
        [[0, PLACE, 17], [0, 8, PLACE]], images, token=PLACE, expand=COUNT
    )
    with pytest.raises(PositionError, match="prompt 1 differs from prompt 0"):
        loaded().model.on_images(moved)
    # The model of both towers takes them, and reads each as it is.
    whole = mijax.model(loaded().model, moved.example)
    logits = mijax.run(whole, moved.inputs)
    for i in range(2):
        decoder, single = loaded().model.on_images(moved[i])
        one = mijax.run(decoder, single)[0]
        np.testing.assert_allclose(logits[i], one, atol=1e-4)


def test_the_decoder_loads_without_images(tmp_path):
    text = models.load(write(tmp_path, NAME))
    chex.assert_trees_all_equal(text.model, loaded().model.text)
    assert text.input is None


def test_a_model_without_an_image_tower_is_refused(tmp_path):
    with pytest.raises(LoadError, match="type 'gemma3_text' reads no images"):
        models.load(write(tmp_path, "gemma3_text"), images=True)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(LoadError, match="has no image tower: give the Hugging Face"):
        models.load(tmp_path / "model.gguf", images=True)


def test_patches_that_do_not_fit_are_refused(tmp_path):
    def change(config, tensors):
        config["mm_tokens_per_image"] = 25

    with pytest.raises(LoadError, match="6 patches along a side do not split into a"):
        models.load(write(tmp_path, NAME, change), images=True)
    projector = init_projector(
        models.PoolSpec(read=4, embed=8, side=2), jax.random.key(0), jnp.float32
    )
    with pytest.raises(ShapeError, match="9 patches, but the projector makes 2 by 2"):
        projector(jnp.ones((9, 4)))


# The config of the 4B model.
SIZES = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


def test_the_published_model_has_the_number_of_parameters_of_transformers():
    spec = from_config(SIZES, "config.json")
    model = eqx.filter_eval_shape(
        lambda key: init(spec, key, jnp.float32), jax.random.key(0)
    )
    leaves = jax.tree.leaves(eqx.filter(model, lambda x: hasattr(x, "shape")))
    attention = model.text.blocks.attention
    fixed = attention.rotary.frequency.size + attention.window.size
    assert sum(leaf.size for leaf in leaves) - fixed == 4_300_079_472
