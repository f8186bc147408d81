"""Every encoder family against transformers, and against itself with edits.

A row is the name of a golden: a family and its head.
"""

import functools
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import ENCODERS, golden, write

import mijax
from mijax import Site, models, nn
from mijax._errors import LoadError, ShapeError, SiteError
from mijax.core import SITES
from mijax.data import Prompts
from mijax.models._families import family_of
from mijax.models._family import leaf_shapes

NAMES = sorted(file.stem for file in ENCODERS.glob("*.npz"))
FAMILIES = sorted({name.split("_")[0] for name in NAMES})
SHORT = 6
SEGMENTED = [name for name in NAMES if "segments" in golden(name).files]


@functools.cache
def loaded(name):
    with tempfile.TemporaryDirectory() as folder:
        return models.load(write(Path(folder), name))


@functools.cache
def prompts(name):
    """The prompt, and its first tokens with padding."""
    tokens = golden(name)["tokens"].tolist()
    return Prompts.from_ids([tokens, tokens[:SHORT]], pad=7)


def outputs(name, logits):
    """Outputs that transformers gives: those of the class token for classes."""
    return logits[..., 0, :] if name.endswith("classes") else logits


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_blocks_are_those_of_transformers(name):
    expected, model = golden(name), loaded(name).model
    logits, acts = jax.jit(lambda model, ids: model(ids))(
        model, jnp.asarray(expected["tokens"], jnp.int32)
    )
    found = outputs(name, logits)
    np.testing.assert_allclose(found, expected["logits"], atol=1e-4)
    np.testing.assert_allclose(acts.embed, expected["embed"], atol=1e-4)
    np.testing.assert_allclose(acts.blocks.resid_post, expected["blocks"], atol=1e-4)
    final = model.norm(acts.blocks.resid_post[-1])
    np.testing.assert_allclose(acts.resid_final, final, atol=1e-6)
    # Blocks of BERT and its relatives normalize the stream themselves.
    assert isinstance(model.norm, nn.Identity) == (not name.startswith("modernbert"))


@pytest.mark.parametrize("name", SEGMENTED)
def test_segments_are_those_of_transformers(name):
    expected, model = golden(name), loaded(name).model
    tokens, ids = expected["tokens"].astype(np.int32), expected["segments"]
    found = mijax.run(model.with_segments(ids), tokens)
    np.testing.assert_allclose(
        outputs(name, found), expected["logits_segments"], atol=1e-4
    )
    both = np.stack([ids, np.zeros_like(ids)])
    each = jax.vmap(lambda ids: mijax.run(model.with_segments(ids), tokens))(both)
    chex.assert_trees_all_close(each[0], found, atol=2e-5)
    chex.assert_trees_all_close(each[1], mijax.run(model, tokens), atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_prompt_is_what_it_is_alone(family):
    model, both = loaded(f"{family}_masked").model, prompts(f"{family}_masked")
    acts = mijax.capture(model, both, {n: Site(n) for n in ("z", "resid_post")})
    logits = mijax.run(model, both)
    assert jnp.isnan(logits[1, SHORT:]).all()
    for row, n in enumerate((both.tokens.shape[1], SHORT)):
        ids = both.tokens[row, :n]
        alone = mijax.capture(model, ids, {n: Site(n) for n in acts})
        chex.assert_trees_all_close(logits[row, :n], mijax.run(model, ids), atol=2e-5)
        for site, value in acts.items():
            chex.assert_trees_all_close(value[row, :, :n], alone[site], atol=2e-5)
    pooled = nn.mean_pool(acts["resid_post"][:, -1], both.lengths)
    alone = mijax.capture(model, both.tokens[1, :SHORT], Site("resid_post"))[-1]
    chex.assert_trees_all_close(pooled[1], alone.mean(0), atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_matters(family):
    model = loaded(f"{family}_masked").model
    tokens = prompts(f"{family}_masked").tokens[0]
    shapes = mijax.sites(model, tokens)
    asked = {site: Site(site) for site in SITES if site in shapes}
    assert {"embed", "q", "k", "v", "scores", "pattern", "z", "attn_out"} <= set(asked)
    metric = mijax.logit_difference(3, 4, position=4)
    for site, gradient in mijax.gradients(model, tokens, metric, asked).items():
        by_layer = gradient if asked[site].layered else gradient[None]
        assert jnp.isfinite(gradient).all(), site
        assert (jnp.abs(by_layer).reshape(len(by_layer), -1).max(1) > 1e-7).all(), site


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "k"])
def test_sweep_is_a_loop_of_runs(family, site):
    model, both = loaded(f"{family}_masked").model, prompts(f"{family}_masked")
    metric = mijax.logit_difference(3, 4, position=2)
    source = mijax.capture(model, both.tokens[::-1, ::-1], Site(site))
    patch = mijax.Patch(source)
    found = mijax.sweep(
        model, both, patch.at(site), over=("layer", "position"), metric=metric
    ).values
    for layer in range(3):
        for position in (0, 5):
            at = patch.at(site, layer=layer, position=position)
            one = metric(mijax.run(model, both, at))
            chex.assert_trees_all_close(found[:, layer, position], one, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_again(name, tmp_path):
    one = loaded(name)
    models.save(one.model, one.spec, tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert again.spec == one.spec
    chex.assert_trees_all_equal(again.model, one.model)


def unknown(config, tensors):
    config["attention_sinks"] = 4


def unused(config, tensors):
    tensors["encoder.layer.0.extra.weight"] = np.zeros(3, np.float32)


def decoder(config, tensors):
    config["is_decoder"] = True


def untied(config, tensors):
    config["tie_word_embeddings"] = False


def other_head(config, tensors):
    config["architectures"] = ["BertForQuestionAnswering"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (unknown, "attention_sinks"),
        (unused, "extra"),
        (decoder, "is_decoder"),
        (untied, "tie_word_embeddings"),
        (other_head, "architectures"),
    ],
)
def test_what_a_config_does_not_say_is_refused(family, change, word, tmp_path):
    with pytest.raises(LoadError, match=word) as caught:
        models.load(write(tmp_path, f"{family}_masked", change))
    assert "\n" not in str(caught.value)


def test_keys_of_early_versions_change_nothing(tmp_path):
    def early(config, tensors):
        config |= {"eos_token_ids": 0, "output_past": True, "down_scale_factor": 1}

    found = models.load(write(tmp_path, "albert_masked", early))
    chex.assert_trees_all_equal(found.model, loaded("albert_masked").model)


def test_layers_of_albert_hold_the_same_weights():
    blocks = loaded("albert_masked").model.blocks
    for leaf in jax.tree.leaves(blocks):
        assert leaf.shape[0] == 3
        chex.assert_trees_all_equal(leaf, jnp.broadcast_to(leaf[:1], leaf.shape))


def test_older_files_of_bert(tmp_path):
    """Norms as TensorFlow names them, heads of pre-training, a repeated embedding."""

    def older(config, tensors):
        config["architectures"] = ["BertForPreTraining"]
        for name in [name for name in tensors if "LayerNorm" in name]:
            new = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[new] = tensors.pop(name)
        word = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.weight"] = word
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 16), np.float32)
        tensors["bert.pooler.dense.weight"] = np.zeros((16, 16), np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(20)[None]

    found = models.load(write(tmp_path, "bert_masked", older))
    chex.assert_trees_all_equal(found.model, loaded("bert_masked").model)

    def differs(config, tensors):
        tensors["cls.predictions.decoder.weight"] = np.ones((64, 16), np.float32)

    with pytest.raises(LoadError, match=r"differs from .*word_embeddings"):
        models.load(write(tmp_path, "bert_masked", differs))


def test_what_needs_another_kind_of_model_is_refused():
    model, tokens = loaded("bert_masked").model, jnp.arange(5)
    with pytest.raises(ShapeError, match="causal"):
        mijax.generate(model, tokens, steps=1)
    with pytest.raises(SiteError, match="after each write"):
        mijax.circuits.Graph.of(model)
    for ids in ([0, 2], [[0, 1]], [0] * 21, [0.5]):
        with pytest.raises(ShapeError, match="Segments are"):
            model.with_segments(ids)
    with pytest.raises(ShapeError, match="length for each prompt"):
        nn.mean_pool(jnp.ones((2, 3, 4)), jnp.array([1]))


def test_some_outputs_only():
    """A metric that reads two outputs computes only those."""
    for name in NAMES:
        model = loaded(name).model
        x = jax.random.normal(jax.random.key(0), (4, 16))
        ids = jnp.array([[2, 0]] * 4)
        every = jnp.take_along_axis(model.unembed(x), ids, 1)
        chex.assert_trees_all_close(model.unembed(x, ids), every, atol=1e-5)


def test_presets_have_as_many_parameters_as_published():
    """Those of transformers' models of masked tokens."""
    for name, count in PARAMETERS.items():
        spec = models.preset(name)
        family = family_of(spec)
        leaves, given = leaf_shapes(family.skeleton(spec)), family.computed(spec)
        assert count == sum(x.size for path, x in leaves.items() if path not in given)


# BertForMaskedLM and so on, without the pooler.
PARAMETERS = {
    "bert-base-uncased": 109_514_298,
    "bert-large-uncased": 335_174_458,
    # Without rows of positions before the first token.
    "roberta-base": 124_697_433 - 2 * 768,
    "roberta-large": 355_412_057 - 2 * 1024,
    "distilbert-base-uncased": 66_985_530,
    # With a copy of the block for every layer.
    # With a first norm that the first block does not apply.
    "modernbert-base": 149_655_232 + 768,
    "modernbert-large": 395_881_664 + 1024,
    "albert-base-v2": 11_221_680 + 11 * 7_087_872,
}
