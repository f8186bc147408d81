"""Generation keeps whatever a block caches: keys, recurrent states, a fixed memory."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS
from compiles import compiles
from native import NATIVE, RECURRENT, RecurrentBlock, alone, native

import mijax
from mijax._errors import SiteError
from mijax.core import AbstractBlock, AbstractEdit, PerToken, Recurrent, Site

STEPS = 4
TOTAL = CLEAN.shape[1] + STEPS
DIRECTION = jnp.linspace(-1, 1, 32)


class Seen(AbstractEdit):
    """Notes the value of every row that is run, by prompt and position."""

    notes: dict = eqx.field(static=True)

    def __call__(self, x, place):
        rows = place.rows
        prompt = jnp.broadcast_to(rows.prompt, rows.position.shape)
        jax.debug.callback(self.note, prompt, rows.position, x)
        return x

    def note(self, prompt, position, x):
        for i, at, row in zip(*map(np.asarray, (prompt, position, x)), strict=True):
            self.notes[int(i), int(at)] = np.asarray(row)


class Notes(dict):
    """A dictionary that a compiled program may hold."""

    __hash__ = object.__hash__


def places(name):
    """One edit at every site that the model has, all of them at once."""
    shapes = native(name)(CLEAN[0])[1]
    found = [mijax.Add(0.5 * DIRECTION).at("embed", position=2)]
    for site in mijax.core.BlockSites.__dataclass_fields__:
        value = getattr(shapes.blocks, site)
        if value is None:
            continue
        # At one position of the prompt, at one that is generated, and at all.
        some = [{"position": 1}, {"position": LENGTHS + 1}, {"layer": 1}]
        found += [mijax.Scale(0.8).at(site, **place) for place in some]
    return [*found, mijax.Scale(0.9).at("logits"), mijax.Scale(1.1).at("resid_final")]


EDITS = {
    "none": lambda name: [],
    "every site": places,
    "a generated position": lambda name: [
        mijax.Add(DIRECTION, 2.0).at("resid_pre", layer=1, position=LENGTHS + 1)
    ],
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("name", NATIVE)
def test_cached_logits_are_those_of_the_whole_text(name, kind):
    """Padding, other prompts and the cache change no logit of any generated token."""
    notes, edits = Notes(), EDITS[kind](name)
    watched = [*edits, Seen(notes).at("logits")]
    new = mijax.generate(
        native(name), CLEAN, steps=STEPS, lengths=LENGTHS, edits=watched
    )
    jax.effects_barrier()
    text = np.zeros((3, TOTAL), np.int32)
    for i, n in enumerate(np.asarray(LENGTHS)):
        text[i, :n], text[i, n : n + STEPS] = CLEAN[i, :n], new[i]
    whole = np.asarray(mijax.run(native(name), text, edits))
    for i, n in enumerate(np.asarray(LENGTHS)):
        for at in range(n - 1, n - 1 + STEPS):
            chex.assert_trees_all_close(notes[i, at], whole[i, at], atol=2e-5)
            top = np.sort(whole[i, at])[-2:]
            assert top[1] - top[0] > 1e-4, "no clear winner: choose another seed"
            assert new[i, at - n + 1] == whole[i, at].argmax()


@pytest.mark.parametrize("name", NATIVE)
def test_a_padded_prompt_generates_what_it_does_alone(name):
    batch = mijax.generate(native(name), CLEAN, steps=STEPS, lengths=LENGTHS)
    for i, n in enumerate(LENGTHS):
        single = mijax.generate(alone(name, i), CLEAN[i, :n], steps=STEPS)
        assert batch[i].tolist() == single.tolist()
    other = CLEAN.at[1, LENGTHS[1] :].set(40)
    again = mijax.generate(native(name), other, steps=STEPS, lengths=LENGTHS)
    chex.assert_trees_all_equal(batch, again)
    with compiles() as found:
        mijax.generate(native(name), other, steps=STEPS + 1, lengths=LENGTHS)
    assert not found


class Unstated(RecurrentBlock):
    """Inherits a statement about what it no longer computes."""

    def __call__(self, stream, rows, past=None):
        return stream


class NoRows(AbstractBlock):
    """Marks its last state only."""

    cache = {"state": Recurrent()}  # noqa: RUF012

    weight: jax.Array

    def __call__(self, stream, rows, past=None):
        x = stream.read("mlp_in")
        mijax.site("state", jnp.cumsum(x, 0)[-1])
        return stream.add("mlp_out", x @ self.weight)


class Unmarked(NoRows):
    """States a value that it does not mark."""

    cache = {"keys": PerToken()}  # noqa: RUF012


def with_blocks(blocks):
    return eqx.tree_at(lambda m: m.blocks, native("recurrent"), blocks)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (Unstated, "Unstated does not state `cache`"),
        (NoRows, r"marks 'state' .* expected \[16, ...\]"),
        (Unmarked, "keys"),
    ],
)
def test_what_is_not_stated_or_marked_is_refused(block, says):
    old = native("recurrent").blocks
    parts = (old.norm, old.mixer, old.w_out)
    blocks = block(*parts) if block is Unstated else block(old.w_out.mT @ old.w_out)
    with pytest.raises(SiteError, match=says):
        mijax.generate(with_blocks(blocks), CLEAN, steps=2)


def test_a_recurrent_state_is_as_long_as_the_prompt():
    """The states that a whole run marks are those after each token."""
    run = lambda tokens: native("recurrent")(tokens)[0]  # noqa: E731
    acts = mijax.harvest(run, want=tuple(RECURRENT))(CLEAN[0])[1]
    chex.assert_shape(acts["window"], (3, 7, 3, 16))
    chex.assert_shape(acts["state"], (3, 7, 16, 3))
    _, pre = mijax.harvest(run, want=("mlp_in",))(CLEAN[0])
    u = jnp.einsum("lse,lei->lsi", pre["mlp_in"], native("recurrent").blocks.mixer.w_in)
    chex.assert_trees_all_close(acts["window"][:, 4], u[:, 2:5], atol=1e-5)
    assert mijax.capture(native("recurrent"), CLEAN, Site("mlp_post")).shape[-1] == 16
