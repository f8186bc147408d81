"""Models of images and text against transformers, and laws of their two views.

A model is one row of `MODELS`: a golden, and the number of features of an image.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import VISION_LANGUAGE, write

import mijax
from mijax import Patch, Set, Site, Zero, models
from mijax._errors import LoadError, PositionError, ShapeError
from mijax.data import ImagePrompts

MODELS = {"llava": 9, "idefics3": 4, "smolvlm": 4, "gemma3_images": 9}
PLACE = 62
# Those of transformers, without the last block and norm of the image tower.
PARAMETERS = {
    "llava-1.5-7b": 7_063_427_072 - 12_598_272,
    "llava-1.5-13b": 13_351_494_656 - 12_598_272,
    "smolvlm-256m": 256_484_928,
    "smolvlm-500m": 507_482_304,
}
METRIC = mijax.logit_difference(3, 4)


@functools.cache
def golden(name):
    with np.load(VISION_LANGUAGE / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def loaded(name):
    with tempfile.TemporaryDirectory() as folder:
        return models.load(write(Path(folder), name), images=True)


@functools.cache
def prompts(name, which):
    arrays = golden(name)
    ids, images = arrays[f"{which}.ids"].tolist(), arrays[f"{which}.images"]
    return ImagePrompts.from_ids([ids], [images], token=PLACE, expand=MODELS[name])


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("name", MODELS)
def test_both_towers_are_those_of_transformers(name, which):
    expected, batch = golden(name), prompts(name, which)
    tokens = expected[f"{which}.tokens"]
    assert batch.prompts.tokens[0].tolist() == tokens.tolist()
    model = mijax.model(loaded(name).model, batch.example)
    asked = {s: Site(s) for s in ("vision.resid_post", "resid_post", "logits")}
    acts = mijax.capture(model, batch.inputs, asked)
    vision, blocks, logits = (acts[s][0] for s in asked)
    # The last blocks of an image tower may not be read.
    theirs = expected[f"{which}.vision"][: len(vision)]
    np.testing.assert_allclose(vision, theirs, atol=1e-4)
    np.testing.assert_allclose(blocks, expected[f"{which}.blocks"], atol=1e-4)
    np.testing.assert_allclose(logits, expected[f"{which}.logits"], atol=1e-4)


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("name", MODELS)
def test_the_decoder_on_images_is_the_same_and_generates_as_transformers(name, which):
    decoder, batch = loaded(name).model.on_images(prompts(name, which))
    logits = mijax.run(decoder, batch)[0]
    np.testing.assert_allclose(logits, golden(name)[f"{which}.logits"], atol=1e-4)
    new = mijax.generate(decoder, batch, steps=4)[0]
    assert new.tolist() == golden(name)[f"{which}.generated"].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_every_site_of_both_towers_matters(name):
    batch = prompts(name, "two")
    model = mijax.model(loaded(name).model, batch.example)
    asked = {site: Site(site) for site in model.sites}
    for site, gradient in mijax.gradients(model, batch.inputs, METRIC, asked).items():
        layers = model.sites[site].layers
        for one in jnp.moveaxis(gradient, 1, 0) if layers else [gradient]:
            assert jnp.isfinite(one).all(), site
            assert float(jnp.abs(one).max()) > 1e-7, site


@functools.cache
def tiny():
    """A model, prompts of several lengths, and the same ones with other images."""
    model = mijax.testing.tiny_llava(jax.random.key(0))
    shape = (2, 2, 1, 3, 8, 8)
    images, others = jax.random.normal(jax.random.key(1), shape)
    batch = ImagePrompts.from_ids(
        [[1, 30, 5, 7], [1, 2, 30, 6, 9, 8]], images, token=30, expand=4
    )
    return model, batch, batch.with_images(others)


def last(batch):
    return mijax.logit_difference(3, 4, position=batch.last)


def test_padded_prompts_are_as_single_ones_and_batches_as_loops():
    model, batch, _ = tiny()
    decoder, both = model.on_images(batch)
    logits = mijax.run(decoder, both)
    new = mijax.generate(decoder, both, steps=3)
    for i in range(2):
        length = int(batch.prompts.lengths[i])
        alone, single = model.on_images(batch[i])
        one = mijax.run(alone, single.tokens[:, :length])[0]
        np.testing.assert_allclose(logits[i, :length], one, atol=2e-6)
        found = mijax.generate(alone, single.tokens[:, :length], steps=3)[0]
        assert new[i].tolist() == found.tolist()
    # With the cache as without it.
    longer = jnp.concatenate([both.tokens[1], new[1, :2]])
    assert int(mijax.run(decoder, longer)[-1].argmax()) == int(new[1, 2])


def test_image_tokens_of_one_run_are_patched_into_another():
    model, batch, other = tiny()
    decoder, mine, theirs = model.on_images(batch, other)
    expected = mijax.run(decoder, theirs)
    plain = mijax.run(decoder, mine)
    assert float(jnp.nanmax(jnp.abs(expected - plain))) > 0.1
    source = mijax.capture(decoder, theirs, Site("resid_pre"))
    span = mine.span("image")
    patched = mijax.run(
        decoder, mine, Patch(source).at("resid_pre", layer=0, position=span)
    )
    chex.assert_trees_all_close(patched, expected, atol=1e-6)
    own = mijax.capture(decoder, mine, Site("resid_pre"))
    same = mijax.run(decoder, mine, Patch(own).at("resid_pre", position=span))
    assert np.array_equal(same, plain, equal_nan=True)
    # The same on the model of both towers, where an image is patched in its tower too.
    whole, span = mijax.model(model, batch.example), batch.span("image")
    asked = {site: Site(site) for site in ("resid_pre", "vision.resid_pre")}
    source = mijax.capture(whole, other.inputs, asked)
    for patch in (
        Patch(source["resid_pre"]).at("resid_pre", layer=0, position=span),
        Patch(source["vision.resid_pre"]).at("vision.resid_pre", layer=0),
    ):
        found = mijax.run(whole, batch.inputs, patch)
        for one, theirs, end in zip(found, expected, batch.last, strict=True):
            np.testing.assert_allclose(one[: end + 1], theirs[: end + 1], atol=1e-6)


@pytest.mark.parametrize("site", ["resid_pre", "z", "k"])
def test_sweeps_of_both_views_are_loops_of_runs(site):
    model, batch, other = tiny()
    decoder, mine, theirs = model.on_images(batch, other)
    whole = mijax.model(model, batch.example)
    patch = Patch(mijax.capture(decoder, theirs, Site(site)))
    over, metric = ("layer", "position"), last(batch)
    fast = mijax.sweep(decoder, mine, patch.at(site), over=over, metric=metric).values
    slow = mijax.sweep(
        whole, batch.inputs, patch.at(site), over=over, metric=metric
    ).values
    chex.assert_trees_all_close(fast, slow, atol=2e-5)
    at = patch.at(site, layer=1, position=3)
    chex.assert_trees_all_close(
        fast[:, 1, 3], metric(mijax.run(decoder, mine, at)), atol=2e-5
    )


def test_heads_of_the_image_tower_are_swept():
    model, batch, _ = tiny()
    whole, metric = mijax.model(model, batch.example), last(batch)
    found = mijax.sweep(
        whole,
        batch.inputs,
        Zero().at("vision.z"),
        over=("layer", "head"),
        metric=metric,
    ).values
    for layer, head in ((0, 1), (1, 0)):
        cut = Zero().at("vision.z", layer=layer, head=head)
        one = metric(mijax.run(whole, batch.inputs, cut))
        chex.assert_trees_all_close(found[:, layer, head], one, atol=2e-5)
    assert np.ptp(found) > 1e-3


def test_knock_out_of_an_image_is_a_masked_softmax():
    model, batch, _ = tiny()
    decoder, mine = model.on_images(batch[0])
    keys = list(range(*(int(end[0]) for end in mine.find("image"))))
    cut = Set(-jnp.inf).at("scores", layer=1, position=mine.last, key_position=keys)
    asked = {site: Site(site) for site in ("pattern", "v", "z")}
    plain = mijax.capture(decoder, mine, asked)
    found = mijax.capture(decoder, mine, asked, cut)
    end = int(mine.last[0])
    row = plain["pattern"][0, 1, end].at[:, jnp.array(keys)].set(0)
    row = row / row.sum(-1, keepdims=True)
    np.testing.assert_allclose(found["pattern"][0, 1, end], row, atol=1e-6)
    z = jnp.einsum("hk,khd->hd", row, plain["v"][0, 1])
    np.testing.assert_allclose(found["z"][0, 1, end], z, atol=1e-5)


def test_lenses_read_the_decoder():
    model, batch, _ = tiny()
    decoder, mine = model.on_images(batch)
    parts = mijax.lens.direct_logit_attribution(decoder, mine, 3, position=mine.last)
    logits = mijax.run(decoder, mine)
    ends = [one[end, 3] for one, end in zip(logits, mine.last, strict=True)]
    np.testing.assert_allclose(parts.total(), jnp.stack(ends), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_again(name, tmp_path):
    one = loaded(name)
    models.save(one.model, one.spec, tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert again.spec == one.spec
    assert again.input == one.input
    chex.assert_trees_all_equal(again.model, one.model)


def test_names_of_other_versions_are_read_too(tmp_path):
    def older(config, tensors):
        for name in list(tensors):
            new = name.replace("vision_tower.", "vision_tower.vision_model.")
            tensors[new] = tensors.pop(name)

    def inner(config, tensors):
        for name in list(tensors):
            new = name.replace("language_model.model.", "model.language_model.")
            new = new.replace("language_model.lm_head", "lm_head")
            starts = ("vision_tower", "multi_modal")
            new = f"model.{new}" if new.startswith(starts) else new
            tensors[new] = tensors.pop(name)

    for i, change in enumerate((older, inner)):
        folder = tmp_path / str(i)
        folder.mkdir()
        again = models.load(write(folder, "llava", change))
        chex.assert_trees_all_equal(again.model, loaded("llava").model)


BROKEN = {
    "missing": "missing 'linear_1.bias'",
    "unused": "unused 'image_newline'",
    "twice": "are the same part",
    "layer": "'vision_feature_layer' is -4, but the image tower has 3 blocks",
    "decoder": "the decoder is 'mistral', only 'llama' is supported",
    "tower": "the image tower is 'pixtral'; supported are clip_vision_model",
    "key": "unknown key 'rotate_images'",
}


def broken(change, config, tensors):
    if change == "missing":
        del tensors["multi_modal_projector.linear_1.bias"]
    elif change == "unused":
        tensors["image_newline"] = np.ones(2, np.float32)
    elif change == "twice":
        tensors["lm_head.weight"] = tensors["language_model.lm_head.weight"]
    elif change == "layer":
        config["vision_feature_layer"] = -4
    elif change == "decoder":
        config["text_config"]["model_type"] = "mistral"
    elif change == "tower":
        config["vision_config"]["model_type"] = "pixtral"
    else:
        config["vision_config"]["rotate_images"] = True


@pytest.mark.parametrize("change", BROKEN)
def test_a_folder_that_does_not_fit_is_refused(change, tmp_path):
    write(tmp_path, "llava", functools.partial(broken, change))
    with pytest.raises(LoadError, match=BROKEN[change]):
        models.load(tmp_path)


@pytest.mark.parametrize(
    ("layer", "strategy", "block"),
    [(-1, "default", 2), (1, "full", 0), (-3, "full", 0)],
)
def test_any_layer_of_the_image_tower_is_read(layer, strategy, block, tmp_path):
    def change(config, tensors):
        config["vision_feature_layer"] = layer
        config["vision_feature_select_strategy"] = strategy

    found = models.load(write(tmp_path, "llava", change))
    arrays, skip = golden("llava"), int(strategy == "default")
    features = found.model.features(jnp.asarray(arrays["one.images"][0]))
    assert len(features) == found.input.count == 10 - skip
    projector = dataclasses.replace(loaded("llava").model.projector, skip=skip)
    expected = projector(jnp.asarray(arrays["one.vision"][block, 0]))
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_presets_have_the_number_of_parameters_of_transformers():
    for name, count in PARAMETERS.items():
        spec = models.preset(name)
        model = eqx.filter_eval_shape(
            lambda key, spec=spec: models.init(spec, key), jax.random.key(0)
        )
        arrays = jax.tree.leaves(eqx.filter(model, lambda x: hasattr(x, "shape")))
        rotary = model.text.blocks.attention.rotary.frequency.size
        assert sum(array.size for array in arrays) - rotary == count, name


def test_prompts_that_do_not_fit_are_refused(unchecked):
    model, batch, _ = tiny()
    few = ImagePrompts.from_ids([[1, 30, 5]], batch.images[:1], token=30, expand=3)
    with pytest.raises(PositionError, match=r"3 placeholders .token 30.*4 features"):
        model.on_images(few)
    with pytest.raises(ShapeError, match=r"on_images takes mijax.data.ImagePrompts"):
        model.on_images(batch.prompts)
    for one in (model, loaded("llava")):
        with pytest.raises(ShapeError, match=r"model.text for texts, or what model"):
            mijax.run(one, jnp.arange(4))
    with pytest.raises(ShapeError, match=r"Expected {'tokens': ..., 'images'"):
        mijax.model(model, jnp.arange(4))
    # Logits of a prompt with too many placeholders are NaN, not those of a repeat.
    whole = mijax.model(model, batch.example)
    many = batch.inputs | {"tokens": jnp.full_like(batch.prompts.tokens, 30)}
    assert bool(jnp.isnan(mijax.run(whole, many)[:, -1]).all())
