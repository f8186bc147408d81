"""Haiku models get sites without a change of their outputs."""

import chex
import jax.numpy as jnp
import pytest
from toys import KEY, SEQ

import mijax
from mijax import harvest, interop
from mijax._errors import SiteError

hk = pytest.importorskip("haiku")


def block(x):
    attention = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(1))
    x = x + attention(x, x, x)
    return hk.nets.MLP([6, 3], activation=jnp.tanh)(x).mean(0)


NET = hk.transform(block)
PARAMS = NET.init(KEY, SEQ)
CHOSEN = {"attention": hk.MultiHeadAttention, "mlp": r"mlp/~/linear_\d"}


@pytest.mark.parametrize("net", [NET, hk.without_apply_rng(NET)])
def test_a_marked_model_is_equal_bit_for_bit_and_has_its_sites(net):
    axes = {"attention": "position embed"}
    marked = interop.mark_haiku(net, PARAMS, CHOSEN, axes=axes)
    table = mijax.sites(marked, SEQ)
    assert table["attention"].axes == ("position", "embed")
    assert table["mlp"].shapes == ((5, 6), (5, 3))
    out, acts = harvest(marked)(SEQ)
    chex.assert_trees_all_equal(NET.apply(PARAMS, None, SEQ), marked(SEQ), out)
    assert list(acts) == ["attention", "mlp"]
    zero = mijax.Zero().at("mlp", layer=0, feature=2)
    edited = mijax.run(mijax.model(marked, SEQ), SEQ, zero)
    hidden = acts.mlp[0].at[:, 2].set(0)
    last = PARAMS["mlp/~/linear_1"]
    by_hand = (jnp.tanh(hidden) @ last["w"] + last["b"]).mean(0)
    chex.assert_trees_all_close(edited, by_hand, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: interop.mark_haiku(NET, PARAMS, {"a": "linear"})(SEQ),
            "No submodule fits 'linear' for site 'a'",
        ),
        (
            lambda: interop.mark_haiku(
                hk.transform_with_state(block), PARAMS, {"a": hk.Linear}
            ),
            "got TransformedWithState: give a model without state",
        ),
    ],
)
def test_refuses(call, says):
    with pytest.raises(SiteError, match=says):
        call()
