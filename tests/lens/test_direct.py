"""Direct logit attribution is a split of the logit difference."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from cases import CLEAN, LAST, METRIC, MODELS, model

import mijax
from mijax._errors import FrameError, ShapeError, SiteError
from mijax.lens import direct_logit_attribution

# The norms of a sandwich follow its writes, and it caps its logits.
LINEAR = [name for name in MODELS if name != "sandwich"]


@pytest.mark.parametrize("name", LINEAR)
def test_parts_add_up_to_the_logit_difference(name):
    direct = direct_logit_attribution(
        model(name), CLEAN, METRIC.answer, METRIC.wrong, position=LAST
    )
    expected = METRIC(mijax.run(model(name), CLEAN))
    chex.assert_trees_all_close(direct.total(), expected, atol=1e-4)
    assert jnp.abs(direct.heads).min() > 0


def test_without_a_norm_a_head_of_the_last_layer_is_its_own_ablation():
    """No later layer and no scale: ablating a head removes just what it writes."""
    plain = eqx.tree_at(
        lambda m: m.norm,
        model("attention_only"),
        mijax.nn.Identity(),
        is_leaf=lambda node: node is None,
    )
    direct = direct_logit_attribution(
        plain, CLEAN, METRIC.answer, METRIC.wrong, position=LAST
    )
    last = plain.n_layers - 1
    ablate = mijax.Zero().at("z", layer=last, head=2)
    change = METRIC(mijax.run(plain, CLEAN)) - METRIC(mijax.run(plain, CLEAN, ablate))
    assert abs(change).min() > 1e-3
    chex.assert_trees_all_close(direct.heads[:, last, 2], change, atol=1e-3)


@pytest.mark.parametrize("name", LINEAR)
def test_one_logit_at_every_position_and_per_neuron(name):
    one = model(name)
    wide = name != "attention_only"
    direct = direct_logit_attribution(one, CLEAN, METRIC.answer, neurons=wide)
    logits = mijax.run(one, CLEAN)
    expected = jnp.take_along_axis(logits, METRIC.answer[:, None, None], axis=2)[..., 0]
    chex.assert_shape(direct.heads, (3, one.n_layers, 7, 4))
    chex.assert_trees_all_close(direct.total(), expected, atol=1e-4)
    if wide:
        chex.assert_shape(direct.neurons, (3, one.n_layers, 7, None))
        parts = direct.neurons.sum(-1) + direct.mlp_bias
        chex.assert_trees_all_close(parts, direct.mlps, atol=1e-4)
    # A position of each prompt is that entry of all positions.
    last = direct_logit_attribution(one, CLEAN, METRIC.answer, position=LAST)
    rows = jnp.arange(3)
    chex.assert_trees_all_close(last.heads, direct.heads[rows, :, LAST], atol=1e-5)
    assert last.neurons is None


def test_padding_is_nan_and_neurons_need_mlps():
    prompts = mijax.data.Prompts.from_ids([[5, 9, 2], [1, 2]])
    total = direct_logit_attribution(model("gpt2"), prompts, 3).total()
    assert jnp.isnan(total).tolist() == [[False] * 3, [False, False, True]]
    with pytest.raises(SiteError, match="no MLPs"):
        direct_logit_attribution(model("attention_only"), CLEAN, 3, neurons=True)


def test_logit_parts_are_added_while_layers_run():
    """No array holds what every head writes, `[layer, seq, heads, embed]`."""
    split = lambda t: direct_logit_attribution(model("gpt2"), t, 3)  # noqa: E731
    text = jax.jit(split).lower(CLEAN).compile().as_text()
    assert "3,7,4,32]" not in text


@pytest.mark.parametrize("token", [-1, 10_000])
def test_answers_beyond_the_vocabulary_are_refused(token):
    for ids in ((METRIC.answer, jnp.int32(token)), (jnp.int32(token), METRIC.wrong)):
        with pytest.raises(ShapeError, match=f"got {token}"):
            direct_logit_attribution(model("gpt2"), CLEAN, *ids, position=LAST)


def test_writes_through_a_norm_and_capped_logits_are_refused():
    uncapped = eqx.tree_at(lambda m: m.cap, model("sandwich"), mijax.nn.Identity())
    capped = eqx.tree_at(lambda m: m.cap, model("llama"), mijax.nn.SoftCap(30.0))
    for one, word in ((uncapped, "linear_writes"), (capped, "SoftCap")):
        with pytest.raises(FrameError, match=word):
            direct_logit_attribution(one, CLEAN, METRIC.answer, position=LAST)
