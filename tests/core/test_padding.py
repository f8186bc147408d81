"""Padding of an encoder is masked: a padded prompt is computed as it is alone."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BLOCK_SITES, CLEAN, CORRUPT, LENGTHS, METRIC, encoder, sites
from compiles import compiles

import mijax
from mijax import Site, nn
from mijax._errors import PositionError, ShapeError
from mijax.data import Prompts

NAMES = ("gpt2", "llama")
GRIDS = ("scores", "pattern")
COUNTS = LENGTHS.tolist()
PROMPTS = Prompts.from_ids(
    [row[:n] for row, n in zip(CLEAN.tolist(), COUNTS, strict=True)], pad=9
)
SPOILED = eqx.tree_at(lambda p: p.tokens, PROMPTS, PROMPTS.tokens.at[1, 5:].set(40))
TOLERANCE = 2e-5


def every_edit(name, end=7):
    """Edits at every site, at all positions and at some, and in a span to an end."""
    found = []
    for site in sites(name):
        place = {"layer": 1} if site in BLOCK_SITES else {}
        found.append(mijax.Scale(0.8).at(site, **place))
        found.append(mijax.Scale(1.1).at(site, position=2))
    # Neither adds what padding would hold: the whole pattern, and a span into it.
    found.append(mijax.Add(0.1).at("pattern", layer=0, head=1))
    found.append(mijax.Add(0.3).at("resid_post", layer=0, position=slice(3, end)))
    return found


EDITS = {"none": lambda name, end=7: [], "every site": every_edit}


def real(site, value, i):
    """Select the tokens of prompt `i`: rows, and keys of a grid."""
    n = COUNTS[i]
    value = value[i, :, :n] if site in BLOCK_SITES else value[i, :n]
    return value[..., :n] if site in GRIDS else value


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_prompt_is_what_it_is_alone(name, kind):
    """At every site, logits, activations and gradients, and whatever padding holds."""
    edits, metric = EDITS[kind](name), METRIC
    wanted = {site: Site(site) for site in sites(name)}

    @eqx.filter_jit
    def everything(model, prompts, edits, metric):
        acts = mijax.capture(model, prompts, wanted, edits)
        slopes = mijax.gradients(model, prompts, metric, wanted, edits)
        return mijax.run(model, prompts, edits), acts, slopes

    batch = everything(encoder(name), PROMPTS, edits, metric)
    spoiled = everything(encoder(name), SPOILED, edits, metric)
    assert jnp.isnan(batch[0][1, COUNTS[1] :]).all()
    for i, n in enumerate(COUNTS):
        single = mijax.logit_difference(4 + i, 7 + i, position=n - 1)
        ids = CLEAN[i, :n]
        alone = everything(encoder(name), ids, EDITS[kind](name, n), single)
        chex.assert_trees_all_close(batch[0][i, :n], alone[0], atol=TOLERANCE)
        for found, kind_of in ((batch, 1), (spoiled, 1), (batch, 2), (spoiled, 2)):
            for site in wanted:
                value = real(site, found[kind_of][site], i)
                chex.assert_trees_all_close(
                    value, alone[kind_of][site], atol=TOLERANCE, custom_message=site
                )
        # What padding holds has no part in the metric.
        for site in wanted:
            slope = batch[2][site][i]
            past = slope[:, n:] if site in BLOCK_SITES else slope[n:]
            assert not jnp.any(past), site


def test_verbs_are_those_of_jit_and_vmap():
    """The mask is data: traced lengths, and one prompt of a `vmap`, are masked too."""
    run = lambda prompts: mijax.run(encoder("gpt2"), prompts)  # noqa: E731
    expected = run(PROMPTS)
    chex.assert_trees_all_close(jax.jit(run)(PROMPTS), expected, atol=TOLERANCE)
    mapped = jax.jit(jax.vmap(run))(PROMPTS)
    chex.assert_trees_all_close(mapped, expected, atol=TOLERANCE)
    shorter = eqx.tree_at(lambda p: p.lengths, PROMPTS, jnp.array([4, 5, 6]))
    run(PROMPTS)
    with compiles() as found:
        other = run(shorter)
    assert not found
    chex.assert_trees_all_close(other[0, :4], run(CLEAN[0, :4]), atol=TOLERANCE)


@pytest.mark.parametrize("site", ["embed", "resid_pre", "k", "v", "mlp_out"])
def test_an_edit_of_padding_changes_nothing(site):
    """One position of padding is refused; a span may reach into it, without effect."""
    with pytest.raises(PositionError, match="padding in prompt 1"):
        mijax.run(encoder("gpt2"), PROMPTS, mijax.Zero().at(site, position=5))
    plain = mijax.run(encoder("gpt2"), PROMPTS)
    large = jnp.linspace(-50, 50, 8 if site in ("k", "v") else 32) ** 3
    far = mijax.Set(large).at(site, position=slice(5, 7))
    edited = mijax.run(encoder("gpt2"), PROMPTS, far)
    chex.assert_trees_all_equal(edited[1], plain[1])
    assert jnp.abs(edited[0] - plain[0]).max() > 1e-2


def test_an_edited_encoder_and_other_blocks_mask_padding_too():
    """Edited blocks and sandwich blocks mask padding too."""
    edit = mijax.Scale(0.5).at("pattern", layer=1, head=2)
    kept = mijax.run(mijax.edited(encoder("llama"), edit), PROMPTS)
    given = mijax.run(encoder("llama"), PROMPTS, edit)
    chex.assert_trees_all_close(kept, given, atol=TOLERANCE)
    old = encoder("llama").blocks
    blocks = nn.SandwichBlock(
        *(old.norm_1, old.attention, old.norm_2, old.norm_1, old.mlp, old.norm_2)
    )
    sandwich = eqx.tree_at(lambda m: m.blocks, encoder("llama"), blocks)
    padded = mijax.run(sandwich, PROMPTS)
    for i, n in enumerate(COUNTS):
        alone = mijax.run(sandwich, CLEAN[i, :n])
        chex.assert_trees_all_close(padded[i, :n], alone, atol=TOLERANCE)


def test_metrics_read_no_padding():
    last = mijax.logit_difference(3, 4)
    with pytest.raises(PositionError, match="reads padding: prompt 1 has 5"):
        mijax.gradients(encoder("gpt2"), PROMPTS, last, Site("z"))
    with pytest.raises(PositionError, match="reads padding"):
        mijax.sweep(
            encoder("gpt2"), PROMPTS, mijax.Zero().at("z"), over="layer", metric=last
        )


SWEEPS = {
    "resid_pre": {"layer": range(3), "position": range(7)},
    "z": {"layer": [2, 0], "head": range(4)},
    "pattern": {"head": range(4), "position": [0, 4, 6]},
    "embed": {"position": [0, 3, 6]},
}


@pytest.mark.parametrize(
    ("name", "site"), [*(("gpt2", site) for site in SWEEPS), ("llama", "z")]
)
def test_a_sweep_of_padded_prompts_equals_the_loop(name, site):
    acts = mijax.capture(encoder(name), CORRUPT, Site(site))
    edit, over = mijax.Patch(acts), SWEEPS[site]
    before = mijax.Scale(0.9).at("v", layer=1)
    options = {"over": over, "metric": METRIC, "edits": before}
    found = mijax.sweep(encoder(name), PROMPTS, edit.at(site), **options)
    for cell in np.ndindex(found.values.shape[1:]):
        place = {a: v[i] for (a, v), i in zip(over.items(), cell, strict=True)}
        at = place.pop("position", None)
        if at is not None:
            place["position"] = slice(at, at + 1)
        one = [before, edit.at(site, **place)]
        expected = METRIC(mijax.run(encoder(name), PROMPTS, one))
        chex.assert_trees_all_close(
            found.values[(slice(None), *cell)], expected, atol=TOLERANCE
        )
        if at is not None and at >= COUNTS[1]:
            assert found.values[(1, *cell)] == found.base[1]
    with compiles() as programs:
        again = mijax.sweep(encoder(name), SPOILED, edit.at(site), **options)
    assert not programs
    chex.assert_trees_all_close(again.values, found.values, atol=TOLERANCE)


class Unmasked(nn.Block):
    """Inherits a statement about what it no longer computes."""

    def __call__(self, stream, rows, past=None):
        return stream


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    "verb",
    [
        mijax.run,
        lambda model, prompts: mijax.capture(model, prompts, Site("resid_post")),
        lambda model, prompts: mijax.gradients(
            model, prompts, METRIC, Site("resid_pre")
        ),
    ],
)
def test_a_block_that_does_not_state_its_mask_is_refused(verb, traced):
    class Encoder(type(encoder("gpt2"))):
        causal = False

    old = encoder("gpt2")
    blocks = Unmasked(*(getattr(old.blocks, n) for n in vars(old.blocks)))
    given = Encoder(**{**vars(old), "blocks": blocks})
    call = eqx.filter_jit(verb) if traced else verb
    with pytest.raises(ShapeError, match="masks_padding"):
        call(given, PROMPTS)
