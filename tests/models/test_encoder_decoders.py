"""Every encoder-decoder against transformers, and against itself with edits.

A row is the name of a golden: a family and what differs in it.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import ENCODER_DECODERS, golden, write
from tokenizers import Tokenizer as Backend
from tokenizers import models as kinds
from tokenizers.pre_tokenizers import Whitespace

import mijax
from mijax import Site, circuits, models, nn
from mijax._errors import LoadError, ShapeError, TokenError
from mijax.data import Prompts, Tokenizer
from mijax.models._families import family_of
from mijax.models._family import leaf_shapes

NAMES = sorted(file.stem for file in ENCODER_DECODERS.glob("*.npz"))
# One of each kind of input, for what does not depend on the weights.
KINDS = ["t5_relu", "whisper"]
METRIC = lambda logits: logits[-1, 3] - logits[-1, 4]  # noqa: E731


@functools.cache
def loaded(name):
    with tempfile.TemporaryDirectory() as folder:
        return models.load(write(Path(folder), name))


@functools.cache
def function(name):
    model = loaded(name).model
    return mijax.model(model, model.example)


@functools.cache
def sources(name):
    """The sources of a golden, with padding where they have any."""
    arrays = golden(name)
    if "lengths" not in arrays.files:
        return arrays["source"]
    pairs = zip(arrays["source"], arrays["lengths"], strict=True)
    return Prompts.from_ids([row[:n].tolist() for row, n in pairs], pad=7)


def lengths(name):
    """Positions of each source that are not padding."""
    arrays = golden(name)
    count = arrays["memory"].shape[1]
    return arrays["lengths"] if "lengths" in arrays.files else [count] * 2


@functools.cache
def inputs(name):
    return loaded(name).model.inputs(sources(name), golden(name)["target"])


def single(name, i):
    """One example, without padding."""
    source = golden(name)["source"][i]
    source = source[: lengths(name)[i]] if source.ndim == 1 else source
    return loaded(name).model.inputs(source, golden(name)["target"][i])


SITES = (
    *("encoder.resid_post", "encoder.resid_final", "encoder.z", "resid_post"),
    *("cross.pattern", "cross.z", "logits"),
)


@functools.cache
def captured(name):
    return mijax.capture(function(name), inputs(name), {n: Site(n) for n in SITES})


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_blocks_are_those_of_transformers(name):
    expected, found = golden(name), captured(name)
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    close(found["logits"], expected["logits"])
    close(found["resid_post"].swapaxes(0, 1), expected["decoder"])
    pattern = found["cross.pattern"].transpose(1, 0, 3, 2, 4)
    close(pattern, expected["cross"])
    for i, n in enumerate(lengths(name)):
        close(found["encoder.resid_final"][i, :n], expected["memory"][i, :n])
        blocks = found["encoder.resid_post"][i, :, :n]
        close(blocks, expected["encoder"][:, i, :n])


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_that_of_transformers_and_of_runs_without_a_cache(name):
    model, expected = loaded(name).model, golden(name)["generated"]
    decoder, start = model.on_source(sources(name))
    steps = expected.shape[1]
    new = mijax.generate(decoder, start, steps=steps)
    np.testing.assert_array_equal(new, expected)
    np.testing.assert_array_equal(
        mijax.generate(model, sources(name), steps=steps), expected
    )
    text = jnp.concatenate([start, new[:, :-1]], 1)
    logits = mijax.run(decoder, text)[:, start.shape[1] - 1 :]
    top = jnp.sort(logits, -1)[..., -2:]
    assert (top[..., 1] - top[..., 0] > 1e-4).all(), "no clear winner"
    np.testing.assert_array_equal(logits.argmax(-1), expected)
    both = mijax.run(function(name), model.inputs(sources(name), text))
    chex.assert_trees_all_close(both[:, start.shape[1] - 1 :], logits, atol=2e-5)


def test_a_padded_source_is_what_it_is_alone():
    name = "t5_relu"
    found = captured(name)
    n = golden(name)["lengths"][1]
    alone = mijax.capture(function(name), single(name, 1), {s: Site(s) for s in SITES})
    for site, value in alone.items():
        own = found[site][1]
        if site.startswith("encoder"):
            own = own[..., :n, :] if own.ndim < 4 else own[:, :n]
        if site == "cross.pattern":
            assert (own[..., n:] == 0).all()
            own = own[..., :n]
        chex.assert_trees_all_close(own, value, atol=2e-5)
    decoder, start = loaded(name).model.on_source(single(name, 1)["source"])
    one = mijax.generate(decoder, start, steps=4)
    np.testing.assert_array_equal(one, golden(name)["generated"][1, :4])


@pytest.mark.parametrize("name", KINDS)
def test_an_edit_at_every_layer_of_every_site_changes_the_output(name):
    """By what the gradient says."""
    example, model = single(name, 1), function(name)
    every = {site: Site(site) for site in model.sites}
    found = mijax.gradients(model, example, METRIC, every)
    for site, gradient in found.items():
        each = gradient if model.sites[site].layers else gradient[None]
        assert (jnp.abs(each).reshape(len(each), -1).max(1) > 1e-7).all(), site
    before = METRIC(mijax.run(model, example))
    for site in ("encoder.q", "cross.k", "cross.scores", "cross.attn_norm_scale"):
        gradient = found[site][0]
        norm = jnp.linalg.norm(gradient)
        step = mijax.Add(0.01 * gradient / norm).at(site, layer=0)
        change = METRIC(mijax.run(model, example, step)) - before
        np.testing.assert_allclose(change, 0.01 * norm, rtol=0.1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "site", "over"),
    [
        ("t5_relu", "encoder.resid_pre", ("layer", "position")),
        ("t5_relu", "cross.k", ("layer", "key_position")),
        ("whisper", "encoder.z", ("layer", "head")),
        ("whisper", "resid_mid", ("layer", "position")),
    ],
)
def test_sweep_is_a_loop_of_runs(name, site, over):
    model, both = function(name), inputs(name)
    source = mijax.capture(model, both, Site(site))[::-1]
    patch = mijax.Patch(source)
    found = mijax.sweep(model, both, patch.at(site), over=over, metric=METRIC).values
    for layer, i in ((0, 1), (1, 0), (1, 3)):
        run = mijax.run(
            model, both, patch.at(site, **dict(zip(over, (layer, i), strict=True)))
        )
        one = jax.vmap(METRIC)(run)
        chex.assert_trees_all_close(found[:, layer, i], one, atol=2e-5)
        assert jnp.abs(one - jax.vmap(METRIC)(mijax.run(model, both))).max() > 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_sweep_of_the_decoder_is_that_of_the_whole(name):
    """Packed rows read the memory of their prompt."""
    decoder, _ = loaded(name).model.on_source(sources(name))
    both, model = inputs(name), function(name)
    target, at = both["target"], both["target"].shape[1] - 1
    scale = mijax.Scale(0.5).at("z")
    metric = mijax.logit_difference(3, 4, position=at)
    over = ("layer", "position", "head")
    part = mijax.sweep(decoder, target, scale, over=over, metric=metric)
    whole = mijax.sweep(model, both, scale, over=over, metric=METRIC)
    chex.assert_trees_all_close(part.values, whole.values, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_streams_are_the_model(name):
    model, example = loaded(name).model, single(name, 0)
    streams = circuits.StreamModel(model.on_streams, example)
    run = eqx.filter_jit(lambda model, one: model(one))
    chex.assert_trees_all_close(run(streams, example), run(model, example), atol=2e-5)
    graph = circuits.Graph.of(streams)
    names = set(graph.senders)
    assert {"encoder.a0.h3", "encoder.m1", "a0.h1", "cross.a1.h1", "m1"} <= names
    edges = set(circuits.Circuit.full(graph).names())
    assert "cross.a0.h0<k> <- encoder.m1" in edges
    assert "cross.a0.h0<q> <- encoder.m1" not in edges
    clean = jax.tree.map(lambda a: a[:1], inputs(name))
    corrupt = clean | {"source": clean["source"] + 1}
    task = circuits.Task(clean, corrupt, metric=METRIC)
    ends = [circuits.Circuit.full(graph), circuits.Circuit.empty(graph)]
    found = circuits.run_circuits(streams, task, ends)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), clean, corrupt)
    expected = jax.vmap(METRIC)(mijax.run(function(name), both))
    chex.assert_trees_all_close(found.reshape(-1), expected, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_again(name, tmp_path):
    one = loaded(name)
    models.save(one.model, one.spec, tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert again.spec == one.spec
    chex.assert_trees_all_equal(again.model, one.model)
    assert f"{one.model.n_layers} layers, vocabulary of 64" in repr(one)


def test_distances_are_in_the_buckets_of_transformers():
    arrays, distance = golden("t5_relu"), jnp.arange(-200, 201)
    names = [name for name in arrays.files if name.startswith("buckets")]
    assert len(names) == 10
    for name in names:
        count, far, causal = map(int, name.split("_")[1:])
        relative = nn.RelativePositions(jnp.ones((count, 1)), far, bool(causal))
        np.testing.assert_array_equal(relative.bucket(distance), arrays[name])


def test_text_is_written_for_text():
    words = {f"w{i}": i for i in range(64)}
    backend = Backend(kinds.WordLevel(words, "w0"))
    backend.pre_tokenizer = Whitespace()
    one = loaded("t5_relu")
    lm: Any = models.Loaded(one.model, Tokenizer(backend), one.spec, "here", "")
    tokens = golden("t5_relu")["source"]
    texts = [
        " ".join(f"w{i}" for i in row[:n])
        for row, n in zip(tokens, golden("t5_relu")["lengths"], strict=True)
    ]
    expected = golden("t5_relu")["generated"]
    np.testing.assert_array_equal(mijax.generate(lm, texts, steps=5), expected)
    np.testing.assert_array_equal(mijax.generate(lm, texts[1], steps=5), expected[1])
    with pytest.raises(TokenError, match="tokenizer"):
        mijax.generate(one.model, "w1", steps=1)
    with pytest.raises(ShapeError, match=r"on_source\(source\)"):
        mijax.run(lm, texts[0])


def test_what_does_not_fit_is_refused():
    model = loaded("t5_relu").model
    with pytest.raises(ShapeError, match="one target for each source"):
        model.inputs([[1, 2], [3, 4]], [0, 1])
    with pytest.raises(ShapeError, match="has no source"):
        mijax.run(model.decoder, [1, 2])
    decoder, _ = model.on_source(jnp.ones((2, 3), jnp.int32))
    for target in (jnp.ones((3, 2), jnp.int32), jnp.ones((1, 2), jnp.int32), [0, 1]):
        with pytest.raises(ShapeError, match="holds 2 sources"):
            mijax.run(decoder, target)
    assert jnp.isnan(decoder(jnp.ones(2, jnp.int32))[0]).all()  # of which source?
    with pytest.raises(ShapeError, match=r"spectrogram \[5, 14\].*lm.input"):
        loaded("whisper").model.inputs(np.ones((5, 12)), [3])
    lone, _ = model.on_source([1, 2, 3])
    found = mijax.run(lone, jnp.ones((3, 2), jnp.int32))
    chex.assert_trees_all_close(found[2], found[0], atol=1e-6)


def unknown(config, tensors):
    config["attention_sinks"] = 4


def unused(config, tensors):
    tensors["model.encoder.0.extra.weight"] = np.zeros(3, np.float32)


def encoder_only(config, tensors):
    config["is_encoder_decoder"] = False


def other_activation(config, tensors):
    config |= {"feed_forward_proj": "gated-mish", "dense_act_fn": "mish"}


def disagree(config, tensors):
    config["dense_act_fn"] = "silu"


def two_tables(config, tensors):
    tensors["lm_head.weight"] = np.ones((64, 16), np.float32)


def many_layers(config, tensors):
    config["num_layers"] = 10**6


def scaled(config, tensors):
    config["scale_embedding"] = True


def odd_heads(config, tensors):
    config["encoder_attention_heads"] = 3


def biased_keys(config, tensors):
    tensors["model.encoder.layers.0.self_attn.k_proj.bias"] = np.ones(16, np.float32)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("t5_relu", unknown, "attention_sinks"),
        ("t5_relu", unused, "extra"),
        ("t5_relu", encoder_only, "is_encoder_decoder"),
        ("t5_relu", other_activation, "gated-mish"),
        ("t5_relu", disagree, "give keys that agree"),
        ("t5_relu", two_tables, r"lm_head.weight' differs from 'shared"),
        ("t5_relu", many_layers, "layers"),
        ("whisper", unknown, "attention_sinks"),
        ("whisper", unused, "extra"),
        ("whisper", encoder_only, "is_encoder_decoder"),
        ("whisper", scaled, "scale_embedding"),
        ("whisper", odd_heads, "3 equal parts"),
        ("whisper", biased_keys, "k_proj.bias"),
    ],
)
def test_what_a_config_does_not_say_is_refused(name, change, word, tmp_path):
    with pytest.raises(LoadError, match=word) as caught:
        models.load(write(tmp_path, name, change))
    assert "\n" not in str(caught.value)


def test_older_files_of_t5(tmp_path):
    """Copies of the embedding, and a bias of cross-attention that nothing reads."""

    def older(config, tensors):
        for key in ("scale_decoder_outputs", "dense_act_fn", "is_gated_act"):
            del config[key]
        config |= {"n_positions": 512, "output_past": True}
        for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
            tensors[f"{name}.weight"] = tensors["shared.weight"]
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[name] = np.ones((8, 4), np.float32)

    found = models.load(write(tmp_path, "t5_relu", older))
    chex.assert_trees_all_equal(found.model, loaded("t5_relu").model)


def test_other_files_of_whisper(tmp_path):
    """Names without that of the body, a copy of the table, tokens that are forced."""

    def other(config, tensors):
        config["forced_decoder_ids"] = [[1, 9], [2, 8], [3, None], [4, 7]]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        tensors["proj_out.weight"] = tensors["decoder.embed_tokens.weight"]

    found = models.load(write(tmp_path, "whisper", other))
    assert found.model.start == (3, 9, 8)
    plain = loaded("whisper").model
    chex.assert_trees_all_equal(dataclasses.replace(found.model, start=(3,)), plain)
    assert found.input == models.AudioInput(mels=5, frames=14)
    assert loaded("t5_relu").input is None


def test_positions_of_whisper_are_waves():
    """By hand: wavelengths grow from 2 pi to 20000 pi."""
    spec = models.WhisperSpec(
        layers=1, embed=4, heads=1, mlp=4, vocab=8, mels=2, source=3
    )
    model = models.init(spec, jax.random.key(0))
    rows = [[np.sin(i), np.sin(i / 1e4), np.cos(i), np.cos(i / 1e4)] for i in range(3)]
    chex.assert_trees_all_close(model.positions.weight, jnp.array(rows), atol=1e-6)


def test_presets_have_as_many_parameters_as_published():
    """Those of transformers' models, with a table of distances for every layer."""
    for name, count in PARAMETERS.items():
        spec = models.preset(name)
        shapes = leaf_shapes(family_of(spec).skeleton(spec))
        copies = spec.layers + spec.encoder.layers - 2
        copies *= getattr(spec, "buckets", 0) * spec.heads
        assert count + copies == sum(leaf.size for leaf in shapes.values())


PARAMETERS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "whisper-tiny.en": 37_760_256,
    "whisper-tiny": 37_760_640,
    "whisper-base.en": 72_593_408,
    "whisper-base": 72_593_920,
    "whisper-small.en": 241_734_144,
    "whisper-small": 241_734_912,
    "whisper-medium.en": 763_856_896,
    "whisper-medium": 763_857_920,
}
