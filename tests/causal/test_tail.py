"""The end of a transformer, from the last token on."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import causal
from mijax._errors import ShapeError, SiteError
from mijax.core import Site


def test_tail_is_the_end_of_the_model():
    """Swapped at the last token, the tail says what the whole model says."""
    model = cases.model("llama")
    tokens = jnp.array([[5, 9, 30, 7, 2], [11, 3, 8, 0, 0]])
    last, ids = jnp.array([4, 2]), jnp.array([4, 6, 50])
    kept = causal.prefix(model, tokens, last)
    tail = causal.Tail.of(model, kept, 0)
    width = 32
    whole = causal.blocks(width, (16,)).mask[:1]
    swap = causal.Swap(
        causal.Subspaces(jnp.eye(width), whole[0]), kept.stream[1, 0][None]
    )
    x = jnp.concatenate([jnp.array([0]), ids])
    logits, _ = tail(x, swap.at("embed"))
    place = swap.at("resid_post", layer=0, position=4)
    expected = mijax.run(model, tokens[0], place)[-1, ids]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(
        causal.activation(tail(x)[1], Site("embed")), kept.stream[0, 0], atol=1e-6
    )
    with pytest.raises(SiteError, match="no layer 9"):
        causal.Tail.of(model, kept, 9)


@pytest.mark.parametrize(
    ("base", "match"),
    [([2, 4, 6], "prompts are from 0 to 1, got 2"), ([0, 4, 900], "ids .* got 900")],
)
def test_prompts_that_are_not_there_are_refused(base, match):
    model = cases.model("llama")
    tokens = jnp.array([[5, 9, 30, 7, 2], [11, 3, 8, 0, 0]])
    tail = causal.Tail.of(model, causal.prefix(model, tokens, jnp.array([4, 2])), 0)
    data = causal.Counterfactuals(
        *(jnp.array([base]), jnp.array([[[1, 4, 6]]])),
        swapped=jnp.ones((1, 1), bool),
        label=jnp.array([0]),
    )
    whole = causal.stated(causal.blocks(32, (32,)), Site("embed"))
    with pytest.raises(ShapeError, match=match):
        causal.iia(tail, whole, data)
