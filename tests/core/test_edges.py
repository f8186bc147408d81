"""Edges of the input: every value is taken for one meaning, or refused in one line."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import PerPrompt, Site
from mijax._errors import (
    NotFiniteError,
    PositionError,
    ShapeError,
    SiteError,
)
from mijax.data import Prompts
from tests.cases import CLEAN, METRIC, model

MODEL = model("gpt2")
BIG = np.int64(2**32)
ZERO = mijax.Zero()
INDICES = {
    "site": lambda i: Site("z", layer=i),
    "edit": lambda i: ZERO.at("z", layer=i),
    "edit position": lambda i: ZERO.at("z", position=i),
    "edit span": lambda i: ZERO.at("z", position=slice(i, None)),
    "edit feature": lambda i: ZERO.at("z", feature=[1, i]),
    "edit list": lambda i: ZERO.at("z", head=[i, 1]),
    "per prompt": lambda i: ZERO.at("z", layer=PerPrompt([1, i])),
    "axis": lambda i: mijax.sweep(
        MODEL, CLEAN, ZERO.at("z"), over={"head": [0, i]}, metric=METRIC
    ),
    "axis position": lambda i: mijax.sweep(
        MODEL, CLEAN, ZERO.at("z"), over={"position": [0, i]}, metric=METRIC
    ),
    "token": lambda i: mijax.run(MODEL, [3, i]),
    "answer": lambda i: mijax.logit_difference(i, 3),
    "answers": lambda i: mijax.probability([3, i]),
    "set of answers": lambda i: mijax.logit_difference([[3, i]], 3),
    "label": lambda i: mijax.cross_entropy([3, i]),
    "metric position": lambda i: mijax.probability(3, position=i),
    "direct": lambda i: mijax.lens.direct_logit_attribution(
        MODEL, CLEAN, i, 3, position=jnp.array([1, 2, 3])
    ),
    "stop": lambda i: mijax.generate(MODEL, CLEAN, steps=1, stop=i),
    "lengths": lambda i: mijax.generate(MODEL, CLEAN, steps=1, lengths=[2, 2, i]),
    "prompts": lambda i: Prompts.from_ids([[3, i]]),
    "pad": lambda i: Prompts.from_ids([[3], [4, 5]], pad=i),
    "span": lambda i: Prompts.from_ids([[3, 4]], spans={"name": [(0, i)]}),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("use", INDICES)
@pytest.mark.parametrize("index", [BIG, BIG + 1, -BIG, 2**70, True, np.True_, 1.0, "1"])
def test_indices_that_32_bits_would_wrap_and_other_types_are_refused(use, index):
    with pytest.raises(mijax.MijaxError):
        INDICES[use](index)


GROUPS = {
    "array": {"head": np.array([[0, 1], [2, 3]])},
    "nested": {"head": [[[0, 1], [2, 3]]]},
    "empty": {"layer": [[]]},
    "coefficients": {"coefficient": [[1.0, 2.0]]},
    "per prompt": {"head": PerPrompt([0, 1, 2])},
}


@pytest.mark.parametrize("over", GROUPS)
def test_values_of_an_axis_that_are_neither_one_nor_a_group(over):
    edit = mijax.Scale(2.0).at("z")
    with pytest.raises(ShapeError):
        mijax.sweep(MODEL, CLEAN, edit, over=GROUPS[over], metric=METRIC)


@pytest.mark.parametrize("axis", ["layer", "head", "feature"])
def test_a_list_means_all_and_one_per_prompt_is_said(axis):
    ones = [mijax.Scale(0.5).at("z", **{axis: i}) for i in range(3)]
    runs = jnp.stack([mijax.run(MODEL, CLEAN, one) for one in ones])
    several = mijax.Scale(0.5).at("z", **{axis: [0, 1, 2]})
    chex.assert_trees_all_close(
        mijax.run(MODEL, CLEAN, several), mijax.run(MODEL, CLEAN, ones), atol=1e-5
    )
    each = mijax.Scale(0.5).at("z", **{axis: PerPrompt([0, 1, 2])})
    found = mijax.run(MODEL, CLEAN, each)
    chex.assert_trees_all_close(found, runs[np.arange(3), np.arange(3)], atol=1e-5)
    with pytest.raises(SiteError, match="names each one once"):
        ZERO.at("z", **{axis: [0, 1, 0]})
    with pytest.raises(SiteError, match="flat list"):
        ZERO.at("z", **{axis: [[0, 1]]})
    with pytest.raises(SiteError, match="one per prompt"):
        mijax.run(MODEL, CLEAN, ZERO.at("z", **{axis: PerPrompt([0, 1])}))
    with pytest.raises(SiteError, match="per prompt"):
        mijax.capture(MODEL, CLEAN, Site("z", **{axis: PerPrompt([0, 1, 2])}))


def test_a_list_of_features_is_fixed_in_a_sweep_and_checked():
    some = mijax.Zero().at("mlp_post", feature=[3, 5, 60])
    found = mijax.sweep(MODEL, CLEAN, some, over="layer", metric=METRIC).values
    for layer in range(3):
        one = mijax.Zero().at("mlp_post", layer=layer, feature=[3, 5, 60])
        expected = METRIC(mijax.run(MODEL, CLEAN, one))
        chex.assert_trees_all_close(found[:, layer], expected, atol=1e-4)
    with pytest.raises(SiteError, match="feature 128"):
        mijax.run(MODEL, CLEAN, mijax.Zero().at("mlp_post", feature=[3, 128]))
    with pytest.raises(SiteError, match="fixed feature"):
        mijax.sweep(MODEL, CLEAN, some, over="feature", metric=METRIC)


ROWS = [[5, 9, 2, 7, 3], [5, 8, 2]]
RAGGED = Prompts.from_ids(ROWS)


def test_logits_at_padding_are_nan_and_no_metric_reads_them():
    logits = mijax.run(MODEL, RAGGED)
    assert jnp.isnan(logits[1, 3:]).all()
    alone = [mijax.run(MODEL, row) for row in ROWS]
    chex.assert_trees_all_close(logits[1, :3], alone[1], atol=1e-5)
    for metric in (
        mijax.logit_difference(10, 20),
        mijax.accuracy(3),
        mijax.kl(logits),
        mijax.probability(3, position=4),
    ):
        with pytest.raises(NotFiniteError, match=r"prompt 1 is NaN.*prompts\.last"):
            metric(logits)
    last = mijax.logit_difference(10, 20, position=RAGGED.last)
    plain = mijax.logit_difference(10, 20)
    expected = jnp.stack([plain(one) for one in alone])
    chex.assert_trees_all_close(last(logits), expected, atol=1e-5)
    jitted = jax.jit(lambda prompts: plain(mijax.run(MODEL, prompts)))
    assert jnp.isnan(jitted(RAGGED)[1])


def test_a_mean_loss_of_prompts_of_several_lengths():
    log_p = [jax.nn.log_softmax(mijax.run(MODEL, row)) for row in ROWS]
    pairs = zip(log_p, ROWS, strict=True)
    expected = jnp.stack(
        [-p[np.arange(len(row) - 1), np.array(row[1:])].mean() for p, row in pairs]
    )
    for out in (-1, -100):
        labels = jnp.where(RAGGED.mask[:, 1:], RAGGED.tokens[:, 1:], out)
        loss = mijax.cross_entropy(labels)
        chex.assert_trees_all_close(loss(mijax.run(MODEL, RAGGED)), expected, atol=1e-5)
        swept = mijax.sweep(MODEL, RAGGED, ZERO.at("z"), over="layer", metric=loss)
        chex.assert_trees_all_close(swept.base, expected, atol=1e-4)
        mijax.gradients(MODEL, RAGGED, mijax.negative(loss), Site("embed"))
    whole = mijax.cross_entropy(RAGGED.tokens[:, 1:])
    with pytest.raises(PositionError, match="padding"):
        mijax.gradients(MODEL, RAGGED, whole, Site("embed"))
    slope = jax.grad(lambda x: loss(x).sum())(mijax.run(MODEL, RAGGED))
    assert jnp.isfinite(slope).all()
    for labels in ([[3, -2]], [[3, 4], [-1, -1]], [3, -1], [[[3]]]):
        with pytest.raises(ShapeError):
            mijax.cross_entropy(labels)
    with pytest.raises(PositionError, match=r"prompts\.last"):
        mijax.cross_entropy([[3], [4]])
