"""Weight edits: values that are looked at, joined, applied, undone and saved."""

import json

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.editing import Dense, LowRank, WeightEdit, load, save, weight_names
from mijax.io import SafeTensors, save_safetensors

OUT = "blocks.mlp.w_out"


def low_rank(seed, shape=(64, 32), rank=2):
    left, right = jax.random.split(jax.random.key(seed))
    return LowRank(
        jax.random.normal(left, (*shape[:-1], rank)),
        jax.random.normal(right, (rank, shape[-1])),
    )


@pytest.fixture(scope="module")
def model():
    return cases.model("gpt2")


def test_views_of_a_delta():
    delta = low_rank(0)
    dense = np.asarray(delta.left, np.float64) @ np.asarray(delta.right, np.float64)
    np.testing.assert_allclose(delta.dense(), dense, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(delta.norm(), np.linalg.norm(dense), rtol=1e-5)
    assert delta.rank() == Dense(delta.dense()).rank() == 2
    # Two columns on one line have rank 1.
    same = LowRank(jnp.ones((5, 2)), jnp.array([[1.0, 2.0], [2.0, 4.0]]))
    assert same.rank() == 1
    assert LowRank(jnp.zeros((5, 1)), jnp.ones((1, 3))).rank() == 0
    np.testing.assert_array_equal(delta.scaled(0.5).dense(), delta.dense() / 2)


def test_apply_adds_the_delta_at_its_place(model):
    delta = low_rank(1)
    edited = WeightEdit.on(model, OUT, delta, layer=1).apply(model)
    before, after = np.asarray(model.blocks.mlp.w_out), edited.blocks.mlp.w_out
    np.testing.assert_array_equal(after[1], before[1] + np.asarray(delta.dense()))
    np.testing.assert_array_equal(after[jnp.array([0, 2])], before[[0, 2]])
    rest = eqx.tree_at(lambda m: m.blocks.mlp.w_out, edited, model.blocks.mlp.w_out)
    assert eqx.tree_equal(rest, model)


def test_a_weight_of_heads_and_one_outside_the_blocks(model):
    heads = LowRank(jnp.ones((4, 8, 1)), jnp.ones((1, 32)))
    edit = WeightEdit.on(model, "blocks.attention.w_o", heads, layer=2).then(
        WeightEdit.on(model, "norm.weight", Dense(jnp.ones(32)))
    )
    edited = edit.apply(model)
    w_o = model.blocks.attention.w_o
    np.testing.assert_array_equal(edited.blocks.attention.w_o[2], w_o[2] + 1)
    np.testing.assert_array_equal(edited.norm.weight, model.norm.weight + 1)


def test_undo_is_exact_and_keeps_other_edits(model):
    # Large enough that subtracting it would lose the weights' last bits.
    first = WeightEdit.on(model, OUT, low_rank(2).scaled(1e4), layer=0)
    other = WeightEdit.on(model, OUT, low_rank(3), layer=2)
    both = first.then(other).apply(model)
    subtracted = both.blocks.mlp.w_out[0] - first.changes[0].delta.dense()
    assert (subtracted != model.blocks.mlp.w_out[0]).any()
    undone = first.undo(both, model)
    assert eqx.tree_equal(undone, other.apply(model))
    assert eqx.tree_equal(other.undo(undone, model), model)
    with pytest.raises(mijax.MijaxError, match="edit did not produce"):
        first.undo(model, model)
    with pytest.raises(mijax.MijaxError, match="made for different weights"):
        first.undo(both, both)


def test_joined_edits_add_up_in_order(model):
    one = WeightEdit.on(model, OUT, low_rank(4), layer=1)
    later = WeightEdit.on(one.apply(model), OUT, low_rank(5), layer=1)
    apart = WeightEdit.on(model, OUT, low_rank(5), layer=1)
    stepwise = later.apply(one.apply(model))
    assert eqx.tree_equal(one.then(later).apply(model), stepwise)
    assert eqx.tree_equal(one.then(apart).apply(model), stepwise)
    assert one.then(later).places == ((OUT, 1),)
    with pytest.raises(mijax.MijaxError, match="made for different weights"):
        later.apply(model)
    assert eqx.tree_equal(one.scaled(0).apply(model), model)


def test_growth_of_the_norm(model):
    edit = WeightEdit.on(model, OUT, low_rank(6), layer=1)
    before = np.linalg.norm(model.blocks.mlp.w_out[1])
    after = np.linalg.norm(model.blocks.mlp.w_out[1] + edit.changes[0].delta.dense())
    np.testing.assert_allclose(edit.growth(model), [after / before - 1], rtol=1e-5)
    np.testing.assert_allclose(edit.norms()[0], edit.changes[0].delta.norm())


def test_half_precision_is_rounded_once(model):
    half = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, model
    )
    delta = low_rank(7)
    edited = WeightEdit.on(half, OUT, delta, layer=1).apply(half)
    sums = half.blocks.mlp.w_out[1].astype(jnp.float32) + delta.dense()
    np.testing.assert_array_equal(edited.blocks.mlp.w_out[1], sums.astype(jnp.bfloat16))


def test_apply_traces(model):
    edit = WeightEdit.on(model, OUT, low_rank(1), layer=1)
    traced = eqx.filter_jit(lambda m, e: e.apply(m).blocks.mlp.w_out)(model, edit)
    np.testing.assert_allclose(traced, edit.apply(model).blocks.mlp.w_out, atol=1e-6)


def test_delta_file_round_trip(model, tmp_path):
    path = tmp_path / "edit.safetensors"
    edit = WeightEdit.on(model, OUT, low_rank(8), layer=1).then(
        WeightEdit.on(model, "norm.bias", Dense(jnp.arange(32.0)))
    )
    save(edit, path)
    found = load(path)
    assert eqx.tree_equal(found, edit)
    assert eqx.tree_equal(found.apply(model), edit.apply(model))
    with pytest.raises(mijax.MijaxError, match="made for different weights"):
        found.apply(mijax.testing.tiny_gpt2(jax.random.key(9)))
    with pytest.raises(mijax.MijaxError, match="made for another model"):
        found.apply(cases.model("llama"))


def test_broken_delta_files_are_refused(model, tmp_path):
    path = tmp_path / "edit.safetensors"
    save(WeightEdit.on(model, OUT, low_rank(8), layer=1), path)
    file = SafeTensors(path)
    arrays = {name: file.read(name) for name in file.shapes}
    content = json.loads(file.metadata["mijax.editing"])

    def refused(match, arrays=arrays, content=content):
        text = content if isinstance(content, str) else json.dumps(content)
        save_safetensors(arrays, path, metadata={"mijax.editing": text})
        with pytest.raises(mijax.MijaxError, match=match) as error:
            load(path)
        assert "\n" not in str(error.value)

    refused("damaged", content="{")
    refused("version", content={**content, "version": 2})
    refused("unknown key", content={**content, "more": 1})
    refused("missing or unknown", arrays={"0.left": arrays["0.left"]})
    refused("not finite", arrays={n: a * np.nan for n, a in arrays.items()})
    refused(
        "of the same rank", arrays={**arrays, "0.left": np.ones((64, 3), np.float32)}
    )
    save_safetensors(arrays, path)
    with pytest.raises(mijax.MijaxError, match="not a delta file"):
        load(path)


def test_models_that_keep_edits_are_refused(model):
    kept = mijax.edited(model, mijax.Zero().at("z", layer=1))
    delta = Dense(jnp.ones_like(model.blocks.mlp.w_out))
    for name in weight_names(kept)[:2]:
        with pytest.raises(mijax.MijaxError, match="keeps edits of activations"):
            WeightEdit.on(kept, name, delta)


def test_refused_places_and_shapes(model):
    assert OUT in weight_names(model)
    for match, weight, layer in [
        ("no weight 'blocks.mlp.wout'. Did you mean", "blocks.mlp.wout", 1),
        ("layers 0 to 2, got layer 3", OUT, 3),
        ("has a layer axis", OUT, None),
        ("no layers", "norm.weight", 0),
    ]:
        with pytest.raises(mijax.MijaxError, match=match):
            WeightEdit.on(model, weight, low_rank(0), layer=layer)
    with pytest.raises(mijax.MijaxError, match="made for another model"):
        WeightEdit.on(model, OUT, low_rank(0, (48, 32)), layer=1)
    with pytest.raises(mijax.MijaxError, match="of the same rank"):
        LowRank(jnp.ones((3, 2)), jnp.ones((1, 3)))
