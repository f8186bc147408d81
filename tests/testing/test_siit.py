"""The causal model, exchanges of activations, training, and the shipped model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax._errors import ConfigError
from mijax.core import Patch, compose
from mijax.testing import _siit, _siit_exchange, siit
from mijax.testing._siit_exchange import (
    END,
    HEADS,
    LAYERS,
    NAMES,
    NODES,
    START,
    Taken,
    draw,
    interchange,
    outside,
)

# One program each, for 64 prompts.
exchanged = jax.jit(_siit_exchange.exchanged)
plain = jax.jit(_siit_exchange.plain)


@pytest.fixture(scope="module")
def batch():
    return draw(jax.random.key(1), 64)


@pytest.fixture(scope="module")
def model():
    return _siit.init(jax.random.key(0))


def test_prompts(batch):
    start, first, second, filler, third, end = np.asarray(batch.tokens).T
    assert (start == START).all()
    assert (end == END).all()
    assert (first != second).all()
    assert ((filler >= NAMES) & (filler < START)).all()
    again = np.asarray(batch.again)
    np.testing.assert_array_equal(third, np.where(again == 0, first, second))
    np.testing.assert_array_equal(batch.answer, np.where(again == 0, second, first))
    assert 0.2 < again.mean() < 0.8


def test_nothing_exchanged_is_the_model(batch, model):
    logits, sources = plain(model, batch.tokens)
    none = Taken(jnp.zeros((64, LAYERS, HEADS), bool), jnp.zeros((64, LAYERS), bool))
    same = exchanged(model, batch.tokens, sources, none)
    np.testing.assert_allclose(same, logits, atol=1e-5)
    everything = jax.tree.map(jnp.ones_like, none)
    same = exchanged(model, batch.tokens, sources, everything)
    np.testing.assert_allclose(same, logits, atol=1e-5)


def test_exchanged_parts_are_those_of_the_other_run(batch, model):
    """Against edits of the library, prompt by prompt."""
    _, sources = plain(model, batch.tokens)
    moved = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), sources)
    taken = Taken(
        jnp.zeros((64, LAYERS, HEADS), bool).at[:, 1, 2].set(True),
        jnp.zeros((64, LAYERS), bool).at[:, 0].set(True),
    )
    found = exchanged(model, batch.tokens, moved, taken)
    for i in range(3):
        edits = [
            Patch(moved.z[i]).at("z", layer=1, head=2),
            Patch(moved.mlp_out[i]).at("mlp_out", layer=0),
        ]
        logits, _ = model(batch.tokens[i], compose(edits))
        np.testing.assert_allclose(found[i], logits[-1], atol=1e-5)


def test_the_causal_model(batch, model):
    """The last node that is exchanged decides, spelt out."""
    _, sources = plain(model, batch.tokens)
    swapped, taken, answer = interchange(jax.random.key(3), batch, sources)
    z, plan = np.asarray(swapped.z), np.asarray(taken.z)
    assert not taken.mlp_out.any()
    sets = set()
    for i in range(64):
        chosen = [n for n, (layer, head) in NODES.items() if plan[i, layer, head]]
        assert len(chosen) == plan[i].sum() > 0
        sets.add(tuple(chosen))
        layer, head = NODES[chosen[-1]]
        same = (z[i, layer, :, head] == sources.z[:, layer, :, head]).all((1, 2))
        for source in np.flatnonzero(same):
            expected = batch.answer[source]
            if chosen[-1] != "mover":
                expected = batch.tokens[i, 2 - batch.again[source]]
            # Prompts alike up to what a head reads give the same activation.
            assert answer[i] == expected or same.sum() > 1
        assert same.any()
    assert len(sets) == 2 ** len(NODES) - 1


def test_outside_the_circuit(batch, model):
    _, sources = plain(model, batch.tokens)
    _, taken = outside(jax.random.key(4), sources, share=jnp.ones(64))
    assert taken.mlp_out.all()
    assert int((~taken.z).sum()) == 64 * len(NODES)
    for layer, head in NODES.values():
        assert not taken.z[:, layer, head].any()
    _, taken = outside(jax.random.key(4), sources, share=jnp.zeros(64))
    assert not taken.z.any()
    assert not taken.mlp_out.any()


def test_training_learns():
    seen = []
    case = siit(steps=250, progress=lambda *step: seen.append(step))
    assert seen == [(100, 250), (200, 250), (250, 250)]
    # Untrained models are right a tenth of the time, and stay so when exchanged.
    after = case.accuracies(prompts=512, seed=9)
    assert after.behaviour > 0.9
    assert after.interchange > 0.5
    assert after.strict > 0.5


def test_training_takes_a_step():
    with pytest.raises(ConfigError, match="1 step at least, got 0"):
        siit(steps=0)


def test_weights_survive_the_file(model, tmp_path):
    file = tmp_path / "model.safetensors"
    _siit.save(model, file)
    back = _siit.load(_siit.init(jax.random.key(7)), file)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_shipped_model_has_its_circuit():
    found = siit().accuracies()
    assert found.behaviour > 0.99
    assert found.interchange > 0.99
    assert found.strict > 0.99
    assert _siit.FILE.stat().st_size < 300_000


def test_no_part_outside_the_circuit_matters_alone():
    case, batch = siit(), draw(jax.random.key(11), 64)
    _, sources = plain(case.model, batch.tokens)
    moved = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), sources)
    for layer in range(LAYERS):
        for part in range(HEADS + 1):
            z = jnp.zeros((64, LAYERS, HEADS), bool)
            mlp_out = jnp.zeros((64, LAYERS), bool)
            if part == HEADS:
                mlp_out = mlp_out.at[:, layer].set(True)
            else:
                z = z.at[:, layer, part].set(True)
            logits = exchanged(case.model, batch.tokens, moved, Taken(z, mlp_out))
            right = float((logits.argmax(-1) == batch.answer).mean())
            if part < HEADS and (layer, part) in NODES.values():
                assert right < 0.75, (layer, part)
            else:
                assert right > 0.96, (layer, part)


def test_prompts_and_counterparts():
    case = siit(prompts=64, seed=3)
    differs = np.asarray(case.clean != case.corrupt)
    assert differs.sum(1).tolist() == [1] * 64
    assert differs[:, 4].all()
    assert (np.asarray(case.clean)[:, 4] == case.wrong).all()
    logits, _ = plain(case.model, case.clean)
    assert (logits.argmax(-1) == case.answer).mean() > 0.98
    logits, _ = plain(case.model, case.corrupt)
    assert (logits.argmax(-1) == case.wrong).mean() > 0.98
