"""Generation with a cache equals running the whole text again for every token."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS, MODELS, acts_of, model

import mijax
from mijax._errors import PositionError, ShapeError

EDITS = {
    "none": [],
    "steer": [mijax.Add(jnp.linspace(-1, 1, 32), 2.0).at("resid_pre", layer=1)],
    "head": [mijax.Zero().at("k", layer=0, head=1), mijax.Scale(2.0).at("z", head=3)],
    "one position": [mijax.Zero().at("resid_post", layer=0, position=LENGTHS)],
}


LONGEST = CLEAN.shape[1] + 4


def loop(name, tokens, steps, edits):
    """Runs the whole text again for every token, padded on the right to one length."""
    tokens = list(map(int, tokens))
    for _ in range(steps):
        padded = jnp.array([tokens + [0] * (LONGEST - len(tokens))])
        logits = np.asarray(mijax.run(model(name), padded, edits))[0, len(tokens) - 1]
        top = np.sort(logits)[-2:]
        assert top[1] - top[0] > 1e-4, "no clear winner: choose another seed"
        tokens.append(int(logits.argmax()))
    return tokens[-steps:]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["none", "steer", "head"])
def test_batch_of_padded_prompts_equals_loop(name, kind):
    found = mijax.generate(
        model(name), CLEAN, steps=4, lengths=LENGTHS, edits=EDITS[kind]
    )
    for i, n in enumerate(LENGTHS):
        expected = loop(name, CLEAN[i, :n], 4, EDITS[kind])
        assert found[i].tolist() == expected


def test_an_edit_at_a_generated_position_applies():
    plain = mijax.generate(model("gpt2"), CLEAN, steps=4, lengths=LENGTHS)
    edited = mijax.generate(
        model("gpt2"), CLEAN, steps=4, lengths=LENGTHS, edits=EDITS["one position"]
    )
    assert (plain[:, 0] == edited[:, 0]).all()
    assert (plain != edited).any()
    patch = mijax.Patch(acts_of("gpt2", "resid_pre")).at("resid_pre")
    chex.assert_shape(
        mijax.generate(model("gpt2"), CLEAN, steps=3, lengths=LENGTHS, edits=patch),
        (3, 3),
    )


def test_sampling_is_each_prompts_own_and_stops():
    every = {"steps": 12, "temperature": 1.0, "key": jax.random.key(4)}
    whole = mijax.generate(model("llama"), CLEAN, lengths=LENGTHS, **every)
    again = mijax.generate(model("llama"), CLEAN, lengths=LENGTHS, **every)
    chex.assert_trees_all_equal(whole, again)
    first = mijax.generate(model("llama"), CLEAN[:1], **every)
    chex.assert_trees_all_equal(first[0], whole[0])
    assert len(jnp.unique(whole)) > 6
    end = int(whole[0, 3])
    stopped = mijax.generate(model("llama"), CLEAN, lengths=LENGTHS, stop=end, **every)
    at = whole[0].tolist().index(end)
    assert stopped[0].tolist() == whole[0, :at].tolist() + [end] * (12 - at)


def test_temperature_follows_the_model():
    tokens = jnp.tile(CLEAN[:1], (4000, 1))
    key = jax.random.key(0)
    found = mijax.generate(model("gpt2"), tokens, steps=1, temperature=2.0, key=key)
    p = jax.nn.softmax(mijax.run(model("gpt2"), CLEAN[0])[-1] / 2.0)
    counts = jnp.bincount(found[:, 0], length=64) / 4000
    assert jnp.abs(counts - p).max() < 0.03


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"steps": 0}, ShapeError, "at least one step"),
        ({"steps": 2, "temperature": 1.0}, ShapeError, "a key"),
        ({"steps": 2, "lengths": [8, 1, 1]}, PositionError, "from 1 to 7"),
        ({"steps": 2, "lengths": [3]}, PositionError, "3 prompts"),
        ({"steps": 30}, PositionError, "context of 32"),
    ],
)
def test_refuses(options, error, says):
    with pytest.raises(error, match=says):
        mijax.generate(model("gpt2"), CLEAN, **options)
