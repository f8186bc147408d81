"""Blocks and edits state what verbs may rely on; what is not so is refused."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site, attribution, causal, circuits, dictionaries, lens, nn
from mijax._errors import (
    FrameError,
    NotFiniteError,
    PositionError,
    ShapeError,
    SiteError,
)
from mijax.core import AbstractBlock, AbstractEdit
from mijax.data import Activations, Corpus, Prompts, Tokens
from tests.cases import CLEAN, METRIC, model

MODEL = model("gpt2")


class Sandwich(nn.Block):
    """Normalizes what it writes too, and inherits what `Block` states."""

    def __call__(self, stream, rows, past=None):
        read = stream.read("attn_in", norm=self.norm_1)
        out = self.attention.out(self.attention(read, rows, past))
        stream = stream.keep(rows).add("attn_out", self.norm_1(out))
        mlp = self.mlp(stream.read("mlp_in", norm=self.norm_2))
        return stream.add("mlp_out", mlp)


class Recurrent(AbstractBlock):
    """Sums over the tokens before, without attention."""

    weight: jax.Array

    def __call__(self, stream, rows, past=None):
        out = jnp.cumsum(stream.read("sum_in"), 0) @ self.weight
        return stream.add("sum_out", out)


def with_blocks(blocks):
    return eqx.tree_at(lambda m: m.blocks, MODEL, blocks)


def sandwich():
    old = MODEL.blocks
    return with_blocks(Sandwich(old.norm_1, old.attention, old.norm_2, old.mlp))


@pytest.mark.parametrize(
    "verb",
    [
        nn.fold_norm,
        nn.centre_writing,
        lens.composition,
        lambda model: lens.direct_logit_attribution(
            model, CLEAN, 10, 20, position=jnp.array([6, 4, 6])
        ),
    ],
)
def test_a_block_that_does_not_write_linearly_is_refused(verb):
    with pytest.raises(FrameError, match="Sandwich does not state `linear_writes"):
        verb(sandwich())
    verb(MODEL)


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: mijax.sweep(
            model, CLEAN, mijax.Zero().at("resid_pre"), over="layer", metric=METRIC
        ),
        lambda model: mijax.generate(model, CLEAN, steps=2),
        lambda model: causal.prefix(model, CLEAN, jnp.array([6, 4, 6])),
    ],
)
def test_a_block_that_does_not_state_its_cache_is_refused(verb):
    recurrent = with_blocks(Recurrent(0.1 * jnp.ones((3, 32, 32))))
    assert mijax.run(recurrent, CLEAN).shape == (3, 7, 64)
    with pytest.raises(SiteError, match="Recurrent does not state `cache`"):
        verb(recurrent)


ROWS = [[5, 9, 2, 7, 3], [5, 8, 2]]
RAGGED = Prompts.from_ids(ROWS)
LAST = mijax.logit_difference(10, 20, position=RAGGED.last)
CORPUS = Corpus.from_ids(ROWS, separator=0)
PLACE = Site("resid_post", layer=1)
SAE = dictionaries.untrained(
    dictionaries.TopK(4), dictionaries.SAE(32), latents=64, key=jax.random.key(1)
)


class Unmasked(nn.Block):
    """A block that does not state what it inherits."""

    def __call__(self, stream, rows, past=None):
        return super().__call__(stream, rows, past)


@pytest.mark.parametrize(
    "verb",
    [
        lambda model, prompts: attribution.attribute(
            model, prompts, prompts, LAST, Site("z")
        ),
        lambda model, prompts: circuits.discover(
            model, circuits.Task(prompts, prompts, metric=LAST), circuits.EAP()
        ),
        lambda model, prompts: dictionaries.attribute_latents(
            model, SAE, prompts, None, LAST, PLACE
        ),
        lambda model, prompts: Activations(
            model, Tokens(CORPUS, seq=5, batch=2, pack=False), PLACE, batch=2
        ),
        lambda model, prompts: dictionaries.recovered(model, SAE, prompts, PLACE),
        lambda model, prompts: dictionaries.pooled(model, SAE, prompts, PLACE),
        circuits.mean_ablation,
    ],
)
def test_blocks_that_do_not_state_a_mask_take_no_padding_of_an_encoder(verb):
    attention = dataclasses.replace(MODEL.blocks.attention, causal=False)
    blocks = Unmasked(**{**vars(MODEL.blocks), "attention": attention})
    with pytest.raises(ShapeError, match="not causal"):
        verb(with_blocks(blocks), RAGGED)


def test_counterparts_align():
    turned = Prompts.from_ids(ROWS[::-1])
    for given in (turned, RAGGED.tokens[:, :4]):
        with pytest.raises(PositionError, match="counterpart"):
            attribution.attribute(MODEL, RAGGED, given, LAST, Site("z"))
        with pytest.raises(PositionError, match="counterpart"):
            circuits.Task(RAGGED, given, metric=LAST)


class Shaped(AbstractEdit):
    function: object = eqx.field(static=True)

    def __call__(self, x, place):
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:1],
        lambda x: x.mean(),
        lambda x: x[None],
        lambda x: (x, x),
        lambda x: None,
        lambda x: x + 1j,
    ],
)
def test_an_edit_keeps_the_shape_of_its_rows(function):
    with pytest.raises(ShapeError, match="Shaped was given float32"):
        mijax.run(MODEL, CLEAN, Shaped(function).at("resid_pre", layer=1))


MIXED = {
    "mean": lambda x: x - x.mean(0),
    "roll": lambda x: jnp.roll(x, 1, 0),
    "sum": lambda x: jnp.cumsum(x, 0),
}


@pytest.mark.parametrize("mixed", MIXED)
def test_an_edit_that_mixes_rows_is_for_run_only(mixed):
    edit = Shaped(MIXED[mixed]).at("resid_pre")
    assert jnp.isfinite(mijax.run(MODEL, CLEAN, edit)).all()
    with pytest.raises(ShapeError, match="Shaped mixes rows"):
        mijax.sweep(MODEL, CLEAN, edit, over="layer", metric=METRIC)
    with pytest.raises(ShapeError, match="Shaped mixes rows"):
        mijax.generate(MODEL, CLEAN, steps=1, edits=edit)


def test_an_edit_of_each_row_sweeps():
    edit = Shaped(lambda x: jnp.tanh(x) * jnp.linalg.norm(x, axis=-1, keepdims=True))
    found = mijax.sweep(MODEL, CLEAN, edit.at("z"), over="layer", metric=METRIC).values
    one = METRIC(mijax.run(MODEL, CLEAN, edit.at("z", layer=1)))
    chex.assert_trees_all_close(found[:, 1], one, atol=1e-4)
    mijax.generate(MODEL, CLEAN, steps=1, edits=edit.at("z"))


def test_nan_in_a_swept_source_is_refused_where_it_is_swept():
    acts = mijax.capture(MODEL, CLEAN + 1, Site("resid_pre"))
    broken = mijax.Patch(acts.at[1, 2, 3].set(jnp.nan)).at("resid_pre")
    axes = {"layer": None, "position": None}
    with pytest.raises(NotFiniteError, match=r"'resid_pre' in prompt 1, layer 2, .* 3"):
        mijax.sweep(MODEL, CLEAN, broken, over=axes, metric=METRIC)
    fine = {"layer": [0, 1], "position": None}
    found = mijax.sweep(MODEL, CLEAN, broken, over=fine, metric=METRIC).values
    assert jnp.isfinite(found).all()


def test_nan_of_the_model_is_said():
    broken = eqx.tree_at(
        lambda m: m.blocks.mlp.w_out, MODEL, replace_fn=lambda w: w * jnp.nan
    )
    with pytest.raises(NotFiniteError, match="next token"):
        mijax.generate(broken, CLEAN, steps=2)
    with pytest.warns(RuntimeWarning, match="9 of 9 runs of the sweep have a NaN"):
        found = mijax.sweep(
            broken, CLEAN, mijax.Zero().at("z"), over="layer", metric=METRIC
        )
    assert jnp.isnan(found.values).all()
    logits = jnp.full((1, 4), jnp.nan)
    assert jnp.isnan(eqx.filter_jit(mijax.accuracy(0))(logits))


def test_equal_ends_recover_nothing():
    assert mijax.recovered(1.0, 3.0, -1.0) == 0.5
    for clean, corrupt in (
        (2.0, 2.0),
        (jnp.array([1.0, 2]), jnp.array([1.0, 3])),
        (jnp.nan, 1.0),
    ):
        with pytest.raises(NotFiniteError, match="no fraction"):
            mijax.recovered(jnp.ones(2), clean, corrupt)
    same = mijax.sweep(MODEL, CLEAN, mijax.Zero().at("z"), over="layer", metric=METRIC)
    with pytest.raises(NotFiniteError, match="no fraction"):
        same.recovered(same.base)
    np.testing.assert_equal(same.values.shape, (3, 3))
