from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax import models, nn, testing
from mijax._errors import FrameError

GOLDEN = Path(__file__).parents[1] / "golden"
ORDER = ("fold_norm", "centre_writing", "centre_unembedding", "fold_value_biases")
MODELS = {
    "gpt2": (testing.tiny_gpt2, ORDER),
    "parallel": (testing.tiny_parallel, ORDER),
    "attention only": (testing.tiny_attention_only, ORDER),
    "llama": (testing.tiny_llama, ("fold_norm", "centre_unembedding")),
}
CASES = [(name, frame) for name, (_, frames) in MODELS.items() for frame in frames]
TOKENS = jnp.array([3, 14, 15, 9, 26, 5, 35, 8, 9, 7])


def tiny(name, seed=0):
    return MODELS[name][0](jax.random.key(seed))


def log_probabilities(model, tokens=TOKENS):
    return jax.nn.log_softmax(model(tokens)[0])


@pytest.mark.parametrize(("name", "frame"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_outputs_do_not_change(name, frame, seed):
    model = tiny(name, seed)
    if frame == "fold_value_biases" and model.blocks.attention.b_v is None:
        model = nn.fold_norm(model)
    new = nn.FRAMES[frame](model)
    assert new.frame == (*model.frame, frame)
    np.testing.assert_allclose(
        log_probabilities(new), log_probabilities(model), atol=3e-5
    )
    if frame != "centre_unembedding":
        np.testing.assert_allclose(new(TOKENS)[0], model(TOKENS)[0], atol=3e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reverse", [False, True])
def test_all_of_them(name, reverse):
    model = new = tiny(name)
    frames = MODELS[name][1]
    order = ("fold_norm", *reversed(frames[1:])) if reverse else frames
    for frame in order:
        new = nn.FRAMES[frame](new)
    np.testing.assert_allclose(
        log_probabilities(new), log_probabilities(model), atol=5e-5
    )
    assert new.unembedding is not None
    assert new.norm.weight is None
    if "centre_writing" in order:
        stream = new(TOKENS)[1].blocks.resid_post
        np.testing.assert_allclose(stream.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(new(TOKENS)[0].mean(-1), 0, atol=1e-4)


@pytest.mark.parametrize(("name", "frame"), CASES)
def test_twice_is_refused(name, frame):
    model = tiny(name)
    if frame == "fold_value_biases" and model.blocks.attention.b_v is None:
        model = nn.fold_norm(model)
    new = nn.FRAMES[frame](model)
    with pytest.raises(FrameError, match=frame) as caught:
        nn.FRAMES[frame](new)
    assert "\n" not in str(caught.value)


def biased_gate():
    model = testing.tiny_llama(jax.random.key(0))
    norm = nn.LayerNorm(jnp.ones((3, 32)), jnp.ones((3, 32)))
    return eqx.tree_at(lambda m: m.blocks.norm_2, model, norm)


def test_a_layer_norm_folds_into_a_gated_mlp():
    model = biased_gate()
    folded = nn.fold_norm(model)
    assert folded.blocks.mlp.b_gate.shape == folded.blocks.mlp.b_in.shape
    assert np.abs(folded.blocks.mlp.b_gate).max() > 0.01
    tokens = jnp.arange(5)
    np.testing.assert_allclose(folded(tokens)[0], model(tokens)[0], atol=1e-4)


def no_norm():
    spec = models.AttentionOnlySpec(layers=1, embed=16, vocab=20, norm=False)
    return models.init(spec, jax.random.key(0))


@pytest.mark.parametrize(
    ("model", "frame", "word"),
    [
        (lambda: tiny("llama"), "centre_writing", "RMSNorm"),
        (lambda: tiny("llama"), "fold_value_biases", "no value biases"),
        (
            lambda: nn.fold_value_biases(tiny("gpt2")),
            "fold_norm",
            "before fold_value_biases",
        ),
        (no_norm, "fold_norm", "norm_1"),
        (no_norm, "centre_writing", "Identity"),
    ],
)
def test_refusals(model, frame, word):
    with pytest.raises(FrameError, match=word) as caught:
        nn.FRAMES[frame](model())
    assert "\n" not in str(caught.value)


def test_value_biases_of_grouped_heads():
    model = testing.tiny_llama(jax.random.key(0))
    bias = jax.random.normal(jax.random.key(1), (3, 2, 8))
    model = eqx.tree_at(
        lambda m: m.blocks.attention.b_v, model, bias, is_leaf=lambda x: x is None
    )
    new = nn.fold_value_biases(model)
    np.testing.assert_allclose(new(TOKENS)[0], model(TOKENS)[0], atol=3e-5)


def test_low_precision_keeps_its_dtype():
    model = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, tiny("gpt2")
    )
    for frame in ORDER:
        model = nn.FRAMES[frame](model)
    dtypes = {x.dtype for x in jax.tree.leaves(model) if eqx.is_array(x)}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}


@pytest.fixture(scope="module")
def processed():
    model = models.load(GOLDEN / "hf" / "gpt2").model
    for frame in ORDER:
        model = nn.FRAMES[frame](model)
    return model


def test_weights_are_those_of_transformer_lens(processed):
    golden = np.load(GOLDEN / "transformer_lens" / "processed.npz")
    attention, mlp = processed.blocks.attention, processed.blocks.mlp
    heads_first = lambda w: w[0].transpose(1, 0, 2)  # noqa: E731
    ours = {
        "W_E": processed.embedding.weight,
        "W_pos": processed.positions.weight,
        "W_U": processed.unembedding.weight.T,
        "b_U": processed.unembedding.bias,
        "b_O": attention.b_o,
        "block0_W_Q": heads_first(attention.w_q),
        "block0_W_K": heads_first(attention.w_k),
        "block0_W_V": heads_first(attention.w_v),
        "block0_W_O": attention.w_o[0],
        "block0_b_Q": attention.b_q[0],
        "block0_b_K": attention.b_k[0],
        "block0_b_O": attention.b_o[0],
        "block0_W_in": mlp.w_in[0],
        "block0_b_in": mlp.b_in[0],
        "block0_W_out": mlp.w_out[0],
        "block0_b_out": mlp.b_out[0],
    }
    for name, value in ours.items():
        np.testing.assert_allclose(value, golden[name], atol=1e-5, err_msg=name)
    assert not golden["block0_b_V"].any()


def test_activations_are_those_of_transformer_lens(processed):
    golden = np.load(GOLDEN / "transformer_lens" / "processed.npz")
    logits, acts = jax.vmap(processed)(jnp.asarray(golden["tokens"], jnp.int32))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    for site in ("resid_pre", "resid_post", "z"):
        np.testing.assert_allclose(
            getattr(acts.blocks, site), golden[site], atol=1e-4, err_msg=site
        )
