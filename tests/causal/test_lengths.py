"""Interchange interventions on prompts of several lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Patch, Site, causal
from mijax._errors import PositionError, ShapeError
from mijax.data import Prompts
from tests.cases import model

MODEL = model("gpt2")
BASE = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
SOURCE = [[20, 21, 22, 23, 24], [26, 27, 28], [29, 30, 31, 32]]
SITE = Site("resid_post", layer=1, position=1)
ON = jnp.ones((3, 1), bool)


def answer(base, source):
    acts = mijax.capture(MODEL, source, Site("resid_post"))
    edit = Patch(acts).at("resid_post", layer=1, position=1)
    return int(mijax.run(MODEL, base, edit)[-1].argmax())


def whole(site=SITE):
    return causal.stated(causal.blocks(32, (32,)), site)


def test_the_last_token_of_each_prompt_is_read():
    label = jnp.array([answer(*pair) for pair in zip(BASE, SOURCE, strict=True)])
    base, source = map(Prompts.from_ids, (BASE, SOURCE))
    data = causal.Counterfactuals(base, source, ON, label)
    assert causal.agreement(MODEL, whole(), data).all()
    assert causal.iia(MODEL, whole(), data).mean == 1
    widened = jnp.pad(source.tokens, ((0, 0), (0, 1)))[:, None]
    given = causal.Counterfactuals(base.tokens, widened, ON, label, base.lengths)
    assert causal.agreement(MODEL, whole(), given).all()
    # The last column is another token in two of the three prompts.
    wrong = causal.Counterfactuals(base.tokens, widened, ON, label, 6)
    found = causal.agreement(MODEL, whole(), wrong)[0]
    np.testing.assert_array_equal(found[0], True)
    assert not found.all()


def test_what_has_no_lengths_or_another_place_is_refused():
    base, source = map(Prompts.from_ids, (BASE, SOURCE))
    label = jnp.zeros(3, int)
    plain = base.tokens, jnp.pad(source.tokens, ((0, 0), (0, 1)))[:, None], ON, label
    with pytest.raises(PositionError, match="need lengths"):
        causal.agreement(MODEL, whole(), causal.Counterfactuals(*plain))
    drawn = causal.Drawn(
        lambda key: jax.tree.map(lambda x: x[0], causal.Counterfactuals(*plain)),
        batch=2,
    )
    search = causal.Search(causal.DAS((4,)), SITE)
    with pytest.raises(PositionError, match="need lengths"):
        causal.align(MODEL, [search], drawn, steps=1)
    data = causal.Counterfactuals(base, [source], ON, label)
    late = Site("resid_post", layer=1, position=3)
    with pytest.raises(PositionError, match="Position 3 is padding"):
        causal.agreement(MODEL, whole(late), data)
    with pytest.raises(PositionError, match="from 1 to 6, got 7"):
        causal.agreement(MODEL, whole(), causal.Counterfactuals(*plain, 7))
    with pytest.raises(ShapeError, match="list of Prompts"):
        causal.Counterfactuals(base, plain[1], ON, label)


@pytest.mark.parametrize(
    "site",
    [
        Site("resid_post", layer=1, position=jnp.array([1, 2, 0])),
        Site("resid_post", layer=1, position=slice(0, 2)),
        Site("resid_post", layer=[0, 1], position=1),
        Site("resid_post", layer=1, position=1, feature=3),
    ],
)
def test_a_search_has_one_place_for_all_prompts(site):
    with pytest.raises(PositionError, match="A search"):
        whole(site)
    source = causal.Drawn(lambda key: key, batch=2)
    with pytest.raises(PositionError, match="A search"):
        causal.align(MODEL, [causal.Search(causal.DAS((4,)), site)], source, steps=1)
