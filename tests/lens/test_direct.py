"""Direct logit attribution is a split of the logit difference."""

import chex
import jax.numpy as jnp
import pytest
from cases import CLEAN, LAST, METRIC, MODELS, model

import mijax
from mijax.lens import direct_logit_attribution


@pytest.mark.parametrize("name", MODELS)
def test_parts_add_up_to_the_logit_difference(name):
    direct = direct_logit_attribution(
        model(name), CLEAN, METRIC.answer, METRIC.wrong, position=LAST
    )
    expected = METRIC(mijax.run(model(name), CLEAN))
    chex.assert_trees_all_close(direct.total(), expected, atol=1e-4)
    assert jnp.abs(direct.heads).min() > 0


def test_a_head_is_its_own_ablation_in_the_last_layer_with_the_scale_frozen():
    """Without a norm the split is exact: ablating removes just the head's part."""
    one = model("attention_only")
    free = mijax.testing.tiny_attention_only
    del free
    direct = direct_logit_attribution(
        one, CLEAN, METRIC.answer, METRIC.wrong, position=LAST
    )
    last = one.n_layers - 1
    if isinstance(one.norm, mijax.nn.Identity):
        ablate = mijax.Zero().at("z", layer=last, head=2)
        change = METRIC(mijax.run(one, CLEAN)) - METRIC(mijax.run(one, CLEAN, ablate))
        chex.assert_trees_all_close(direct.heads[:, last, 2], change, atol=1e-4)
