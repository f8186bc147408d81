"""Prompts of several lengths in place of tokens: what is padding is never read."""

import inspect
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site, circuits, dictionaries
from mijax._errors import PositionError, ShapeError, SiteError
from mijax.attribution import attribute
from mijax.data import Prompts
from mijax.lens import direct_logit_attribution, logit_lens

MODEL = mijax.testing.tiny_gpt2(jax.random.key(0))
RANDOM = np.random.default_rng(0)
LENGTHS = (7, 5, 8)
IDS = [RANDOM.integers(1, 60, n).tolist() for n in LENGTHS]
SPANS = {"name": [(1, 3), (2, 3), (3, 6)], "verb": [(4, 5), (3, 4), (6, 7)]}
PROMPTS = Prompts.from_ids(IDS, spans=SPANS, pad=9)
ANSWERS = np.array([3, 4, 5]), np.array([6, 7, 8])
METRIC = mijax.logit_difference(*ANSWERS, position=PROMPTS.last)
ACTS = mijax.capture(MODEL, PROMPTS.tokens + 1, Site("resid_pre"))
PATCH = mijax.Patch(ACTS).at("resid_pre")
SAE = dictionaries.untrained(
    dictionaries.TopK(4), dictionaries.SAE(32), latents=48, key=jax.random.key(1)
)


def test_prompts_are_taken_for_their_tokens():
    tokens = PROMPTS.tokens
    logits = mijax.run(MODEL, tokens)
    expected = jnp.where(PROMPTS.mask[:, :, None], logits, jnp.nan)
    chex.assert_trees_all_close(mijax.run(MODEL, PROMPTS), expected, atol=1e-5)
    for verb in (
        lambda given: mijax.capture(MODEL, given, Site("z")),
        lambda given: mijax.gradients(MODEL, given, METRIC, Site("z")),
        lambda given: (
            mijax.sweep(MODEL, given, PATCH, over="layer", metric=METRIC).values
        ),
    ):
        chex.assert_trees_all_equal(verb(PROMPTS), verb(tokens))


def test_prompts_go_on_where_they_end():
    found = mijax.generate(MODEL, PROMPTS, steps=4)
    for row, ids in zip(found, IDS, strict=True):
        alone = mijax.generate(MODEL, jnp.array(ids), steps=4)
        chex.assert_trees_all_equal(row, alone)


def test_means_of_latents_leave_padding_out():
    site = Site("resid_post", layer=1)
    found = dictionaries.pooled(MODEL, SAE, PROMPTS, site)
    expected = dictionaries.pooled(MODEL, SAE, PROMPTS.tokens, site, mask=PROMPTS.mask)
    chex.assert_trees_all_equal(found, expected)


def test_prompts_may_be_traced_or_one_of_many():
    expected = mijax.generate(MODEL, PROMPTS, steps=4)
    traced = eqx.filter_jit(lambda prompts: mijax.generate(MODEL, prompts, steps=4))
    chex.assert_trees_all_equal(traced(PROMPTS), expected)
    with pytest.raises(PositionError, match="lengths"):
        mijax.generate(MODEL, PROMPTS.tokens, steps=4, lengths=[7, 5, 9])
    one = jax.tree.map(lambda a: a[0], PROMPTS)
    chex.assert_trees_all_equal(mijax.generate(MODEL, one, steps=4), expected[0])
    metric = mijax.logit_difference(3, 6, position=PROMPTS.last[0])
    found = mijax.gradients(MODEL, one, metric, Site("z"))
    alone = mijax.gradients(MODEL, jnp.array(IDS[0]), metric, Site("z"))
    chex.assert_trees_all_close(found[:, : LENGTHS[0]], alone, atol=1e-5)


def test_lists_of_layers_are_known_under_jit():
    with pytest.raises(SiteError, match="layer 7"):
        jax.jit(lambda x: mijax.capture(MODEL, x, Site("z", layer=[0, 7])))(
            PROMPTS.tokens
        )
    none = mijax.Zero().at("z", layer=1, head=[])
    chex.assert_trees_all_equal(
        mijax.run(MODEL, PROMPTS, none), mijax.run(MODEL, PROMPTS)
    )


class First(mijax.logit_difference):
    """A metric that somebody wrote: other reads, other operands, its own check."""

    years: Any = eqx.field(default=None, converter=jnp.asarray)
    per_prompt = ("years",)
    token_ids = ()

    def reads(self, prompt, seq):
        return jnp.zeros(1, int)

    def check(self, batch=1, *, seq):
        assert (batch, seq) == (3, 8)


def test_metrics_of_ones_own():
    metric = First(3, 4, years=[1732, 1805, 1900])
    found = mijax.gradients(MODEL, PROMPTS, metric, Site("embed"))
    assert found[:, 0].any()
    assert not found[:, 1:].any()
    metric(mijax.run(MODEL, PROMPTS))
    circuits.discover(
        MODEL, circuits.Task(PROMPTS, PROMPTS.tokens + 1, metric=metric), circuits.EAP()
    )


def test_given_positions_may_be_fewer_than_those_of_a_source():
    over = {"layer": None, "position": [0, 1]}
    metric = mijax.logit_difference(3, 4)
    found = mijax.sweep(MODEL, PROMPTS.tokens[:, :4], PATCH, over=over, metric=metric)
    cut = mijax.Patch(ACTS[:, :, :4]).at("resid_pre")
    again = mijax.sweep(MODEL, PROMPTS.tokens[:, :4], cut, over=over, metric=metric)
    chex.assert_trees_all_equal(found.values, again.values)
    for axes in ("position", {"position": None}):
        with pytest.raises(ShapeError, match=r"needs \(3, 3, 4, 32\)"):
            mijax.sweep(MODEL, PROMPTS.tokens[:, :4], PATCH, over=axes, metric=metric)
    short = mijax.Patch(ACTS[:, :, :4]).at("resid_pre")
    with pytest.raises(ShapeError, match=r"needs \(3, 3, 6, 32\)"):
        mijax.sweep(
            MODEL, PROMPTS.tokens, short, over={"position": [2, 5]}, metric=METRIC
        )


def test_spans_may_reach_into_padding():
    from_3 = mijax.Scale(2.0).at("z", position=slice(3, None))
    found = mijax.run(MODEL, PROMPTS, from_3)
    for row, ids in zip(found, IDS, strict=True):
        alone = mijax.run(MODEL, jnp.array(ids), from_3)
        chex.assert_trees_all_close(row[: len(ids)], alone, atol=1e-5)


def test_ends_that_fit_both_ways_are_refused():
    values, end = jnp.arange(9.0).reshape(3, 3), jnp.arange(3.0)
    with pytest.raises(ShapeError, match="both ways"):
        mijax.recovered(values, end + 1, end)
    with pytest.raises(ShapeError, match="not along"):
        mijax.recovered(values[:, :2], jnp.ones(4), 0.0)
    by_cell = mijax.recovered(values[:2], end + 1, end)
    chex.assert_trees_all_close(by_cell, values[:2] - end)
    by_prompt = mijax.recovered(values[:, :2], end + 1, end)
    chex.assert_trees_all_close(by_prompt, values[:, :2] - end[:, None])


def test_places_have_names():
    named = {"layer": None, "position": ["name", "last"]}
    found = mijax.sweep(MODEL, PROMPTS, PATCH, over=named, metric=METRIC)
    assert found.axes[1].labels == ("name", "last")
    spans = {name: PROMPTS.span(name) for name in ("name", "last")}
    over = {"layer": None, "position": spans}
    again = mijax.sweep(MODEL, PROMPTS.tokens, PATCH, over=over, metric=METRIC)
    chex.assert_trees_all_equal(found.values, again.values)
    alone = mijax.sweep(MODEL, PROMPTS, PATCH, over={"position": "last"}, metric=METRIC)
    assert alone.axes[0].labels == ("last",)
    every = {"layer": None, "position": PROMPTS.spans}
    all_of_them = mijax.sweep(MODEL, PROMPTS, PATCH, over=every, metric=METRIC)
    assert all_of_them.axes[1].labels == tuple(PROMPTS.spans)
    chex.assert_trees_all_close(
        all_of_them.values[..., 0], found.values[..., 0], atol=1e-5
    )
    for given, says in ((PROMPTS, "Did you mean 'name'"), (PROMPTS.tokens, "Prompts")):
        over = {"position": ["nmae"]}
        with pytest.raises(PositionError, match=says):
            mijax.sweep(MODEL, given, PATCH, over=over, metric=METRIC)


LAST = mijax.logit_difference(*ANSWERS)
PADDING = {
    "sweep": lambda: mijax.sweep(MODEL, PROMPTS, PATCH, over="layer", metric=LAST),
    "gradients": lambda: mijax.gradients(MODEL, PROMPTS, LAST, Site("z")),
    "given": lambda: mijax.gradients(
        MODEL, PROMPTS, mijax.logit_difference(3, 4, position=6), Site("z")
    ),
    "reads": lambda: mijax.gradients(
        *(MODEL, PROMPTS),
        mijax.cross_entropy(
            PROMPTS.tokens[:, 1:3], position=np.array([[5, 6], [4, 5], [6, 7]])
        ),
        Site("z"),
    ),
    "negative": lambda: mijax.gradients(
        MODEL, PROMPTS, mijax.negative(LAST), Site("z")
    ),
    "attribution": lambda: attribute(MODEL, PROMPTS, PROMPTS, LAST, Site("z")),
    "latents": lambda: dictionaries.attribute_latents(
        *(MODEL, SAE, PROMPTS, PROMPTS, LAST), Site("resid_post", layer=1)
    ),
    "direct": lambda: direct_logit_attribution(
        *(MODEL, PROMPTS, *ANSWERS), position=np.array([6, 5, 7])
    ),
    "lens": lambda: logit_lens(MODEL, PROMPTS, position=7, top=1),
    "task": lambda: circuits.Task(PROMPTS, PROMPTS, metric=LAST),
    "edit": lambda: mijax.run(
        MODEL, PROMPTS, mijax.Zero().at("z", position=np.array([1, 5, 2]))
    ),
    "site": lambda: mijax.capture(MODEL, PROMPTS, Site("z", position=6)),
}


@pytest.mark.parametrize("case", PADDING)
def test_padding_is_not_read(case):
    with pytest.raises(PositionError, match="padding"):
        PADDING[case]()


def test_of_one_length_the_last_column_is_the_last_token():
    prompts = Prompts.from_ids([ids[:5] for ids in IDS])
    found = mijax.gradients(MODEL, prompts, LAST, Site("z"))
    at = mijax.logit_difference(*ANSWERS, position=prompts.last)
    expected = mijax.gradients(MODEL, prompts.tokens, at, Site("z"))
    chex.assert_trees_all_close(found, expected, atol=1e-6)


class Loaded:
    model = MODEL


# Without the types that tests check.
bare = inspect.unwrap
NO = {
    "text": (
        lambda: bare(mijax.capture)("gpt2", [1, 2], Site("z")),
        "mijax.models.load",
    ),
    "function": (
        lambda: bare(mijax.sweep)(
            MODEL, PROMPTS, PATCH, over="layer", metric=lambda logits: logits[0]
        ),
        "got function",
    ),
    "vocabulary": (
        lambda: mijax.gradients(MODEL, [1, 2], mijax.probability(64), Site("z")),
        "vocabulary of 64",
    ),
    "negative": (
        lambda: mijax.negative(mijax.logit_difference(3, 99))(jnp.ones((4, 64))),
        "vocabulary of 64",
    ),
    "circuit": (
        lambda: circuits.discover(
            MODEL,
            circuits.Task([[1, 2]], [[3, 4]], metric=mijax.probability(64)),
            circuits.EAP(),
        ),
        "vocabulary of 64",
    ),
    "mask": (
        lambda: mijax.run(
            MODEL,
            PROMPTS,
            mijax.Mean(ACTS, mask=PROMPTS.mask[:2]).at("resid_pre"),
        ),
        "mask of shape",
    ),
    "key": (
        lambda: bare(mijax.generate)(MODEL, PROMPTS, steps=2, temperature=1.0, key=0),
        "needs a key",
    ),
    "stop": (
        lambda: bare(mijax.generate)(MODEL, PROMPTS, steps=2, stop=[[1, 2]]),
        "stop",
    ),
}


@pytest.mark.parametrize("case", NO)
def test_what_is_something_else_is_refused(case):
    call, says = NO[case]
    with pytest.raises(ShapeError, match=says):
        call()


def test_an_edit_at_several_layers_and_heads_is_an_edit_at_each():
    each = [
        mijax.Scale(0.5).at("z", layer=layer, head=head)
        for layer in (0, 2)
        for head in (1, 3)
    ]
    for layers in ([0, 2], range(0, 3, 2), np.array([0, 2])):
        several = mijax.Scale(0.5).at("z", layer=layers, head=[1, 3])
        chex.assert_trees_all_close(
            mijax.run(MODEL, PROMPTS, several), mijax.run(MODEL, PROMPTS, each)
        )
    mean = mijax.Mean(ACTS).at("resid_pre", layer=[1, 2])
    one_by_one = [mijax.Mean(ACTS).at("resid_pre", layer=i) for i in (1, 2)]
    chex.assert_trees_all_close(
        mijax.run(MODEL, PROMPTS, mean), mijax.run(MODEL, PROMPTS, one_by_one)
    )


def test_a_share_of_many_prompts():
    found = mijax.sweep(
        MODEL, PROMPTS, PATCH, over={"position": ["name", "last"]}, metric=METRIC
    )
    clean = METRIC(mijax.run(MODEL, PROMPTS.tokens + 1))
    by_prompt = mijax.recovered(found.values, clean, found.base)  # [3, 2] and [3]
    expected = (found.values - found.base[:, None]) / (clean - found.base)[:, None]
    chex.assert_trees_all_close(by_prompt, expected)
    share = found.recovered(clean, resamples=500, key=jax.random.key(4))
    above, below = np.asarray(found.values).T - found.base, np.asarray(clean)
    below = below - found.base
    chex.assert_trees_all_close(share.mean, above.mean(1) / below.mean(), rtol=1e-5)
    drawn = np.asarray(jax.random.randint(jax.random.key(4), (500, 3), 0, 3))
    again = np.stack([above[:, i].mean(1) / below[i].mean() for i in drawn])
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    chex.assert_trees_all_close((share.low, share.high), (low, high), rtol=1e-3)
    with pytest.raises(ShapeError, match="several"):
        found.recovered(clean[:2])
    with pytest.raises(ShapeError, match="level"):
        found.recovered(clean, level=95.0)


@pytest.mark.parametrize("wrong", [64, -1, [3, 4], 0.5])
def test_answers_that_are_not_there_are_refused(wrong):
    with pytest.raises(ShapeError, match=r"[Tt]oken id"):
        inspect.unwrap(direct_logit_attribution)(
            MODEL, PROMPTS, ANSWERS[0], wrong, position=PROMPTS.last
        )
    with pytest.raises(ShapeError, match=r"[Tt]oken id"):
        inspect.unwrap(dictionaries.direct_latent_attribution)(
            *(MODEL, SAE, PROMPTS, ANSWERS[0], wrong),
            site=Site("resid_post", layer=1),
            position=PROMPTS.last,
        )
