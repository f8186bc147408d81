"""Direct logit attribution is a split of the logit difference."""

import chex
import equinox as eqx
import jax.numpy as jnp
import pytest
from cases import CLEAN, LAST, METRIC, MODELS, model

import mijax
from mijax._errors import ShapeError
from mijax.lens import direct_logit_attribution


@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.parametrize("token", [-1, 10_000])
def test_answers_beyond_the_vocabulary_are_refused(token):
    for ids in ((METRIC.answer, jnp.int32(token)), (jnp.int32(token), METRIC.wrong)):
        with pytest.raises(ShapeError, match=f"got {token}"):
            direct_logit_attribution(model("gpt2"), CLEAN, *ids, position=LAST)
