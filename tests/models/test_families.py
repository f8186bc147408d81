"""Every decoder family against transformers, and against itself with caches and edits.

A family is one row of `FAMILIES`: the name of a golden, and the kind of file. Weights
of the goldens come from their names (`family_weights`).
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import chex
import equinox as eqx
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import GOLDEN, golden, text, weights, write

import mijax
from mijax import Site, models
from mijax.core import SITES
from mijax.models._families import family_of
from mijax.models._family import leaf_shapes

FAMILIES = sorted(file.stem for file in GOLDEN.glob("*.npz"))
SHORT = 6
# Families whose blocks or attention differ, for laws of code that families share.
SWEPT = ("gemma2", "gemma3_text", "gpt_neox", "olmo3")


@functools.cache
def loaded(name):
    with tempfile.TemporaryDirectory() as folder:
        return models.load(write(Path(folder), name))


@eqx.filter_jit
def run(model, tokens):
    return jax.vmap(model)(tokens)


@functools.cache
def batch(name):
    """The prompt, and its first tokens with padding."""
    tokens = golden(name)["tokens"].astype(np.int32)
    short = np.where(np.arange(len(tokens)) < SHORT, tokens, 7)
    return jnp.asarray(np.stack([tokens, short]), jnp.int32)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_blocks_are_those_of_transformers(name):
    expected, model = golden(name), loaded(name).model
    logits, acts = run(model, batch(name))
    np.testing.assert_allclose(logits[0], expected["logits"], atol=1e-4)
    np.testing.assert_allclose(
        acts.blocks.resid_post[0], expected["blocks"], atol=1e-4, rtol=1e-5
    )
    chex.assert_trees_all_close(logits[1, :SHORT], logits[0, :SHORT], atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_generation_is_that_of_transformers(name):
    lengths = jnp.array([batch(name).shape[1], SHORT])
    found = mijax.generate(loaded(name).model, batch(name), steps=4, lengths=lengths)
    for row, length in zip(found, lengths, strict=True):
        assert row.tolist() == golden(name)[f"generated_{length}"].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_matters(name):
    model, tokens = loaded(name).model, batch(name)[0]
    shapes = mijax.sites(model, tokens)
    asked = {site: Site(site) for site in SITES if site in shapes}
    metric = mijax.logit_difference(3, 4, position=9)
    for site, gradient in mijax.gradients(model, tokens, metric, asked).items():
        by_layer = gradient if asked[site].layered else gradient[None]
        assert jnp.isfinite(gradient).all(), site
        if hasattr(model.blocks, "attends") and asked[site].layered:
            own = computes(model.blocks.attends, site)
            assert (by_layer[~own] == 0).all(), site
            by_layer = by_layer[own]
        if site in ("router_logits", "router_weights"):
            # The first layers of a DeepSeek-V3 have no experts.
            dense = getattr(loaded(name).spec, "dense", 0)
            assert (by_layer[:dense] == 0).all(), site
            by_layer = by_layer[dense:]
        assert (jnp.abs(by_layer).reshape(len(by_layer), -1).max(1) > 1e-7).all(), site


# Sites of either kind of layer, in models that have both.
ATTENTION = ("q", "k", "v", "q_rotated", "k_rotated", "scores", "pattern", "z_gate")
ATTENTION += ("z", "result")
MIXER = ("conv_out", "gdn_alpha", "gdn_beta", "mixer")


def computes(attends, site):
    """Tell for each layer whether it computes a site."""
    if site in ATTENTION:
        return attends > 0
    return attends < 1 if site.startswith(MIXER) else attends >= 0


@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.parametrize("site", ["resid_pre", "k"])
def test_sweep_is_a_loop_of_runs(name, site):
    model, tokens = loaded(name).model, batch(name)
    metric = mijax.logit_difference(3, 4, position=jnp.array([9, 5]))
    source = mijax.capture(model, tokens[::-1, ::-1], Site(site))
    patch = mijax.Patch(source)
    found = mijax.sweep(
        model, tokens, patch.at(site), over=("layer", "position"), metric=metric
    ).values
    for layer in range(3):
        for position in (0, 4, 5):
            at = patch.at(site, layer=layer, position=position)
            one = metric(mijax.run(model, tokens, at))
            chex.assert_trees_all_close(found[:, layer, position], one, atol=2e-5)


def gguf_file(path, name):
    """Writes a GGUF file; the `gguf` package knows names by architecture."""
    arrays, spec = golden(name), loaded(name).spec
    architecture, change = GGUF[name]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.embed)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.mlp)
    writer.add_head_count(spec.heads)
    writer.add_rope_freq_base(spec.rope_theta)
    if hasattr(spec, "kv_heads"):
        writer.add_head_count_kv(spec.kv_heads)
        writer.add_layer_norm_rms_eps(spec.eps)
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
    else:
        writer.add_layer_norm_eps(spec.eps)
        writer.add_rope_dimension_count(spec.rotated)
        writer.add_parallel_residual(spec.parallel)
    if hasattr(spec, "score_cap"):
        writer.add_attn_logit_softcapping(spec.score_cap)
        writer.add_final_logit_softcapping(spec.logit_cap)
    for field, add in SCALES.items():
        if hasattr(spec, field):
            getattr(writer, add)(getattr(spec, field))
    if getattr(spec, "windows", ()):
        writer.add_sliding_window(max(spec.windows))
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    spelled = gguf.get_tensor_name_map(kind, spec.layers)
    for key, value in weights(text(arrays["shapes"])).items():
        tensor = np.ascontiguousarray(change(key, value, spec))
        writer.add_tensor(spelled.get_name(key, (".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_it_is(key, value, spec):
    return value


def whole_gain(key, value, spec):
    return value + 1 if key.endswith("norm.weight") else value


def queries_first(key, value, spec):
    if "query_key_value" not in key:
        return value
    by_head = value.reshape(spec.heads, 3, -1, *value.shape[1:])
    return by_head.swapaxes(0, 1).reshape(value.shape)


def neighbors_turn(key, value, spec):
    if "q_proj" not in key and "k_proj" not in key:
        return value
    halves = value.reshape(-1, 2, spec.head_dim // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


# Name of the architecture, and how llama.cpp's converter changes tensors.
GGUF = {
    "gemma": ("gemma", whole_gain),
    "gemma2": ("gemma2", whole_gain),
    "gemma3_text": ("gemma3", whole_gain),
    "gpt_neox": ("gptneox", queries_first),
    "granite": ("granite", neighbors_turn),
    "olmo2": ("olmo2", as_it_is),
    "qwen2": ("qwen2", as_it_is),
    "qwen3": ("qwen3", as_it_is),
    "smollm3": ("smollm3", neighbors_turn),
}
# What these files leave out, since it is a constant of the published models.
CONSTANTS = {"query_scale", "windows", "rope_local", "rope_factor", "rotates"}
SCALES = {
    "embed_scale": "add_embedding_scale",
    "score_scale": "add_attention_scale",
    "residual_scale": "add_residual_scale",
    "logit_divisor": "add_logit_scale",
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf_files_hold_the_same_model(name, tmp_path):
    found, one = models.load(gguf_file(tmp_path / "a.gguf", name)), loaded(name)
    for field in dataclasses.fields(one.spec):
        if field.name not in CONSTANTS:
            expected = getattr(one.spec, field.name)
            assert getattr(found.spec, field.name) == expected, field.name
    expected = leaf_shapes(one.model)
    for path, leaf in leaf_shapes(found.model).items():
        if path not in family_of(one.spec).computed(one.spec):
            chex.assert_trees_all_close(leaf, expected[path], atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_again(name, tmp_path):
    one = loaded(name)
    models.save(one.model, one.spec, tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert again.spec == one.spec
    chex.assert_trees_all_equal(again.model, one.model)
